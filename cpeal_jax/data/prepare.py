"""`python -m cpeal_jax.data.prepare NAME`: makes a TFDS set readable here.

Downloads the set and writes it as array records, which are read without
TensorFlow. This step needs it: `pip install 'cpeal_jax[prepare]'`. It is a
process of its own, so that TensorFlow never shares one with JAX.
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

WITH_TFDS = [name for name, entry in catalogue.CATALOGUE.items() if entry.tfds]


def data_directory(data_dir: str = "") -> Path:
  """`data_dir`, else TFDS's own default."""
  given = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  return Path(given).expanduser()


def directory(name: str, data_dir: str = "") -> Path:
  """Where the prepared set is: `DATA_DIR/NAME/CONFIG/VERSION`."""
  tfds_name = catalogue.find(name).tfds
  return data_directory(data_dir) / tfds_name.replace(":", "/")


def is_prepared(folder: Path) -> bool:
  """Whether TFDS finished there; it writes these two files last."""
  return all(
    (folder / file).is_file() for file in ("dataset_info.json", "features.json")
  )


def ensure(name: str, data_dir: str = "", *, allowed: bool = True) -> Path:
  """The directory of the prepared set; prepares it where that is possible.

  Args:
    name: the catalogue's key.
    data_dir: TFDS's data directory; empty: its default.
    allowed: whether it may be prepared now.

  Raises:
    InputError: with the command to run here or elsewhere, and what to copy; or
      the set is not in TFDS.
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
  own = [sys.executable, "-m", "cpeal_jax.data.prepare", name]
  own += [f"--data_dir={data_dir}"] if data_dir else []
  # There TFDS asks its own bucket, through TensorFlow; a run whose workdir is
  # in a bucket has told epath not to.
  environment = {k: v for k, v in os.environ.items() if k != "EPATH_USE_TF"}
  # Its progress bars go to the terminal; the reason of a failure is the last
  # line of its output.
  done = subprocess.run(
    own, stdout=subprocess.PIPE, text=True, check=False, env=environment
  )
  if done.returncode or not is_prepared(folder):
    reason = (done.stdout.strip().splitlines() or ["no reason given"])[-1]
    raise InputError(f"{name} could not be prepared ({reason}): {advice}")
  return folder


def require_network(urls: Iterable[str]) -> None:
  """OSError where no host of the URLs has an address.

  TFDS would try each download again for minutes.
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
  where = f" --data_dir={data_dir}" if data_dir else ""
  return f"python -m cpeal_jax.data.prepare {name}{where}"


def main(argv: list[str]) -> int:
  """Prepares one set; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("name", choices=WITH_TFDS)
  parser.add_argument("--data_dir", default="", help="default: TFDS's own")
  given = parser.parse_args(argv)
  import tensorflow_datasets as tfds  # seconds, and TensorFlow with it

  entry, where = catalogue.find(given.name), data_directory(given.data_dir)
  try:
    builder = tfds.builder(
      entry.tfds, data_dir=where, file_format="array_record"
    )
    if not (where / "downloads").is_dir():
      require_network(builder.url_infos or ())
    builder.download_and_prepare()
  except Exception as error:  # whatever a download, an archive or a disk raises
    first = (str(error).strip().splitlines() or [""])[0]
    say(f"{type(error).__name__}: {first}")
    return 1
  say(f"{given.name}: {directory(given.name, given.data_dir)}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
