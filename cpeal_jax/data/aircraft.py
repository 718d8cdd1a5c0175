"""FGVC Aircraft as it is published: lists of images, and their variants."""

from pathlib import Path

from cpeal_jax.data import files, pools
from cpeal_jax.data.reading import read_text
from cpeal_jax.errors import InputError


def load_aircraft(
  root: Path | str, *, progress: pools.Progress = None
) -> pools.Dataset:
  """Reads `variants.txt` and `images_variant_{train,val,test}.txt`.

  These are the splits of the papers. A list's line is an image's number and
  its variant; the image is `images/NUMBER.jpg`. Classes are in the order of
  `variants.txt`.

  Raises:
    InputError: a missing file, or a variant that `variants.txt` doesn't have.
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
  if not path.exists():
    raise InputError(
      f"{path} cannot be read; fgvc-aircraft-2013b.tar.gz has it in data/"
    )
  lines = read_text(path).splitlines()
  return [line for line in lines if line.strip()]
