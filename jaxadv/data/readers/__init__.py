"""One module for each way in which pictures are stored."""
