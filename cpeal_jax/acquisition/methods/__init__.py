"""One file for each acquisition method."""
