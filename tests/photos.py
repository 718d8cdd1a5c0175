"""The embedded digits as files of one's own, and runs on them."""

import csv

from own_data import config

from cpeal_jax.data.digits import load_digits


def write(folder, count=240, *, names=None, wrong=()):
  """Writes digits and a list of their labels; returns the truth by id.

  Args:
    folder: where to.
    count: how many images.
    names: the file names of the first images, in place of numbers.
    wrong: rows whose label in the list is that of the next class.
  """
  digits = load_digits()
  folder.mkdir(parents=True)
  truth = {}
  for row in range(count):
    name = names[row] if names and row < len(names) else f"{row:03}.png"
    (folder / name).write_bytes(digits.train.read(row))
    truth[name] = digits.classes[digits.train.labels[row]]
  classes = digits.classes
  with open(folder / "list.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["path", "label"])
    for row, (name, label) in enumerate(truth.items()):
      shift = 1 if row in wrong else 0
      number = (classes.index(label) + shift) % len(classes)
      table.writerow([name, classes[number]])
  return truth


def made(root, *words, rounds=3, budget=10):
  """The config of a run on these images, all in the pool."""
  return config(
    root,
    f"--config.cache_dir={root.parent / 'cache'}",
    "--config.dataset.shares=1,0,0",
    f"--config.rounds={rounds}",
    f"--config.budget={budget}",
    *words,
  )


def read(path):
  with open(path, newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))
