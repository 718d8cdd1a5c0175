"""Loads ImageNet in CoOp's layout: `images/{train,val}/SYNSET/*.JPEG`."""

import collections
from pathlib import Path

from cpeal_jax.data import catalogue, files, folders, pools
from cpeal_jax.errors import InputError


def load_imagenet(
  root: Path | str, *, seed: int = 0, progress: pools.Progress = None
) -> pools.Dataset:
  """Reads ImageNet; its validation images become the test split.

  The val split is a fifth of each class's training images, by a hash of (seed,
  id). CoOp uses the validation images both as val and as test; here no image
  is in two splits. The classes are the synsets that have a folder, sorted.

  Class names come from `root/classnames.txt` if it exists, which has a synset
  and a name on each line, and otherwise from the catalogue. A name that
  `classnames.txt` gives to two synsets, as CoOp's file does twice, is ignored,
  and the catalogue's is used.

  Args:
    root: the data root; ids are paths relative to it.
    seed: seed of the cut.
    progress: called with the number of files hashed since the last call.

  Raises:
    InputError: the layout is another one, or a folder is not named after a
      synset of ImageNet.
  """
  root = Path(root)
  # Split -> synset -> ids of its images.
  ids_of = {}
  for split, subfolder in (("train", "train"), ("test", "val")):
    folder = root / "images" / subfolder
    ids_of[split] = {
      synset: folders.images_below(root, folder / synset)
      for synset in folders.subfolders(folder)
    }
    if not ids_of[split]:
      raise InputError(
        f"no class folder in {folder}; {catalogue.find('imagenet').get}"
      )
  synsets = sorted({s for by_synset in ids_of.values() for s in by_synset})
  names = catalogue.class_names("imagenet", synsets) | _listed_names(
    root, synsets
  )
  rows = {
    split: [
      (id_, label)
      for label, synset in enumerate(synsets)
      for id_ in by_synset.get(synset, ())
    ]
    for split, by_synset in ids_of.items()
  }
  return files.from_files(
    "imagenet",
    [names[synset] for synset in synsets],
    root,
    pools.cut_missing_splits(rows, seed=seed),
    progress=progress,
  )


def _listed_names(root: Path, synsets: list[str]) -> dict[str, str]:
  """Reads the names of `synsets` that `classnames.txt` gives to no other."""
  source = root / "classnames.txt"
  if not source.is_file():
    return {}
  pairs = (line.split(" ", 1) for line in source.read_text().splitlines())
  names = {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}
  counts = collections.Counter(names.values())
  return {s: names[s] for s in synsets if s in names and counts[names[s]] == 1}
