"""Weights in several safetensors files, as `save_pretrained` splits large ones.

A file beside them, the index, says which tensor is in which file:
`{"weight_map": {"tensor name": "model-00001-of-00002.safetensors", ...}}`.
"""

import hashlib
from pathlib import Path

from cpeal_jax.data.reading import Fields, read_object
from cpeal_jax.errors import InputError

INDEX = "model.safetensors.index.json"


def shard_names(index: Path) -> tuple[str, ...]:
  """Returns the names of the files that hold the weights, in order.

  Raises:
    InputError: if the index cannot be read or has another form, or if it names
      anything but safetensors files in its directory.
  """
  return tuple(sorted(set(weight_map(index).values())))


def weight_map(index: Path) -> dict[str, str]:
  """Returns the name of the file that holds each tensor.

  Raises:
    InputError: in the same cases as `shard_names`.
  """
  table = Fields(index, read_object(index)).object("weight_map")
  if not table.values:
    raise InputError(f"{index}: weight_map is empty; it must name tensors.")
  for tensor, name in table.values.items():
    # A name may not be a path, so that no file outside the directory is read.
    if (
      not isinstance(name, str)
      or not name.endswith(".safetensors")
      or "/" in name
      or "\\" in name
      or not name.isprintable()
    ):
      table.refuse(tensor, "the name of a .safetensors file beside the index")
  return dict(table.values)


def combined_sha256(digests: dict[str, str]) -> str:
  """Returns one digest for weights in several files.

  It is the SHA-256 of what the command `sha256sum` prints for the files in the
  order of their names, which is a line `DIGEST  NAME` for each file.

  Args:
    digests: the hex digest of each file by its name.
  """
  lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
  return hashlib.sha256(lines.encode()).hexdigest()
