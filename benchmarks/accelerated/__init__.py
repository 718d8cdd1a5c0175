"""The stages of `benchmarks/accelerator.py`, one file each."""
