"""Data sets on disk, their pixels, and training batches; nothing needs jax."""
