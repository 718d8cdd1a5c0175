"""`python -m cpeal_jax.data.prepare NAME`: prepares a TFDS data set.

Downloads the data set and writes it as array records, which can later be read
without TensorFlow. The preparation itself needs TensorFlow:
`pip install 'cpeal_jax[prepare]'`. It runs in its own process, so that
TensorFlow and JAX are never loaded in the same one.
"""

import argparse
import importlib.util
import os
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterable
from pathlib import Path

from cpeal_jax.data import catalogue
from cpeal_jax.errors import InputError
from cpeal_jax.progress import say

# Names of the data sets that TFDS has.
WITH_TFDS = [name for name, entry in catalogue.CATALOGUE.items() if entry.tfds]


def data_directory(data_dir: str = "") -> Path:
  """Returns TFDS's data directory: `data_dir`, or TFDS's default if empty."""
  path = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  return Path(path).expanduser()


def directory(name: str, data_dir: str = "") -> Path:
  """Returns where the prepared data set is: `DATA_DIR/NAME/CONFIG/VERSION`."""
  tfds_name = catalogue.find(name).tfds
  return data_directory(data_dir) / tfds_name.replace(":", "/")


def is_prepared(folder: Path) -> bool:
  """Returns whether TFDS has finished preparing the data set in `folder`."""
  # TFDS writes these two files last.
  return all(
    (folder / file).is_file() for file in ("dataset_info.json", "features.json")
  )


def ensure(name: str, data_dir: str = "", *, allowed: bool = True) -> Path:
  """Returns the directory of a prepared data set, preparing it if needed.

  Args:
    name: the data set's key in the catalogue.
    data_dir: TFDS's data directory; empty for its default.
    allowed: whether the data set may be prepared now. If not, a data set that
      is not prepared is an error.

  Raises:
    InputError: the data set is not in TFDS, or it is not prepared and cannot be
      prepared now. In the second case the message has the command to run, here
      or on another machine, and the directory to copy from there.
  """
  entry = catalogue.find(name)
  if not entry.tfds:
    raise InputError(
      f"{name} is not in TFDS; set dataset.root to a directory with {entry.get}"
    )
  folder = directory(name, data_dir)
  if is_prepared(folder):
    return folder
  command = _command(name, data_dir)
  manual = f"; first put {entry.manual}" if entry.manual else ""
  advice = (
    f"run `pip install 'cpeal_jax[prepare]'` and `{command}` here, or on a "
    f"machine with network and copy {folder} from there{manual}; or set "
    f"dataset.root to a directory with {entry.get}"
  )
  if importlib.util.find_spec("tensorflow") is None:
    raise InputError(
      f"{name} is not prepared in {folder}, and preparing it needs TensorFlow, "
      f"which is not installed: {advice}"
    )
  if not allowed:
    raise InputError(f"{name} is not prepared in {folder} yet: {advice}")
  say(f"  prepare {name}, once: {command}")
  arguments = [sys.executable, "-m", "cpeal_jax.data.prepare", name]
  arguments += [f"--data_dir={data_dir}"] if data_dir else []
  # A run whose workdir is in a bucket sets EPATH_USE_TF so that epath does
  # without TensorFlow. The preparation must not inherit it, because TFDS reads
  # its own bucket through TensorFlow.
  environment = {k: v for k, v in os.environ.items() if k != "EPATH_USE_TF"}
  # Progress bars go to stderr and so to the terminal. The last line of stdout
  # is the reason of a failure.
  done = subprocess.run(
    arguments, stdout=subprocess.PIPE, text=True, check=False, env=environment
  )
  if done.returncode or not is_prepared(folder):
    reason = (done.stdout.strip().splitlines() or ["no reason given"])[-1]
    raise InputError(f"{name} could not be prepared ({reason}): {advice}")
  return folder


def require_network(urls: Iterable[str]) -> None:
  """Raises OSError if no host in the URLs can be resolved to an address.

  Without a network TFDS would retry each download for minutes.
  """
  hosts = sorted({urllib.parse.urlsplit(url).hostname or "" for url in urls})
  for host in hosts:
    try:
      socket.getaddrinfo(host, None)
      return
    except OSError:
      continue
  if hosts:
    raise OSError(f"no network: {hosts[0]} has no address")


def _command(name: str, data_dir: str) -> str:
  """Returns the command that prepares a data set, for messages."""
  option = f" --data_dir={data_dir}" if data_dir else ""
  return f"python -m cpeal_jax.data.prepare {name}{option}"


def main(argv: list[str]) -> int:
  """Prepares one data set; returns the exit code, 0 or 1."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("name", choices=WITH_TFDS)
  parser.add_argument("--data_dir", default="", help="default: TFDS's own")
  flags = parser.parse_args(argv)
  import tensorflow_datasets as tfds  # Imports TensorFlow; takes seconds.

  entry, data_dir = catalogue.find(flags.name), data_directory(flags.data_dir)
  try:
    builder = tfds.builder(
      entry.tfds, data_dir=data_dir, file_format="array_record"
    )
    if not (data_dir / "downloads").is_dir():
      require_network(builder.url_infos or ())
    builder.download_and_prepare()
  # Downloads, archives and disks raise exceptions of many types.
  except Exception as error:
    first = (str(error).strip().splitlines() or [""])[0]
    say(f"{type(error).__name__}: {first}")
    return 1
  say(f"{flags.name}: {directory(flags.name, flags.data_dir)}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
