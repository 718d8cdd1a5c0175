"""Stores what outlives the process: the workdir, its files and checkpoints."""
