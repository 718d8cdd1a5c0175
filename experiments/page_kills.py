"""Kills `cpeal label` again and again while a scripted person labels.

Two runs label the embedded digits. In the first nothing happens. In the second
the command and its page are killed by SIGKILL, at random instants and as soon
as certain files of the workdir appear, and are started again. It must not lose
an answer that the page has acknowledged, and must ask about the same images.

  python experiments/page_kills.py --kills=50 --answers=1000 --to=DIR

The last line is a JSON object with the counts. The exit code is 1 if an answer
was lost or a selection differs.
"""

import argparse
import contextlib
import http.client
import json
import random
import sys
import tempfile
import threading
import time
import urllib.error
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from page_person import Label, truth  # noqa: E402

from cpeal_jax.labeling import folding  # noqa: E402
from cpeal_jax.storage import markers  # noqa: E402

# Questions of a round, at most, and how many of them are audits.
PER_ROUND, AUDITS = 25, 5
WORDS = ("--demo", "--no_browser", f"--config.oracle.audit={AUDITS}")
# Seconds that the person thinks about an image.
PAUSE = 0.1
# A kill comes when the number of these files changes, or at an instant.
EVENTS = (
  "answers.jsonl",
  "rounds/*/scores.parquet",
  "rounds/*/selection.csv",
  "rounds/*/SELECTED",
  "rounds/*/labels.csv",
  "rounds/*/DONE",
  "rounds/*/.*.tmp",
  "checkpoints/*",
)
CUT_OFF = (urllib.error.URLError, ConnectionError, http.client.HTTPException)


def label_all(person, labels, rounds, done, pause=0.0):
  """Answers until the rounds are answered, or until the page is gone."""
  try:
    for round_ in range(rounds):
      while person.state().get("batch", {}).get("round", -1) < round_:
        time.sleep(0.02)
      for question in person.open_questions(round_):
        if question["round"] <= round_:
          time.sleep(pause)
          person.answer(question["id"], labels[question["id"]])
    done.set()
  except (*CUT_OFF, AssertionError, TimeoutError):
    pass  # It was killed; the next start goes on.


def start(cwd, cache):
  env = {"JAX_COMPILATION_CACHE_DIR": cache}
  words = (*WORDS, f"--config.budget={PER_ROUND - AUDITS}")
  return Label(*words, cwd=cwd, env=env)


def wait_for_change(workdir, event, patience):
  """Returns as soon as the files of an event have changed."""

  def seen():
    found = []
    for path in workdir.glob(event):
      with contextlib.suppress(OSError):
        found.append((path.name, path.stat().st_size))
    return sorted(found)

  before, end = seen(), time.monotonic() + patience
  while seen() == before and time.monotonic() < end:
    time.sleep(0.001)


def undisturbed(cwd, cache, rounds):
  done = threading.Event()
  with start(cwd, cache) as run:
    run.person().open_questions(0)
    labels = truth(cwd / "runs/demo/images")
    person = run.person()
    label_all(person, labels, rounds, done)
    assert done.is_set(), run.end()
    person.open_questions(rounds)  # So the last round is finished too.
    run.kill()
  return labels, sorted(person.seconds)


def disturbed(cwd, cache, rounds, kills, labels, rng):
  """Returns how many answers there are, how many were lost, and kills."""
  workdir = cwd / "runs/demo/run"
  saved, lost, done, count = {}, 0, threading.Event(), 0
  while not done.is_set():
    with start(cwd, cache) as run:
      person = run.person(saved)
      work = (person, labels, rounds, done, PAUSE if count < kills else 0.0)
      thread = threading.Thread(target=label_all, args=work)
      thread.start()
      if count < kills:
        if rng.random() < 0.5:
          how = rng.choice(("after the start", "after the first answer"))
          while how == "after the first answer" and not person.seconds:
            time.sleep(0.02)
          time.sleep(rng.uniform(0, 4 if person.seconds else 15))
        else:
          how = rng.choice(EVENTS)
          time.sleep(rng.choice((0, rng.uniform(0, 15))))
          wait_for_change(workdir, how, 15)
        run.kill()
        count += 1
        thread.join()
      else:
        how = ""
        thread.join()
        person.open_questions(rounds)
        run.kill()
    standing = folding.known_in(workdir).standing
    kept = {id_: event.label for id_, event in standing.items()}
    lost += sum(kept.get(id_) != label for id_, label in saved.items())
    line = {"kill": count, "at": how, "saved": len(saved), "lost": lost}
    print(json.dumps(line), flush=True)
  # With those that were recorded, but whose acknowledgment a kill cut off.
  return len(standing), lost, count


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=50)
  parser.add_argument("--answers", type=int, default=1000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--to", help="where the two runs are kept")
  options = parser.parse_args()
  to = Path(options.to or tempfile.mkdtemp())
  plain, killed = to / "undisturbed", to / "killed"
  cache = str(to / "compiled")
  for folder in (plain, killed):
    folder.mkdir(parents=True)
  # An audit may be an image that has an answer already, so a round may have as
  # many questions fewer.
  rounds = -(-options.answers // (PER_ROUND - AUDITS))
  labels, seconds = undisturbed(plain, cache, rounds)
  given, lost, count = disturbed(
    killed, cache, rounds, options.kills, labels, random.Random(options.seed)
  )
  different = [
    round_
    for round_ in range(rounds + 1)
    if len(
      {
        (markers.round_dir(f"{cwd}/runs/demo/run", round_) / "selection.csv")
        .read_bytes()
        .replace(str(cwd).encode(), b"")
        for cwd in (plain, killed)
      }
    )
    > 1
  ]
  summary = {
    "kills": count,
    "answers": given,
    "lost": lost,
    "rounds": rounds,
    "different_selections": different,
    "milliseconds_median": round(1000 * seconds[len(seconds) // 2], 1),
    "milliseconds_p99": round(1000 * seconds[int(0.99 * len(seconds))], 1),
  }
  print(json.dumps(summary))
  return int(bool(lost or different or given < options.answers))


if __name__ == "__main__":
  sys.exit(main())
