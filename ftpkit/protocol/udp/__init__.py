"""The UDP mode without a socket: packets, sessions, congestion control (WIRE.md section 11)."""
