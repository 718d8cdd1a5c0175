"""Starts from what people bring, and compares what must not make a difference.

  python experiments/own_inputs.py --tiles=DIR/eurosat --weights=CLIP \
    --out=runs/own_inputs

A script labels 2,000 tiles for three rounds by filling in to_label.csv, and on
the labeling page. None of the starts has a validation or a test split:

  folders  200 tiles in folders named after their classes, 1,800 in `unlabeled`
  list     the same files, whose 200 labels are read from a CSV instead
  page     as `folders`, but labeled on the page
  png      all tiles in one folder, as PNG files without a label
  formats  the same pixels in ten formats, of which none loses anything

`list` and `page` must choose what `folders` does, byte for byte in
selection.csv, and `formats` must choose the tiles that `png` does. After each,
`cpeal predict` has to say something of every tile.
"""

import argparse
import csv
import shutil
import subprocess
import sys
import time
from pathlib import Path

import three_ways
from PIL import Image
from three_ways import ROOT, ROUNDS, TILES, Truth

FOR_EACH_CLASS = 20
# None of these changes a pixel, as Pillow writes them with these options.
FORMATS = {
  "png": {},
  "bmp": {},
  "tif": {"compression": "tiff_lzw"},
  "webp": {"lossless": True},
  "ppm": {},
  "tga": {},
  "jp2": {},
  "pcx": {},
  "sgi": {},
  "qoi": {},
}


def in_folders(options: argparse.Namespace, truth: Truth) -> Truth:
  """Sorts the first tiles of each class into a folder named after it."""
  photos, root = options.out / "photos", options.out / "data" / "folders"
  left = dict.fromkeys(truth.values(), FOR_EACH_CLASS)
  moved = {}
  for name, label in sorted(truth.items()):
    left[label] -= 1
    folder = label if left[label] >= 0 else "unlabeled"
    (root / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(photos / name, root / folder / name)
    moved[f"{folder}/{name}"] = label
  return moved


def listed(options: argparse.Namespace, truth: Truth) -> list[str]:
  """Writes the labels into a list; returns the settings that read it."""
  path = options.out / "list.csv"
  with open(path, "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(("path", "label"))
    for name, label in truth.items():
      table.writerow((name, "" if name.startswith("unlabeled/") else label))
  return [
    "--config.dataset.layout=manifest",
    f"--config.dataset.split_file={path}",
  ]


def written(options: argparse.Namespace, truth: Truth, folder: str) -> Truth:
  """Writes the tiles as files of one format or of all; returns the classes."""
  root, names = options.out / "data" / folder, {}
  formats = [*FORMATS] if folder == "formats" else ["png"]
  root.mkdir(parents=True)
  for number, (name, label) in enumerate(sorted(truth.items())):
    suffix = formats[number % len(formats)]
    path = root / f"{Path(name).stem}.{suffix}"
    with Image.open(options.out / "photos" / name) as image:
      pixels = image.convert("RGB")
    pixels.save(path, **FORMATS[suffix])
    with Image.open(path) as again:
      assert again.convert("RGB").tobytes() == pixels.tobytes(), path
    names[path.name] = label
  return names


def start(options: argparse.Namespace, name: str, truth: Truth) -> None:
  """Plays one start to its end."""
  folder = name if name in ("png", "formats") else "folders"
  root = options.out / "data" / folder
  if folder != "folders":
    truth = written(options, truth, folder)
  elif name == "folders":
    truth = in_folders(options, truth)
  else:
    paths = sorted(root.rglob("*.*"))
    truth = {str(path.relative_to(root)): truth[path.name] for path in paths}
  more = listed(options, truth) if name == "list" else []
  # Which tile is an audit follows from its name, and so from its format.
  if folder != "folders":
    more.append("--config.oracle.audit=0")
  more.append(f"--config.dataset.root={root}")
  if name == "page":
    three_ways.page(options, truth, *more)
  else:
    three_ways.files(options, truth, name, *more)
  predict = [sys.executable, "-m", "cpeal_jax.predict", str(options.out / name)]
  subprocess.run(predict, cwd=ROOT, check=True)
  with open(options.out / name / "predictions.csv") as file:
    rows = {row["id"]: row for row in csv.DictReader(file)}
  assert rows.keys() == truth.keys()
  assert len(rows) == TILES
  right = sum(row["class"] == truth[id_] for id_, row in rows.items())
  by_person = sum(row["source"] == "label" for row in rows.values())
  print(f"== {name}: {by_person} labels, {right / TILES:.1%} right", flush=True)


def chosen(options: argparse.Namespace, name: str) -> list[str]:
  """The selections of all rounds; of `png` and `formats` the names alone."""
  paths = sorted((options.out / name).glob("rounds/*/selection.csv"))
  assert len(paths) == ROUNDS
  if name not in ("png", "formats"):
    return [path.read_text() for path in paths]
  names = []
  for path in paths:
    with open(path) as file:
      names += [Path(row["id"]).stem for row in csv.DictReader(file)]
  return names


# What each start must choose as well.
AS: dict[str, str] = {
  "folders": "folders",
  "list": "folders",
  "page": "folders",
  "png": "png",
  "formats": "png",
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--tiles", type=Path, required=True)
  parser.add_argument("--weights", required=True)
  parser.add_argument("--out", type=Path, required=True)
  options = parser.parse_args()
  options.out = options.out.absolute()
  truth = three_ways.photos(options.tiles, options.out)
  for name, other in AS.items():
    begun = time.monotonic()
    start(options, name, truth)
    same = chosen(options, name) == chosen(options, other)
    said = "the same selections" if same else "OTHER SELECTIONS"
    seconds = time.monotonic() - begun
    print(f"== {name}: {said} as {other}, {seconds:.0f} s", flush=True)
    if not same:
      sys.exit(1)


if __name__ == "__main__":
  main()
