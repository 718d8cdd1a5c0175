"""A checkpoint's tensors as transformers' Flax classes named them."""

import numpy as np
from flax import traverse_util


def in_flax_naming(own):
  """What transformers' Flax classes saved, from their PyTorch twins."""
  flat = {}
  for name, x in own.items():
    stem = name.removesuffix(".weight")
    if stem == name:
      leaf = ()
    elif "norm" in stem or "layrnorm" in stem:
      leaf = ("scale",)
    elif stem.endswith(("token_embedding", "position_embedding")):
      leaf = ("embedding",)
    else:
      leaf, x = ("kernel",), x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T
    flat[(*stem.split("."), *leaf)] = np.ascontiguousarray(x).reshape(x.shape)
  return traverse_util.unflatten_dict(flat)
