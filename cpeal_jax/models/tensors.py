"""Tensors out of a checkpoint's file and into a tree, by a table of names.

Nothing is unpickled here.
"""

import hashlib
import importlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization, traverse_util
from safetensors import SafetensorError, safe_open

from cpeal_jax.errors import InputError

# (our path, its tensor in the file, how to turn one into the other).
Turn = Callable[[np.ndarray], np.ndarray]
Row = tuple[str, str, Turn]


def same(x: np.ndarray) -> np.ndarray:
  """As it is in the file."""
  return x


def transpose(x: np.ndarray) -> np.ndarray:
  """PyTorch's [out, in] to a kernel [in, out]."""
  return x.T


def convolution(x: np.ndarray) -> np.ndarray:
  """PyTorch's [O, I, h, w] to [h, w, I, O]."""
  return x.transpose(2, 3, 1, 0)


def patches(x: np.ndarray) -> np.ndarray:
  """Convolution [W, 3, p, p] to a matrix over flattened patches."""
  return convolution(x).reshape(-1, x.shape[0])


def fill(
  tensors: Mapping[str, np.ndarray],
  tree: Mapping,
  rows: tuple[Row, ...],
  *,
  ignored: re.Pattern[str],
) -> dict:
  """A tree of float32 weights, shaped as `tree`, by a table of names.

  Raises:
    InputError: listing every missing, left-over and mis-shaped tensor.
  """
  expected: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
  if {ours for ours, _, _ in rows} != set(expected):
    raise ValueError("key_table and the model disagree: a leaf has no row")
  problems, flat = [], {}
  for ours, theirs, turn in rows:
    if theirs not in tensors:
      problems.append(f"missing {theirs}")
      continue
    raw, shape = np.asarray(tensors[theirs]), expected[ours].shape
    try:
      value = turn(raw.astype(np.float32))
    except (TypeError, ValueError, IndexError):  # Too few axes, or no numbers.
      value = raw
    if value.shape != shape:
      problems.append(
        f"{theirs} gives {value.shape} for {ours}, the config wants {shape}"
      )
    flat[ours] = value
  known = {theirs for _, theirs, _ in rows}
  problems += [
    f"left over {name}"
    for name in sorted(tensors)
    if name not in known and not ignored.fullmatch(name)
  ]
  if problems:
    # A fused tensor that is missing is one problem, not three.
    problems = list(dict.fromkeys(problems))
    raise InputError(
      f"weights do not match their config, {len(problems)} problems: "
      + "; ".join(problems)
    )
  return traverse_util.unflatten_dict(flat, sep="/")


def sha256(path: Path) -> str:
  """Hex digest of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, np.ndarray]:
  """All tensors of a `.safetensors`, `.msgpack` or PyTorch `.bin` file.

  In the file's own types; bfloat16 is ml_dtypes', or float32 out of a `.bin`.

  Raises:
    InputError: missing, truncated or foreign.
  """
  if not path.is_file():
    raise InputError(f"there is no file {path}.")
  read = {".safetensors": _safetensors, ".msgpack": _msgpack, ".bin": _torch}
  return read[path.suffix](path)


def _unreadable(path: Path, error: Exception) -> InputError:
  reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
  # Torch goes on to advise loading the file without its safeguard.
  reason = reason.split(". ")[0]
  size = os.path.getsize(path)
  return InputError(
    f"{path}: unreadable checkpoint of {size} bytes: {reason}. If it was cut "
    "off while downloading, delete it and fetch it again."
  )


def _safetensors(path: Path) -> dict[str, np.ndarray]:
  try:
    with safe_open(path, "np") as file:
      return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except (SafetensorError, TypeError, AttributeError) as error:
    # The last two: a type that numpy has no name for, such as float8.
    raise _unreadable(path, error) from error


def _msgpack(path: Path) -> dict[str, np.ndarray]:
  """Flax's own format: nested dicts of arrays, no code."""
  try:
    tree = serialization.msgpack_restore(path.read_bytes())
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(tree, sep="."))
    return flat
  except Exception as error:
    # Bad bytes surface as any of msgpack's, numpy's or flax's exceptions.
    raise _unreadable(path, error) from error


def _torch(path: Path) -> dict[str, np.ndarray]:
  """A pickle, so through torch's restricted unpickler or not at all."""
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
    return {name: _array(torch, x) for name, x in state.items()}
  except Exception as error:
    # Whatever the unpickler refuses: UnpicklingError, RuntimeError, EOFError.
    raise _unreadable(path, error) from error


def _array(torch, tensor) -> np.ndarray:
  # numpy() knows no bfloat16; float32 holds each of its values.
  exact = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
  return exact.numpy()
