"""Plays a trajectory: rounds that score the pool, buy labels and train."""
