"""Reads the tensors of a checkpoint file and puts them into a weight tree.

A table of names (rows, see `Row`) says which tensor becomes which leaf of the
tree. Pickles are read only by torch's restricted loader, which runs no code in
them.
"""

import hashlib
import importlib
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util
from safetensors import safe_open

from cpeal_jax.data.reading import explained, refuse_unreadable
from cpeal_jax.errors import InputError, counted
from cpeal_jax.models.shards import (
  INDEX,
  combined_sha256,
  shard_names,
  weight_map,
)

# Converts a tensor of the file to a leaf, for example by transposing it.
Turn = Callable[[np.ndarray], np.ndarray]
# (path of a leaf, name of its tensor in the file, conversion to the leaf).
Row = tuple[str, str, Turn]
# Names under which training scripts save a model's tensors beside other things,
# such as the state of an optimizer.
WRAPPERS = ("state_dict", "model_state_dict", "model")
# Prefixes that PyTorch's wrappers for many devices and for compilation put
# before the name of every tensor.
PREFIXES = ("module.", "_orig_mod.")


def same(x: np.ndarray) -> np.ndarray:
  """Returns the tensor as it is in the file."""
  return x


def transpose(x: np.ndarray) -> np.ndarray:
  """Converts PyTorch's weight [out, in] to a kernel [in, out]."""
  return x.T


def convolution(x: np.ndarray) -> np.ndarray:
  """Converts PyTorch's weight [O, I, h, w] to a kernel [h, w, I, O]."""
  return x.transpose(2, 3, 1, 0)


def patches(x: np.ndarray) -> np.ndarray:
  """Converts a patch convolution [W, 3, p, p] to a matrix [p * p * 3, W]."""
  return convolution(x).reshape(-1, x.shape[0])


def first_row(x: np.ndarray) -> np.ndarray:
  """Drops the leading axes of length 1: [1, 1, W] to [W]."""
  return x.reshape(x.shape[-1])


def first_rows(x: np.ndarray) -> np.ndarray:
  """Drops the batch axis: [1, n, W] to [n, W]."""
  return x.reshape(x.shape[-2:])


def fill(
  tensors: Mapping[str, np.ndarray],
  tree: Mapping,
  rows: tuple[Row, ...],
  *,
  ignored: re.Pattern[str],
) -> dict:
  """Builds a tree of float32 weights from the tensors of a file.

  Args:
    tensors: the file's tensors by name.
    tree: the expected tree; its leaves need only the attribute `shape`.
    rows: one row per leaf of `tree`; several rows may use the same tensor.
    ignored: matches the names of tensors that need no leaf.

  Returns:
    A tree of the same structure and shapes as `tree`.

  Raises:
    InputError: if tensors are missing, left over, of a wrong shape or type, or
      not finite; the message lists them all.
    ValueError: if `rows` and `tree` do not have the same leaves.
  """
  expected: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
  if {ours for ours, _, _ in rows} != set(expected):
    raise ValueError("key_table and the model do not have the same leaves")
  problems, flat = [], {}
  for ours, theirs, turn in rows:
    if theirs not in tensors:
      problems.append(f"missing {theirs}")
      continue
    raw, shape = np.asarray(tensors[theirs]), expected[ours].shape
    if not jnp.issubdtype(raw.dtype, np.floating):
      problems.append(f"{theirs} has type {raw.dtype}, which is no float type")
      continue
    try:
      with np.errstate(over="ignore", invalid="ignore"):
        value = turn(raw.astype(np.float32))
    except (TypeError, ValueError, IndexError):
      # The tensor has too few axes. It is reported below with its raw shape.
      value = raw
    if shape == () and value.size == 1:  # Some files have a scalar as [1].
      value = value.reshape(())
    if value.shape != shape:
      problems.append(
        f"{theirs} gives {value.shape} for {ours}, but the config wants {shape}"
      )
    elif not np.isfinite(value).all():
      kind = "nan" if np.isnan(value).any() else "inf"
      problems.append(f"{theirs} has {kind} among its numbers in float32")
    flat[ours] = value
  known = {theirs for _, theirs, _ in rows}
  problems += [
    f"left over {name}"
    for name in sorted(tensors)
    if name not in known and not ignored.fullmatch(name)
  ]
  if problems:
    # A tensor that holds q, k and v has three rows; report it only once.
    problems = list(dict.fromkeys(problems))
    raise InputError(
      "weights do not match their config, "
      f"{counted(len(problems), 'problem')}: {'; '.join(problems)}"
    )
  return traverse_util.unflatten_dict(flat, sep="/")


def refuse_depth(tensors: Mapping[str, np.ndarray], blocks: int) -> None:
  """Refuses a config with more blocks than a file has tensors.

  Without this check, a model of a million blocks would be traced for hours
  before the missing weights were noticed.

  Raises:
    InputError: if there are more blocks; the message gives both numbers.
  """
  if blocks > len(tensors):
    raise InputError(
      f"weights do not match their config: it wants {blocks:,} blocks, each of "
      f"several tensors, but there are only {len(tensors):,} tensors."
    )


