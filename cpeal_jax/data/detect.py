"""Finds out how the files of one's own data are laid out."""

import os
from pathlib import Path

from cpeal_jax.data import (
  class_names,
  fiftyone,
  huggingface,
  lists,
  manifest,
  scan,
)
from cpeal_jax.data.folders import UNLABELED, split_named
from cpeal_jax.errors import InputError


def detect(
  root: Path | str, *, split_file: str = "", names_file: str = ""
) -> tuple[str, str]:
  """Returns the layout of the files in a folder, and the reason in words.

  The first of these that fits: CoOp's split file; what `save_to_disk` of
  Hugging Face's `datasets` writes; FiftyOne's `labels.json`; a list of images;
  class folders; a folder of images without labels.

  A folder is a class folder if it is named like a class in the file of class
  names, or lies beside a folder `unlabeled`. Without a file of class names any
  folder is one, since nothing else would name the classes.

  Args:
    root: the data root.
    split_file: the setting `dataset.split_file`; may be empty.
    names_file: the setting `dataset.class_names`; may be empty.

  Raises:
    InputError: the root is no folder, or may not be read.
  """
  root = Path(root)
  if not os.path.isdir(root):
    what = "is not a folder" if os.path.exists(root) else "does not exist"
    raise InputError(
      f"data root {root} {what}; give the folder of your images with "
      "--config.dataset.root=DIR"
    )
  if split_file:
    is_list = Path(split_file).suffix.lower() in lists.SUFFIXES
    layout = "manifest" if is_list else "coop"
    return layout, f"dataset.split_file is {split_file}"
  if splits := sorted(root.glob("split_zhou_*.json")):
    return "coop", f"{splits[0].name} lies there"
  if huggingface.is_saved(root):
    return "huggingface", "save_to_disk of Hugging Face's datasets wrote it"
  if found := fiftyone.find_folders(root):
    shown = (found[0] / fiftyone.LABELS).relative_to(root).as_posix()
    return "fiftyone", f"{shown} lies beside a folder {fiftyone.DATA}"
  if found := manifest.find_lists(root):
    return "manifest", f"{found[0].relative_to(root).as_posix()} lists images"
  return _folders_or_images(root, names_file)


def _folders_or_images(root: Path, names_file: str) -> tuple[str, str]:
  names = scan.subfolders(root)
  inside = {
    name: scan.subfolders(root / name) if split_named(name) else []
    for name in names
  }
  folders = [c for name in names for c in inside[name] or [name]]
  labeled = [name for name in folders if name.lower() not in UNLABELED]
  if not labeled:
    return "images", "there are no class folders"
  if len(labeled) < len(folders):
    apart = next(name for name in folders if name not in labeled)
    return "folders", f"folders lie beside the folder {apart}"
  if not names_file:
    return "folders", "there are folders, and dataset.class_names is not set"
  known = class_names.read_class_names(names_file)
  if matched := [*class_names.match(labeled, known)]:
    return "folders", f"the folder {matched[0]} is named like a class"
  return "images", f"no folder is named like a class in {names_file}"
