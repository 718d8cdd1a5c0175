"""Acquisition methods, one file each."""
