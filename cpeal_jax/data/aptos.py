"""Reads APTOS 2019 as Kaggle provides it: train.csv and train_images/ID.png."""

import csv
import io
from pathlib import Path

from cpeal_jax.data import catalogue, files, pools
from cpeal_jax.data.reading import read_text
from cpeal_jax.errors import InputError


def load_aptos(
  root: Path | str, *, seed: int = 0, progress: pools.Progress = None
) -> pools.Dataset:
  """Reads the labeled images and cuts them into three splits.

  Kaggle publishes no labels of its test images, so each grade's training
  images are cut 50/20/30 into train, val and test by a hash of (seed, id).
  `train.csv` has the columns `id_code` and `diagnosis`, a grade from 0 to 4.

  Args:
    root: the folder with `train.csv` and `train_images/`.
    seed: the seed of the cut.
    progress: called with the number of further files that were hashed.

  Raises:
    InputError: a file is missing, `train.csv` lacks a column, or a grade is
      not one of the five.
  """
  root = Path(root)
  source = root / "train.csv"
  if not source.exists():
    raise InputError(f"{source} cannot be read; {catalogue.find('aptos').get}")
  table = csv.DictReader(io.StringIO(read_text(source), newline=""))
  try:
    listed = [(row["id_code"], row["diagnosis"] or "") for row in table]
  except csv.Error as error:
    raise InputError(f"{source} is no table: {error}.") from error
  except KeyError as error:
    raise InputError(
      f"{source} has no column {error}; it has id_code and diagnosis"
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
    pools.fill({"train": rows}, seed=seed),
    progress=progress,
  )
