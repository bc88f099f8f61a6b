"""The UDP mode without sockets: packets, sessions, congestion control (WIRE.md section 11)."""
