"""The command `cpeal`: `cpeal label`, `cpeal run`, `cpeal predict` and more.

  cpeal label   labels your own images on a page in the browser
                (the same as `python -m cpeal_jax.label`)
  cpeal run     runs a trajectory from its start, or resumes it
                (the same as `python -m cpeal_jax.main`)
  cpeal predict writes calibrated predictions for the rest of the pool, or for
                another folder of images
  cpeal certify says which predictions may be taken as labels
  cpeal report  writes a page about one run or many: curves, images, errors
  cpeal export  writes the adapted model for other programs
                (the same as `python -m cpeal_jax.export`)
  cpeal sweep   does many runs: seeds x methods x data sets
                (the same as `python launch/sweep.py` in a checkout)

`cpeal COMMAND --help` explains a command, and `cpeal --version` prints the
version. For example, start with `cpeal run --config=quickstart`.

Exit codes: 0 done, 2 wrong usage or input. The help of each command names its
other codes.
"""

import functools
import importlib
import runpy
import sys
from collections.abc import Callable


def _main(words: list[str]) -> None:
  # This comes first, since the user may press Ctrl-C while the other imports
  # take their seconds.
  importlib.import_module("cpeal_jax.run.interrupts").listen()
  module = importlib.import_module("cpeal_jax.main")
  module.end(module.main(["cpeal run", *words]))


def _label(words: list[str]) -> None:
  importlib.import_module("cpeal_jax.run.interrupts").listen()
  module = importlib.import_module("cpeal_jax.label")
  module.end(module.main(["cpeal label", *words]))


def _guarded(module: str, words: list[str]) -> None:
  """Calls the function `run` of a module, and ends with its exit code."""
  command_line = importlib.import_module("cpeal_jax.command_line")

  def run(argv: list[str]) -> int:
    # The import takes seconds, in which the user may press Ctrl-C. So it is
    # made here, where Ctrl-C ends the command without a traceback.
    return importlib.import_module(f"cpeal_jax.{module}").run(argv)

  name = module.partition(".")[0]
  sys.exit(command_line.guarded(run, [f"cpeal {name}", *words]))


def _sweep(words: list[str]) -> None:
  load = importlib.import_module("cpeal_jax.config.load")
  folder = load.data_folder("launch")
  # The script imports modules that lie beside it.
  sys.path.insert(0, str(folder))
  sys.argv = ["cpeal sweep", *words]
  runpy.run_path(str(folder / "sweep.py"), run_name="__main__")


# A new command needs a new line here. Each imports its module only when called.
COMMANDS: dict[str, Callable[[list[str]], None]] = {
  "label": _label,
  "run": _main,
  "export": functools.partial(_guarded, "export"),
  "predict": functools.partial(_guarded, "predict"),
  "certify": functools.partial(_guarded, "certify"),
  "report": functools.partial(_guarded, "report.command"),
  "sweep": _sweep,
}


def main() -> None:
  """Runs the command that the first command-line argument names."""
  words = sys.argv[1:]
  if words[:1] in ([], ["--help"], ["-h"]):
    sys.stdout.write(f"{__doc__}")
    sys.exit(0 if words else 2)
  if words[0] == "--version":
    from cpeal_jax import __version__

    sys.stdout.write(f"cpeal_jax {__version__}\n")
    sys.exit(0)
  if words[0] not in COMMANDS:
    from cpeal_jax.errors import InputError, nearest

    choices = ["--help", "--version"] if words[0][:1] == "-" else [*COMMANDS]
    kind = "option" if words[0][:1] == "-" else "command"
    error = InputError(
      f"unknown {kind} {words[0]!r}; choose from: {', '.join(choices)}."
      f"{nearest(words[0], choices)}"
    )
    sys.stderr.write(f"error: {error}\n")
    sys.exit(2)
  COMMANDS[words[0]](words[1:])


if __name__ == "__main__":
  main()
