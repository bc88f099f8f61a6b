"""One upload or download of a client."""
