"""Reads a folder of images without labels, flat or nested: the pool alone."""

import os
from pathlib import Path

from cpeal_jax.data import files, pools, scan
from cpeal_jax.errors import InputError


def load_unlabeled(
  root: Path | str,
  classes: tuple[str, ...],
  *,
  name: str | None = None,
  progress: pools.Progress = None,
) -> pools.Dataset:
  """Reads all images in a folder and below it; none has a label.

  They all are the pool. There is no validation and no test split, since nothing
  can be measured on an image without a label.

  Args:
    root: the data root; ids are paths relative to it.
    classes: the class names, which nothing in the folder tells.
    name: the data set's name; by default the name of the root folder.
    progress: called with the number of files hashed since the last call.

  Raises:
    InputError: there is no image, or a folder or file may not be read.
  """
  root = Path(root)
  if not os.path.isdir(root):
    raise InputError(
      f"data root {root} does not exist; give a folder of images"
    )
  found = scan.scan(root, root)
  if not found.images:
    passed_over = "; ".join(scan.notes([found])) or "it is empty"
    raise InputError(
      f"there is no image that can be read in {root} ({passed_over})"
    )
  return files.from_files(
    name or root.resolve().name,
    classes,
    root,
    {"train": [(id_, -1) for id_ in found.images], "val": [], "test": []},
    progress=progress,
    notes=scan.notes([found]),
  )
