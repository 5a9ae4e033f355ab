"""Published weights, one file a source, and our own files."""
