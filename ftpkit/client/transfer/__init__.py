"""One upload or download of the client, in blocks."""
