"""Measures the start on one folder of many small images without labels.

  python benchmarks/speed/scan_folder.py --images=20000,200000

Each row is a process that reads the data set as `--config=own_images` does:
it lists the folder, and reads every file once for its digest and its form. No
image is decoded. `from the disk`: the files' bytes have been dropped from the
page cache (`posix_fadvise`). `memory` is the peak of the process beyond what it
had before, by image too. The folder is removed at the end.

The images are JPEGs of 64 x 64 pixels: 500 different ones, each repeated with
other bytes behind its end, so that no two files are equal.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

DIFFERENT, SIDE = 500, 64


def make(folder: Path, count: int) -> int:
  """Fills the folder up to `count` images; returns the bytes of all files."""
  folder.mkdir(exist_ok=True)
  rng = np.random.default_rng(0)
  pictures = []
  for _ in range(DIFFERENT):
    coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(coarse).resize((SIDE, SIDE))
    image.save(file, "JPEG", quality=90)
    pictures.append(file.getvalue())
  total = 0
  for i in range(count):
    data = pictures[i % DIFFERENT] + i.to_bytes(4, "big")
    total += len(data)
    path = folder / f"{i:07}.jpg"
    if not path.exists():
      path.write_bytes(data)
  os.sync()
  return total


def forget(folder: Path) -> None:
  """Drops the bytes of the files from the page cache."""
  for entry in os.scandir(folder):
    file = os.open(entry.path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def peak() -> float:
  """Returns the most memory that this process has had, in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def read(folder: str, names: str) -> dict[str, float]:
  """Reads the data set; returns the seconds and the memory in MiB."""
  from cpeal_jax.config import load
  from cpeal_jax.run import datasets

  words = [
    f"--config.dataset.root={folder}",
    f"--config.dataset.class_names={names}",
  ]
  config = load.load("own_images", words)
  before, start = peak(), time.perf_counter()
  data = datasets.load_dataset(config)
  seconds = time.perf_counter() - start
  return {
    "images": len(data.train),
    "seconds": seconds,
    "memory": peak() - before,
  }


def main() -> int:
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--images", default="20000,200000")
  flags.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
  own = flags.parse_args()
  if own.one:
    print(json.dumps(read(*own.one)))
    return 0
  print("| images | MiB | files | s | memory, MiB | bytes an image |")
  print("|---|---|---|---|---|---|", flush=True)
  with tempfile.TemporaryDirectory() as root:
    folder, names = Path(root) / "photos", Path(root) / "classes.txt"
    names.write_text("cat\ndog\n")
    for count in map(int, own.images.split(",")):
      total = make(folder, count)
      for state in ("from the disk", "in memory", "in memory"):
        if state == "from the disk":
          forget(folder)
        command = [sys.executable, __file__, "--one", str(folder), str(names)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        assert row["images"] == count
        cells = (
          *(f"{count:,}", f"{total / 2**20:.0f}", state),
          *(f"{row['seconds']:.1f}", f"{row['memory']:.0f}"),
          f"{row['memory'] * 2**20 / count:.0f}",
        )
        print("| " + " | ".join(cells) + " |", flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
