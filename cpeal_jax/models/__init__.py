"""CLIP and DINOv2 in Flax linen, their adapters, and reading and writing them.

Modules whose names contain `weights` read or write pretrained checkpoints.
"""
