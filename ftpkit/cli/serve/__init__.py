"""The process of ``ftpkit serve``: options, state directory, signals, logs."""
