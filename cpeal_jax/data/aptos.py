"""Loads APTOS 2019 as Kaggle has it: `train.csv`, `train_images/ID.png`."""

import csv
import io
import os
from pathlib import Path

from cpeal_jax.data import catalogue, files, pools
from cpeal_jax.data.reading import read_text
from cpeal_jax.errors import InputError


def load_aptos(
  root: Path | str, *, seed: int = 0, progress: pools.Progress = None
) -> pools.Dataset:
  """Reads Kaggle's training images; splits each grade's images 50/20/30.

  All three splits are cut from the training images, by a hash of (seed, id),
  because Kaggle has not published the labels of its test images. `train.csv`
  has the columns `id_code` and `diagnosis`, a grade from 0 to 4.

  Args:
    root: the data root; ids are paths relative to it.
    seed: the seed of the hash.
    progress: called with the number of files hashed since the last call.

  Raises:
    InputError: a file or a column is missing, or a grade is not 0 to 4.
  """
  root = Path(root)
  source = root / "train.csv"
  if not os.path.exists(source):
    raise InputError(f"{source} cannot be read; {catalogue.find('aptos').get}")
  table = csv.DictReader(io.StringIO(read_text(source), newline=""))
  try:
    listed = [(row["id_code"], row["diagnosis"] or "") for row in table]
  except csv.Error as error:
    raise InputError(f"{source} is not a CSV table: {error}.") from error
  except KeyError as error:
    raise InputError(
      f"{source} has no column {error}; it must have id_code and diagnosis"
    ) from error
  names = catalogue.class_names("aptos", dict.fromkeys(g for _, g in listed))
  classes = catalogue.classes("aptos")
  rows = [
    (f"train_images/{code}.png", classes.index(names[grade]))
    for code, grade in listed
  ]
  files.check_present(root, [id_ for id_, _ in rows], source)
  return files.from_files(
    "aptos",
    classes,
    root,
    pools.cut_missing_splits({"train": rows}, seed=seed),
    progress=progress,
  )
