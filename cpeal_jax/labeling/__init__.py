"""Asks a person for labels by plain files; records the answers."""
