"""Labels your own images on a page in the browser, as `cpeal label DIR`.

  cpeal label DIR --classes=classes.txt
  cpeal label --demo

DIR has the images; classes.txt has the name of a class on each line. The
program picks the images that teach the model most, asks you about them on a
page, trains, and picks again, until you stop or every image has an answer. The
page is only served on this machine. All answers are saved at once: stop
whenever you like, and go on by the same command.

Any setting of `cpeal run` may be given too. Those that you will want:

  --config.model.weights=CLIP   a folder with a CLIP; the default is OpenAI's
                                ViT-B/32, which is downloaded once
  --config=remoteclip           the CLIP of a domain instead: remoteclip and
                                georsclip for aerial images, bioclip for species
  --config.model.template="a satellite photo of {}."
                                what your pictures are; {} is a class
  --config.budget=20            how many images it picks at a time; default 10
  --config.oracle.audit=5       how many more it draws at random each time, to
                                tell how good the model is

Give the same settings when you go on.

Exit codes: 0 every image has an answer, 3 stopped on the page, 2 wrong usage or
input, 75 stopped by SIGTERM, 130 stopped by Ctrl-C. After 3, 75 and 130 nothing
is lost.
"""

import argparse
import importlib
import os
import random
import sys
from pathlib import Path
from typing import NoReturn

from cpeal_jax import command_line, quickstart
from cpeal_jax.data import class_names, digits
from cpeal_jax.errors import InputError, nearest, one_of
from cpeal_jax.labeling.page.handle import Page
from cpeal_jax.run import interrupts

HELP = " `cpeal label --help` explains the command."
DEMO = "runs/demo"
# Settings that nearly everybody needs.
SETTINGS = ("model.weights", "model.template", "budget", "oracle.audit")
# The options of this command that stand for a setting, which messages name.
OPTIONS = {
  "dataset.root": "DIR",
  "dataset.class_names": "--classes",
  "oracle.port": "--port",
}
# No pool needs as many rounds, so the run goes on until it is told to stop.
ENDLESS = 1_000_000
# The configs whose images are your own.
CONFIGS = ("own_images", "remoteclip", "georsclip", "bioclip")
# Images that are asked about before the model is trained again. One a class,
# which is the default of other runs, would be few for a person or very many.
AT_A_TIME = 10
TEMPLATE = "a photo of the digit {}."
# Name, type, default and help of each flag that has a value.
VALUES = (
  (
    "--classes",
    str,
    "",
    "a file with the name of a class on each line; not needed if the folders "
    "of DIR are named after the classes",
  ),
  (
    "--workdir",
    str,
    "",
    "where answers and models are kept; the default is "
    "runs/FOLDER/anchored/seed1, after the name of DIR",
  ),
  (
    "--config",
    str,
    CONFIGS[0],
    f"what model it starts from: {', '.join(CONFIGS)}; a colon and the name of "
    "a preset may follow",
  ),
  ("--port", int, 0, "port of the page; default 8765, or any that is free"),
)
FLAGS = (
  (
    "--demo",
    "label the handwritten digits that come with the program, offline, with "
    "the CLIP that comes with it",
  ),
  ("--no_browser", "only print the address of the page"),
  ("--dry_run", "print what would be read and computed, and end"),
  ("--overwrite", "forget the run in the workdir, but not the answers"),
)


