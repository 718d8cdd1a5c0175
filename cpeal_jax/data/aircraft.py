"""Reads FGVC Aircraft from its published lists of images and variants."""

import os
from pathlib import Path

from cpeal_jax.data import files, pools
from cpeal_jax.data.reading import read_text
from cpeal_jax.errors import InputError


def load_aircraft(
  root: Path | str, *, progress: pools.Progress = None
) -> pools.Dataset:
  """Reads the data set from the folder `data/` of its archive.

  The lists `images_variant_{train,val,test}.txt` are the splits of the papers.
  Each line has the number of an image, whose file is `images/NUMBER.jpg`, and
  the name of its variant. The classes are the variants, in the order of
  `variants.txt`.

  Args:
    root: that folder, which holds `variants.txt`.
    progress: called with the number of files hashed since the last call.

  Raises:
    InputError: a file is missing, or a list names a variant that is not in
      `variants.txt`.
  """
  root = Path(root)
  classes = [line.strip() for line in _lines(root / "variants.txt")]
  number = {name: i for i, name in enumerate(classes)}
  rows = {}
  for split in ("train", "val", "test"):
    source = root / f"images_variant_{split}.txt"
    rows[split] = []
    for line in _lines(source):
      image, _, variant = line.strip().partition(" ")
      if variant not in number:
        raise InputError(
          f"{source}: {variant!r} is no line of {root / 'variants.txt'}"
        )
      rows[split].append((f"images/{image}.jpg", number[variant]))
    files.check_present(root, [id_ for id_, _ in rows[split]], source)
  return files.from_files(
    "fgvc_aircraft", classes, root, rows, progress=progress
  )


def _lines(path: Path) -> list[str]:
  """The lines of a text file that are not blank."""
  if not os.path.exists(path):
    raise InputError(
      f"{path} cannot be read; fgvc-aircraft-2013b.tar.gz has it in data/"
    )
  lines = read_text(path).splitlines()
  return [line for line in lines if line.strip()]
