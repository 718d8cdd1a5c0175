"""Reads data sets, decodes images, makes training batches; jax only in `batches`."""
