"""Where in a picture a classifier looks."""
