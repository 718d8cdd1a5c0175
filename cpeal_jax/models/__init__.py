"""CLIP and DINOv2 in Flax linen, their adapters, and weights for both."""
