"""Loads FGVC Aircraft as published: image lists with a variant per image."""

from pathlib import Path

from cpeal_jax.data import files, pools
from cpeal_jax.errors import InputError


def load_aircraft(
  root: Path | str, *, progress: pools.Progress = None
) -> pools.Dataset:
  """Reads the images that `images_variant_{train,val,test}.txt` list.

  These lists are the splits that the papers use. Each line has the number of
  an image, a space and the image's variant; the image is `images/NUMBER.jpg`.
  The classes are the lines of `variants.txt`, in that order.

  Args:
    root: the data root; ids are paths relative to it.
    progress: called with the number of files hashed since the last call.

  Raises:
    InputError: a file is missing, or a list has a variant that `variants.txt`
      lacks.
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
  """Reads the lines of a text file that are not blank."""
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(
      f"{path} cannot be read; fgvc-aircraft-2013b.tar.gz has it in data/"
    ) from error
  return [line for line in lines if line.strip()]
