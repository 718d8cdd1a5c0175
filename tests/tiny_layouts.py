"""A few images in each published layout of files."""

import json

from tiny_tfds import png

SYNSETS = ("n01440764", "n02012849", "n03773504", "n04008634")


def write(path, seed):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(png(seed))


def aircraft(root, images=4):
  """Four variants, listed in an order of their own."""
  variants = ("A320", "707-320", "F-16A/B", "DC-10")
  number = 0
  for split in ("train", "val", "test"):
    lines = []
    for i in range(images):
      number += 1
      write(root / "images" / f"{number:07}.jpg", number)
      lines.append(f"{number:07} {variants[i % 4]}\n")
    (root / f"images_variant_{split}.txt").write_text("".join(lines))
  (root / "variants.txt").write_text("\n".join(variants) + "\n")
  return root


def imagenet(root, images=5):
  for folder in ("train", "val"):
    for c, synset in enumerate(SYNSETS):
      for i in range(images):
        write(
          root / "images" / folder / synset / f"{synset}_{i}.JPEG",
          100 * c + i + 50 * (folder == "val"),
        )
  return root


def aptos(root, images=20):
  lines = ["id_code,diagnosis"]
  for i in range(images):
    write(root / "train_images" / f"{i:012x}.png", i)
    lines.append(f"{i:012x},{i % 5}")
  (root / "train.csv").write_text("\n".join(lines) + "\n")
  return root


def coop(root, name, classes=("cat", "dog", "owl", "ape"), images=16):
  """CoOp's layout, of any set: as many images in each split."""
  split = {}
  for s, key in enumerate(("train", "val", "test")):
    split[key] = []
    for i in range(images):
      path = f"{classes[i % len(classes)]}/{key}_{i}.jpg"
      write(root / "images" / path, 1000 * s + i)
      split[key].append([path, i % len(classes), classes[i % len(classes)]])
  (root / f"split_zhou_{name}.json").write_text(json.dumps(split))
  return root
