"""CLIP and DINOv2 in Flax linen, with their adapters and their checkpoints.

Modules whose names contain `weights` read or write pretrained checkpoints.
"""
