"""What was run, on what, and how long it took."""

import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from cpeal_jax.errors import counted
from cpeal_jax.report import charts
from cpeal_jax.report.arms import Arm
from cpeal_jax.report.measures import rows_of
from cpeal_jax.report.parts import Figure, Section, Table, Words
from cpeal_jax.report.reading import LeftOut

STAGE = "seconds_"


def head(arms: Sequence[Arm]) -> list[tuple[str, str]]:
  """Returns the facts at the head of a page: a word and what it is."""
  run = arms[0].first
  runs = [run for arm in arms for run in arm.runs.values()]
  sizes = {"train": 0, "val": 0, "test": 0}
  for row in run.images.values():
    sizes[row["split"]] += 1
  splits = [f"a pool of {sizes['train']:,} images"]
  splits.append(f"{sizes['val']:,} for validation" if sizes["val"] else "")
  splits.append(
    f"{sizes['test']:,} for the test" if sizes["test"] else "no test"
  )
  names = run.classes
  some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
  labels = {rows_of(run)[-1]["labeled"] for run in runs}
  rounds = {run.rounds for run in runs}
  seeds = sorted({run.seed for run in runs})
  facts = [
    ("Data", f"{data_name(arms)}: {', '.join(filter(None, splits))}"),
    ("Classes", f"{len(names)}: {some}"),
    ("Model", _short(str(run.environment.get("weights", "")))),
    ("Trained", str(run.settings.get("adapter.kind", ""))),
    ("Runs", f"{counted(len(arms), 'arm')}, {counted(len(seeds), 'seed')} "
     f"({', '.join(map(str, seeds))}), {counted(len(runs), 'run')}"),
    ("Labels", f"up to {max(labels):g} in {_either(rounds)} rounds"),
  ]  # fmt: skip
  kinds = {repr(run.settings.get("adapter.kind")) for run in runs}
  return [
    (word, text)
    for word, text in facts
    if text and not (word == "Trained" and len(kinds) > 1)
  ]


def _short(weights: str) -> str:
  """Returns a hub id as it is, and of a folder's path the last two names.

  A page may be sent to people whom the rest of the path tells nothing; it is in
  the environment, further down.
  """
  path = PurePath(weights)
  return "/".join(path.parts[-2:]) if path.is_absolute() else weights


def data_name(arms: Sequence[Arm]) -> str:
  """Returns what the data set is called."""
  settings = arms[0].first.settings
  root = str(settings.get("dataset.root", "")).rstrip("/")
  layout = settings.get("dataset.layout", "")
  return str(
    settings.get("dataset.name") or root.rpartition("/")[2] or layout or "data"
  )


def _either(values: set[int]) -> str:
  low, high = min(values), max(values)
  return str(low) if low == high else f"{low} to {high}"


def section(arms: Sequence[Arm], left_out: Sequence[LeftOut]) -> Section:
  """Returns the section on time, settings, environment and command."""
  run = arms[0].first
  parts: list[Any] = []
  seconds = seconds_of(arms)
  if seconds:
    stages = [*dict.fromkeys(row["stage"] for row in seconds)]
    rows = []
    for arm in arms:
      mine = {r["stage"]: r["seconds"] for r in seconds if r["arm"] == arm.name}
      cells = [f"{mine.get(stage, 0):.1f}" for stage in stages]
      rows.append([arm.name, *cells, f"{sum(mine.values()):.1f}"])
    table = Table("Seconds a run", ["Arm", *stages, "all"], rows)
    chart = charts.time([arm.name for arm in arms])
    note = "A stage that a resumed run found done is not counted again."
    parts.append(Figure("time", "Time by stage", chart, table, note))
  if len(arms) > 1:
    keys = [*arms[0].settings]
    rows = [
      [arm.name, *(str(arm.settings.get(key)) for key in keys)] for arm in arms
    ]
    caption = "Settings that differ between the arms"
    parts.append(Table(caption, ["Arm", *keys], rows))
  every = [
    [arm.name, str(seed), str(found.rounds), found.workdir]
    for arm in arms
    for seed, found in sorted(arm.runs.items())
  ]
  parts.append(
    Table("Runs", ["Arm", "Seed", "Rounds", "Workdir"], every, is_open=False)
  )
  if left_out:
    rows = [[found.workdir, found.reason] for found in left_out]
    parts.append(Table("Left out", ["Workdir", "Why"], rows))
  folder = shlex.quote(run.workdir)
  command = (
    f"cpeal run --config={folder}/config.json --workdir=NEW_FOLDER\n"
    f"cpeal predict {folder}\n"
    f"cpeal export {folder} --help\n"
  )
  parts.append(
    Words("Commands that play the first run again, or use it", command)
  )
  values = "\n".join(f"{k} = {v!r}" for k, v in sorted(run.settings.items()))
  parts.append(Words("All settings of the first run", values))
  parts.append(Words("Environment of the first run", _environment(arms)))
  title = "Time, settings, environment"
  return Section("facts", title, parts, {"time": seconds})


def _environment(arms: Sequence[Arm]) -> str:
  environment = arms[0].first.environment
  lines = [
    f"{key}: {environment[key]}"
    for key in (
      *("python", "platform", "device", "devices", "weights", "weights_sha256"),
      *("dataset_sha256", "splits", "trainable_parameters"),
    )
    if environment.get(key) not in (None, "")
  ]
  versions = environment.get("versions", {})
  lines += [f"{name} {version}" for name, version in versions.items()]
  prompts = environment.get("zero_shot_prompts") or []
  lines += [f"prompt: {prompt}" for prompt in prompts[:3]]
  lines += ["..."] * (len(prompts) > 3)
  return "\n".join(lines)


def seconds_of(arms: Sequence[Arm]) -> list[dict[str, Any]]:
  """Returns the seconds of each stage of a run, the mean over seeds."""
  found = []
  for arm in arms:
    totals: dict[str, list[float]] = {}
    for run in arm.runs.values():
      sums: dict[str, float] = {}
      for row in rows_of(run):
        for key, value in row.items():
          if key.startswith(STAGE) and value is not None:
            stage = key.removeprefix(STAGE)
            sums[stage] = sums.get(stage, 0) + value
      for stage, value in sums.items():
        totals.setdefault(stage, []).append(value)
    found += [
      {"arm": arm.name, "stage": stage, "seconds": float(np.mean(values))}
      for stage, values in totals.items()
    ]
  return found
