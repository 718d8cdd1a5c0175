"""Devices and processes: where rows are and who computes on them."""
