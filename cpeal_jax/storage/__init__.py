"""Reads and writes a workdir: its files, its checkpoints and its lock."""
