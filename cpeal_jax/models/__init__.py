"""CLIP in Flax linen, its adapters, and the weights that go into it."""
