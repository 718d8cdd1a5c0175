"""Reads ImageNet in CoOp's layout: `images/{train,val}/SYNSET/*.JPEG`."""

import collections
import os
from pathlib import Path

from cpeal_jax.data import catalogue, files, pools, scan
from cpeal_jax.data.reading import read_text
from cpeal_jax.errors import InputError


def load_imagenet(
  root: Path | str, *, seed: int = 0, progress: pools.Progress = None
) -> pools.Dataset:
  """Reads the data set; ImageNet's validation images are the test split.

  The validation split is a fifth of each class's training images, chosen by a
  hash of (seed, id). CoOp uses ImageNet's validation images both as val and as
  test; here no image is in two splits. The classes are the synsets that have a
  folder, in alphabetical order.

  Class names are the catalogue's, unless the file `classnames.txt` in the root,
  with `SYNSET name` on each line, has another name for a synset. A name that
  the file gives to two synsets is ignored; CoOp's file has two such names.

  Args:
    root: the folder that holds `images/`.
    seed: the seed of the hash.
    progress: called with the number of files hashed since the last call.

  Raises:
    InputError: `images/train` or `images/val` has no class folder, or the name
      of such a folder is not a synset of ImageNet.
  """
  root = Path(root)
  found = {}
  for split, folder in (("train", "train"), ("test", "val")):
    images = root / "images" / folder
    found[split] = {
      synset: scan.scan(root, images / synset)
      for synset in scan.subfolders(images)
    }
    if not found[split]:
      raise InputError(
        f"no class folder in {images}; {catalogue.find('imagenet').get}"
      )
  synsets = sorted({synset for listed in found.values() for synset in listed})
  names = catalogue.class_names("imagenet", synsets)
  names |= _names_from_file(root, synsets)
  rows = {
    split: [
      (id_, label)
      for label, synset in enumerate(synsets)
      if synset in listed
      for id_ in listed[synset].images
    ]
    for split, listed in found.items()
  }
  return files.from_files(
    "imagenet",
    [names[synset] for synset in synsets],
    root,
    pools.cut_missing_splits(rows, seed=seed),
    progress=progress,
    notes=scan.notes(
      each for listed in found.values() for each in listed.values()
    ),
  )


def _names_from_file(root: Path, synsets: list[str]) -> dict[str, str]:
  """The class names in `classnames.txt` that are unique, by synset."""
  source = root / "classnames.txt"
  if not os.path.exists(source):
    return {}
  pairs = (line.split(" ", 1) for line in read_text(source).splitlines())
  names = {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}
  times = collections.Counter(names.values())
  return {s: names[s] for s in synsets if s in names and times[names[s]] == 1}
