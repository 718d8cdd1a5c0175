"""Times how long a person waits between an answer and the next images.

  taskset -c 0,1 python benchmarks/speed/answer_to_picks.py --tiles=DIR \
    --weights=CLIP --images=13500 --presets=anchored,cpeal_prompt_anchored

Tiles are copied into one folder, and a script labels them on the page, as
`cpeal label` serves it. What is timed is what the person sees: from the reply
to the last answer of a batch until the page has the next questions. The time
has everything in it: the record of answers, training, scores of the whole pool,
picks, audits, the estimate, and the files of the round. The first round, in
which programs are compiled, is a column of its own.

Before that it times, from the command, when the page is open and when it has
the first question; and the same once more after the run was killed, when the
images are decoded and encoded already.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from page_person import Label  # noqa: E402


def copied(tiles: Path, count: int, folder: Path) -> dict[str, str]:
  """Copies tiles flat; returns the class of each by its new name.

  If there are fewer tiles, each is copied several times, with other bytes
  behind the end of the picture, so that no two files are the same.
  """
  found = sorted(tiles.rglob("*.jpg"))
  # A stride that has no factor in common with the count mixes the classes.
  chosen = [found[i * 7919 % len(found)] for i in range(count)]
  truth = {}
  folder.mkdir(parents=True)
  for number, path in enumerate(chosen):
    name = f"{number:06}.jpg"
    with open(folder / name, "wb") as file:
      file.write(path.read_bytes() + number.to_bytes(4, "big"))
    truth[name] = path.parent.name
  names = "".join(f"{name}\n" for name in sorted({*truth.values()}))
  (folder.parent / "classes.txt").write_text(names)
  return truth


def waits(
  options: argparse.Namespace, folder: Path, truth: dict[str, str], preset: str
) -> tuple[list[float], list[float]]:
  """Returns the seconds of two starts, and those between the batches."""
  words = (
    *(str(folder), f"--classes={folder.parent / 'classes.txt'}"),
    *("--no_browser", "--config.oracle.audit=5"),
    f"--config.model.weights={options.weights}",
    f"--config.cache_dir={folder.parent / 'cache'}",
    f"--workdir={folder.parent / preset}",
    *options.settings.get(preset, ()),
  )
  starts, seconds = [], []

  def started() -> tuple[Label, list]:
    begun = time.perf_counter()
    run = Label(*words, cwd=folder.parent, env=dict(os.environ))
    starts.append(time.perf_counter() - begun)
    questions = run.person().open_questions(0, patience=3_000)
    starts.append(time.perf_counter() - begun)
    return run, questions

  run, _ = started()
  run.kill()
  run, questions = started()
  with run:
    person = run.person()
    for round_ in range(options.rounds):
      for question in questions:
        person.answer(question["id"], truth[question["id"]])
      answered = time.perf_counter()
      questions = person.open_questions(round_ + 1, patience=600)
      seconds.append(time.perf_counter() - answered)
    run.kill()
  return starts, seconds


# What the presets set, as far as a labeling run may set it.
PRESETS = {
  "anchored": (),
  "cpeal_prompt_anchored": (
    "--config.adapter.kind=prompts",
    "--config.adapter.prompts.initial=template",
    "--config.loss.anchor=100",
    "--config.loss.anchor_unit=fitted",
    "--config.train.optimizer=adamw",
    "--config.train.learning_rate=0.01",
    "--config.train.epochs=100",
  ),
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--tiles", type=Path, required=True)
  parser.add_argument("--weights", required=True)
  parser.add_argument("--images", type=int, default=13_500)
  parser.add_argument("--rounds", type=int, default=8)
  parser.add_argument("--presets", default=",".join(PRESETS))
  options = parser.parse_args()
  options.settings = PRESETS
  columns = (
    *("adapter", "page open, s", "first question", "page, again"),
    *("question, again", "first wait", "median wait", "longest"),
  )
  print(f"| {' | '.join(columns)} |")
  print("|---" * len(columns) + "|")
  with tempfile.TemporaryDirectory() as folder:
    photos = Path(folder) / "photos"
    truth = copied(options.tiles, options.images, photos)
    for preset in options.presets.split(","):
      starts, seconds = waits(options, photos, truth, preset)
      shown = [f"{x:.1f}" for x in starts] + [f"{seconds[0]:.2f}"]
      later = seconds[1:]
      shown += [f"{statistics.median(later):.2f}", f"{max(later):.2f}"]
      print(f"| {preset} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
  main()
