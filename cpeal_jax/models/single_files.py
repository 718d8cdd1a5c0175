"""Finds a single file of weights, and a tokenizer that is not beside it.

A bare checkpoint, as OpenCLIP and those who train with it publish it, is one
file such as `RemoteCLIP-ViT-B-32.pt`, with neither a config nor a tokenizer.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from cpeal_jax.errors import InputError, reason
from cpeal_jax.models import connection
from cpeal_jax.models.hub import SINGLE_FILES
from cpeal_jax.models.shards import INDEX, shard_names
from cpeal_jax.models.tokenizer import TOKENIZER_FILES

# Of several files, these are taken, in this order.
PREFERRED = (
  INDEX,
  "open_clip_model.safetensors",
  "open_clip_pytorch_model.bin",
)


def weights_file(source: str) -> Path:
  """Finds a file of weights, and downloads it if it is on the hub.

  Args:
    source: a file; or a directory or hub id with exactly one file of weights;
      or a file on the hub, OWNER/NAME/FILE.

  Raises:
    InputError: there is no such file, or there are several.
  """
  path = Path(source).expanduser()
  if os.path.isdir(path):
    return path / _only(os.listdir(path), source)
  if os.path.lexists(path):
    return path
  if path.is_absolute() or source.startswith((".", "~")) or "/" not in source:
    raise InputError(
      f"model.weights: there is no file or directory {source}. Of the hub, "
      "give OWNER/NAME or OWNER/NAME/FILE."
    )
  owner, name, *inner = source.split("/")
  return _from_hub(f"{owner}/{name}", "/".join(inner))


def _only(names: Iterable[str], source: str) -> str:
  """Returns the one file of weights, or the one of several in `PREFERRED`."""
  found = sorted(
    name for name in names if name.endswith(SINGLE_FILES) or name == INDEX
  )
  for name in PREFERRED:
    if name in found:
      return name
  if len(found) == 1:
    return found[0]
  if not found:
    raise InputError(
      f"model.weights: {source} has no file of weights, whose name ends in "
      f"{', '.join(SINGLE_FILES)}."
    )
  raise InputError(
    f"model.weights: {source} has several files of weights, "
    f"{', '.join(found[:5])}: name one of them, such as "
    f"--config.model.weights={source.rstrip('/')}/{found[0]}."
  )


def _from_hub(repository: str, inner: str) -> Path:
  """Downloads a file, or takes it from the hub's cache without a network.

  Args:
    repository: a hub id.
    inner: the file's path in the repository; empty for its only file.
  """
  import huggingface_hub  # Slow to import, and not needed for local weights.

  def fetch(name: str, offline: bool) -> Path:
    return Path(
      huggingface_hub.hf_hub_download(
        repository, name, local_files_only=offline
      )
    )

  why = _offline()
  try:
    with connection.quiet():
      if not inner:
        inner = _only(_names(repository, bool(why)), repository)
      path = fetch(inner, bool(why))
      if path.name == INDEX:
        folder = inner.removesuffix(INDEX)
        for shard in shard_names(path):
          fetch(folder + shard, bool(why))
      return path
  except InputError:
    raise
  except Exception as error:
    raise InputError(
      f"model.weights: {'/'.join(filter(None, (repository, inner)))} is no "
      f"file here, and the hub did not provide it ({why or reason(error)}). "
      "Download it on a machine with network access, and give the file: "
      "--config.model.weights=FILE."
    ) from error


def _names(repository: str, offline: bool) -> list[str]:
  """Returns the names of a repository's files, or of those in the cache."""
  import huggingface_hub

  if not offline:
    return huggingface_hub.HfApi().list_repo_files(repository)
  copy = Path(
    huggingface_hub.snapshot_download(repository, local_files_only=True)
  )
  files = (path for path in copy.rglob("*") if path.is_file())
  return [path.relative_to(copy).as_posix() for path in files]


def _offline() -> str:
  """Returns why the hub cannot be asked; empty if it can."""
  from huggingface_hub import constants

  if constants.HF_HUB_OFFLINE:
    return "HF_HUB_OFFLINE is set"
  return connection.problem(constants.ENDPOINT)


def tokenizer_directory(source: str) -> Path:
  """Finds a directory with a tokenizer, and downloads it if it is on the hub.

  Args:
    source: a directory or a hub id.

  Raises:
    InputError: there is neither.
  """
  path = Path(source).expanduser()
  if os.path.isdir(path):
    return path
  import huggingface_hub

  why = _offline()
  try:
    with connection.quiet():
      return Path(
        huggingface_hub.snapshot_download(
          source,
          allow_patterns=["config.json", *TOKENIZER_FILES],
          local_files_only=bool(why),
        )
      )
  except Exception as error:
    raise InputError(
      f"model.tokenizer={source!r} is no directory, and the hub did not "
      f"provide it ({why or reason(error)}). Give a directory with "
      "tokenizer.json, or with vocab.json and merges.txt."
    ) from error
