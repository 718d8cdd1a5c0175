"""ImageNet as CoOp lays it out: `images/{train,val}/SYNSET/*.JPEG`."""

import collections
from pathlib import Path

from cpeal_jax.data import catalogue, files, pools, scan
from cpeal_jax.data.reading import read_text
from cpeal_jax.errors import InputError


def load_imagenet(
  root: Path | str, *, seed: int = 0, progress: pools.Progress = None
) -> pools.Dataset:
  """ImageNet's validation images are the test split; val is cut from train.

  A fifth of each class's training images, by a hash of (seed, id). CoOp takes
  the validation images as val and as test both; here no image is in two
  splits. Classes are the synsets that have a folder, in their order.

  Class names are the catalogue's, or those of `classnames.txt` (`SYNSET name`
  on each line) where it has one; a name it gives to two synsets is passed
  over, as CoOp's own file has two such.

  Raises:
    InputError: no such layout, or a folder that is no synset of ImageNet.
  """
  root = Path(root)
  found = {}
  for split, folder in (("train", "train"), ("test", "val")):
    where = root / "images" / folder
    found[split] = {
      synset: scan.scan(root, where / synset)
      for synset in scan.subfolders(where)
    }
    if not found[split]:
      raise InputError(
        f"no class folder in {where}; {catalogue.find('imagenet').get}"
      )
  synsets = sorted({synset for listed in found.values() for synset in listed})
  names = catalogue.class_names("imagenet", synsets) | _own_names(root, synsets)
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
    notes=scan.notes(each for x in found.values() for each in x.values()),
  )


def _own_names(root: Path, synsets: list[str]) -> dict[str, str]:
  source = root / "classnames.txt"
  if not source.exists():
    return {}
  pairs = (line.split(" ", 1) for line in read_text(source).splitlines())
  names = {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}
  times = collections.Counter(names.values())
  return {s: names[s] for s in synsets if s in names and times[names[s]] == 1}
