"""Data sets on disk, their pixels, and batches; only `batches` imports jax."""
