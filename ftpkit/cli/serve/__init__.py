"""What ``ftpkit serve`` does around the server: settings, state, signals, logs."""
