"""Pools of images on disk, their pixels, and batches to train on. No jax."""