def words(argv: list[str]) -> tuple[list[str], argparse.Namespace]:
  """Returns the flags of `cpeal run` that do the same, and the own flags.

  With `--demo` the images are written first.

  Raises:
    InputError: a flag is unknown, or the folder or the file of class names is
      missing.
  """
  parser = command_line.Parser("cpeal label", __doc__)
  add = parser.add_argument
  add("root", nargs="?", metavar="DIR", help="folder of your images")
  for name, kind, default, help in VALUES:
    add(name, type=kind, default=default, help=help)
  for name, help in FLAGS:
    add(name, action="store_true", help=help)
  options, rest = parser.parse_known_args(argv)
  for word in rest:
    if not word.startswith(("--config.", "--noconfig.")):
      raise InputError(f"unknown argument {word!r}.{_meant(word)}{HELP}")
  if options.demo and (options.root or options.classes):
    parser.error("--demo has its own images and classes: leave DIR out")
  one_of("--config", options.config.partition(":")[0], CONFIGS)
  settings = ["--config.oracle.kind=page", f"--config.rounds={ENDLESS}"]
  settings.append(f"--config.budget={AT_A_TIME}")
  if options.demo:
    settings += _demo(Path(DEMO))
    options.workdir = options.workdir or f"{DEMO}/run"
  elif not options.root:
    parser.error("give the folder of your images, or --demo")
  else:
    settings += _own(options.root, options.classes)
  settings.append(f"--config.oracle.port={options.port}")
  settings.append(f"--config.oracle.browser={not options.no_browser}")
  out = [f"--config={options.config}", *settings, *rest]
  if options.workdir:
    out.append(f"--workdir={options.workdir}")
  passed_on = ("dry_run", "overwrite")
  out += [f"--{name}" for name in passed_on if getattr(options, name)]
  return out, options


def _meant(word: str) -> str:
  """Returns a question whether another argument was meant, if one is alike."""
  flag = word.partition("=")[0]
  if not flag.startswith("-"):
    is_file = os.path.isfile(word)
    return f" Did you mean --classes={word}?" if is_file else ""
  key = flag.strip("-")
  if alike := [k for k in SETTINGS if key in (k, k.rpartition(".")[2])]:
    return f" Did you mean --config.{alike[0]}?"
  flags = [name for name, *_ in (*VALUES, *FLAGS)]
  return nearest(flag, flags)


def _own(root: str, classes: str) -> list[str]:
  if not os.path.isdir(root):
    raise InputError(f"{root} is no folder; give the folder of your images.")
  settings = [f"--config.dataset.root={root}"]
  if classes:
    class_names.read_class_names(classes)  # Refused at once if it is no list.
    settings.append(f"--config.dataset.class_names={classes}")
  return settings


def _demo(folder: Path) -> list[str]:
  """Writes the digits as images without labels, under names that tell nothing.

  Returns:
    The settings for them.
  """
  images = folder / "images"
  names = folder / "classes.txt"
  try:
    if not os.path.exists(names):
      images.mkdir(parents=True, exist_ok=True)
      data = digits.load_digits()
      rows = [(s, i) for s in data.splits for i in range(len(s))]
      random.Random(0).shuffle(rows)
      for number, (split, index) in enumerate(rows):
        (images / f"{number:04}.png").write_bytes(split.read(index))
      # Zero is the last class, so that each digit is on its own key. This file
      # is written last: where it is, all images are.
      order = (*digits.CLASSES[1:], digits.CLASSES[0])
      names.write_text("".join(f"{name}\n" for name in order))
  except OSError as error:
    raise InputError(
      f"cannot write the demo's images to {folder}: {error.strerror}. Change "
      "to a folder that can be written to."
    ) from error
  return [
    f"--config.dataset.root={images}",
    f"--config.dataset.class_names={names}",
    f"--config.model.weights={quickstart.CLIP}",
    f"--config.model.template={TEMPLATE}",
    "--config.scoring.tile=32",
  ]


def main(argv: list[str]) -> int:
  """Runs the command; returns the exit code."""
  command_line.prepare()
  page = None
  try:
    line, options = words(argv[1:])
    if not options.dry_run:
      # The imports below take seconds, in which the page is open already.
      page = Page(
        port=options.port, browser=not options.no_browser, options=OPTIONS
      )
    module = importlib.import_module("cpeal_jax.main")
    return module.main(["cpeal label", *line], page, OPTIONS)
  except Exception as error:
    return command_line.report(error, OPTIONS)
  finally:
    if page is not None:  # Unless the run has done so, with a better reason.
      page.end("The program has ended; it printed why where it was started.")


def end(code: int) -> NoReturn:
  """Ends the process, as `cpeal_jax.main` does if it was imported."""
  if "cpeal_jax.main" in sys.modules:
    sys.modules["cpeal_jax.main"].end(code)
  sys.exit(code)


if __name__ == "__main__":
  interrupts.listen()
  end(main(sys.argv))
