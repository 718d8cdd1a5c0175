"""The labeling page: a web server on this machine, and what it serves."""