def sha256(path: Path) -> str:
  """Returns the SHA-256 hex digest of a weights file.

  If `path` is the index of several files, it is the `combined_sha256` of these
  files, since they contain all weights.
  """
  if path.name == INDEX:
    names = shard_names(path)
    return combined_sha256({name: sha256(path.parent / name) for name in names})
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, np.ndarray]:
  """Reads all tensors of a `.safetensors`, `.msgpack` or PyTorch file.

  A PyTorch file ends in `.bin`, `.pt` or `.pth`. If all names begin with one of
  `PREFIXES`, it is removed.

  Args:
    path: the file, or the index of several safetensors files.

  Returns:
    The tensors by name, in the types of the file. A bfloat16 tensor has the
    type of ml_dtypes, or is converted to float32 if it is from a PyTorch file.

  Raises:
    InputError: if the file is missing, truncated or not of its format.
  """
  refuse_unreadable(path)
  if path.name == INDEX:
    return _without_prefixes(_sharded(path))
  return _without_prefixes(_read_file(path))


def _read_file(path: Path) -> dict[str, np.ndarray]:
  """Reads one file; the names are those of the file."""
  refuse_unreadable(path)
  read = {".safetensors": _safetensors, ".msgpack": _msgpack}
  with explained(partial(_unreadable, path)):
    return read.get(path.suffix, _torch)(path)


def _without_prefixes(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Removes each of `PREFIXES` that all names begin with."""
  for prefix in PREFIXES:
    if tensors and all(name.startswith(prefix) for name in tensors):
      tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
  return tensors


def _unreadable(path: Path, why: str) -> str:
  """Returns the message about a file that a reader failed on."""
  # Only the first sentence is shown, since torch's message goes on with the
  # advice to load the file with weights_only=False, which may run code in it.
  why = why.split(". ")[0]
  size = os.path.getsize(path)
  return (
    f"{path}: unreadable checkpoint of {size} bytes: {why}. If it was cut off "
    "while downloading, delete it and fetch it again."
  )


def _sharded(index: Path) -> dict[str, np.ndarray]:
  """Reads all files that an index names.

  Raises:
    InputError: if a tensor is not in the file that the index gives for it, or
      is in two files.
  """
  tensors: dict[str, np.ndarray] = {}
  table = weight_map(index)
  for name in shard_names(index):
    shard = _read_file(index.parent / name)
    for tensor in shard:
      if table.get(tensor, name) != name or tensor in tensors:
        contradiction = "and also in another file"
        if tensor in table:
          contradiction = f"but by the index it is in {table[tensor]}"
        raise InputError(
          f"{index}: tensor {tensor!r} is in {name}, {contradiction}. Fetch "
          "the files again."
        )
    tensors |= shard
  absent = [f"{t} ({file})" for t, file in table.items() if t not in tensors]
  if absent:
    lacking = counted(len(absent), "tensor")
    raise InputError(
      f"the files that {index} names lack {lacking}, such as "
      f"{', '.join(absent[:3])}. Fetch the files again."
    )
  return tensors


def _safetensors(path: Path) -> dict[str, np.ndarray]:
  # A type that numpy lacks, such as float8, raises a TypeError or an
  # AttributeError.
  with safe_open(path, "np") as file:
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _msgpack(path: Path) -> dict[str, np.ndarray]:
  """Reads Flax's own format, nested dicts of arrays; it can contain no code."""
  tree = serialization.msgpack_restore(path.read_bytes())
  flat: dict[str, Any] = dict(traverse_util.flatten_dict(tree, sep="."))
  return flat


def _torch(path: Path) -> dict[str, np.ndarray]:
  """Reads a pickle with torch's restricted unpickler, never with another."""
  _refuse_torchscript(path)
  try:
    torch = importlib.import_module("torch")
  except ImportError as error:
    raise InputError(
      f"{path} is a pickle, which only torch's weights_only loader may read, "
      "and torch is not installed: install torch, or give the same weights as "
      "model.safetensors, open_clip_model.safetensors or flax_model.msgpack."
    ) from error
  try:
    state = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:
    foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
    if foreign is None:
      raise
    raise InputError(
      f"{path} holds {foreign[1]}, which is no tensor and may be code that "
      "runs when it is read, so torch's weights_only loader refuses the file. "
      "If you trust it, load it in PyTorch and save its weights alone: "
      "torch.save(model.state_dict(), FILE)."
    ) from error
  for wrapper in WRAPPERS:
    if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
      state = state[wrapper]
      break
  foreign = []
  if isinstance(state, Mapping):
    foreign = [str(x) for x, v in state.items() if not hasattr(v, "numpy")]
  if not isinstance(state, Mapping) or foreign:
    what = f"a {type(state).__name__}"
    if foreign:
      what = f"other things among its tensors, such as {', '.join(foreign[:3])}"
    raise InputError(
      f"{path} holds {what}; it must hold tensors by name, as PyTorch's "
      f"state_dict() gives them, alone or under {' or '.join(WRAPPERS)}."
    )
  return {name: _array(torch, x) for name, x in state.items()}


def _refuse_torchscript(path: Path) -> None:
  """Refuses an archive of `torch.jit.save`, as OpenAI published its CLIPs.

  Its tensors are members of objects that only code in the archive describes.
  """
  if not zipfile.is_zipfile(path):
    return
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
  if any(name.endswith("/constants.pkl") for name in names):
    raise InputError(
      f"{path} is a TorchScript archive, which holds code and is not read. "
      "OpenAI's CLIPs are on the hub in another form, such as "
      "openai/clip-vit-base-patch32; of any other archive that you trust, save "
      "the weights alone: torch.save(torch.jit.load(FILE).state_dict(), NEW)."
    )


def _array(torch, tensor) -> np.ndarray:
  # torch's numpy() does not support bfloat16; float32 holds its values exactly.
  exact = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
  return exact.numpy()
