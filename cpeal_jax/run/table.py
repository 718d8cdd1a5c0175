"""The table of rounds on the terminal, and what it says about zero-shot."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cpeal_jax.config import Config
from cpeal_jax.errors import counted
from cpeal_jax.storage.results import ZERO_SHOT

# The preset that holds an adapter above zero-shot, by the kind of the adapter.
HELD = {"lora": "cpeal_lora_anchored", "prompts": "cpeal_prompt_anchored"}
BELOW = "below zero-shot"
# The metrics that the table shows, of the test split and of the validation
# split.
TEST = ("accuracy", "ece", "nll")
VALIDATION = ("val_accuracy", "val_ece", "val_nll")
# What a column is headed, where that is not the name of its metric. Accuracies
# and calibration errors are shares from 0 to 1.
HEADS = {"nll": "nll/nats", "val_nll": "val_nll/nats"}
Row = Mapping[str, Any]


def columns(*, test: bool, validation: bool) -> tuple[str, ...]:
  """Returns which metrics the table shows, by the splits that a run has.

  Without a test split it shows those of the validation split. Without either
  it shows none, since a column that no round can fill tells nothing.
  """
  if test:
    return TEST
  return VALIDATION if validation else ()


def header(metrics: Sequence[str] = TEST) -> str:
  """Returns the header of the table whose lines `line` gives."""
  cells = [f"  {_head(name):>{_width(name)}}" for name in metrics]
  return f"     round  labeled{''.join(cells)}  seconds"


def line(
  row: Row,
  zero_shot: float | None = None,
  *,
  metrics: Sequence[str] = TEST,
) -> str:
  """Returns one round's metrics as a line of the table.

  The last column adds up the seconds of all stages. Without a test split, the
  accuracy that audits give follows, with its interval of 95 %.

  Args:
    row: the metrics of the round.
    zero_shot: the accuracy of the untrained model; a line with a lower one
      says so. None if it is not known.
    metrics: what `columns` returned.
  """
  name = "zero-shot" if row["round"] == ZERO_SHOT else str(row["round"])
  seconds = sum(v or 0 for k, v in row.items() if k.startswith("seconds"))
  cells = [f"  {_cell(row.get(key)):>{_width(key)}}" for key in metrics]
  mark = f"  {BELOW}" if _is_below(row, zero_shot) else ""
  if row.get("accuracy") is None and row.get("audits"):
    low, point, high = (
      f"{float(row[f'audit_{key}']):.2f}" for key in ("low", "accuracy", "high")
    )
    mark = f"  {counted(row['audits'], 'audit')}: {point} ({low} to {high})"
  return (
    f"{name:>10}  {row['labeled']:>7}{''.join(cells)}  {seconds:>7.1f}{mark}"
  )


def _cell(value: float | None) -> str:
  return "-" if value is None else f"{float(value):.4f}"


def _width(name: str) -> int:
  """Returns a column's width: that of its head, or of a number as 0.1234."""
  return max(len(_head(name)), 6)


def _head(name: str) -> str:
  return HEADS.get(name, name)


def table(rows: Sequence[Row], *, metrics: Sequence[str] = TEST) -> str:
  """Returns the table of several rounds: a header, and a line for each.

  Args:
    rows: the metrics of each round.
    metrics: what `columns` returned.
  """
  zero_shot = zero_shot_of(rows)
  lines = [line(row, zero_shot, metrics=metrics) for row in rows]
  return "\n".join([header(metrics), *lines])


def zero_shot_of(rows: Iterable[Row]) -> float | None:
  """Returns the accuracy of the untrained model; None if it is not measured.

  It is not for a model without texts, nor without a test split.
  """
  accuracies = [
    row.get("accuracy") for row in rows if row["round"] == ZERO_SHOT
  ]
  return accuracies[0] if accuracies else None


def end_note(rows: Sequence[Row], config: Config) -> str | None:
  """Returns a line about rounds below zero-shot, and what to do about them.

  Args:
    rows: the metrics of all rounds of a run.
    config: of the run.
  """
  zero_shot = zero_shot_of(rows)
  below = [row for row in rows if _is_below(row, zero_shot)]
  if not below:
    return None
  worst = min(below, key=lambda row: row["accuracy"])
  named = HELD.get(config.adapter.kind, "anchored")
  presets = " or ".join(dict.fromkeys(("anchored", named)))
  if config.variant in (named, "anchored"):
    presets = ""
  rounds = ", ".join(str(row["round"]) for row in below)
  advice = (
    f". The preset {presets} holds the model at the pool's own answers, as in "
    f"--config={config.name or 'NAME'}:anchored"
    if presets
    else ""
  )
  return (
    f"note: {BELOW} ({zero_shot:.4f}) in round {rounds}, by up to "
    f"{zero_shot - worst['accuracy']:.4f} with "
    f"{counted(worst['labeled'], 'label')}"
    f"{advice}"
  )


def end_lines(rows: Sequence[Row], workdir: str) -> list[str]:
  """Returns what a person should know when a run is at its end.

  These are its last round and its best one against zero-shot, how long all
  rounds took, what it left, and what to do with it.

  Args:
    rows: the metrics of all rounds of a run.
    workdir: of the run.
  """
  played = [row for row in rows if row["round"] != ZERO_SHOT]
  if not played:
    return []
  zero_shot = zero_shot_of(rows)
  lines = []
  measured = [row for row in played if row.get("accuracy") is not None]
  if measured:
    last, best = measured[-1], max(measured, key=lambda row: row["accuracy"])
    lines.append(f"last: {_result(last, zero_shot)}")
    if best is not last:
      lines.append(f"best: {_result(best, zero_shot)}")
  seconds = sum(
    value or 0
    for row in played
    for key, value in row.items()
    if key.startswith("seconds")
  )
  rounds = counted(len(played), "round")
  lines.append(f"time: {seconds:.0f} s in {rounds}")
  lines.append(
    f"left: {workdir}: metrics.jsonl, results.csv, rounds/, checkpoints/"
  )
  name = shlex.quote(workdir)
  lines.append(f"next: cpeal report {name}   a page about it")
  lines.append(f"next: cpeal predict {name}  predictions for all images")
  return lines


def _result(row: Row, zero_shot: float | None) -> str:
  """Returns a round's accuracy and how it compares with zero-shot."""
  text = (
    f"round {row['round']}, {counted(row['labeled'], 'label')}: accuracy "
    f"{row['accuracy']:.4f}"
  )
  if zero_shot is None:
    return text
  gap = 100 * (row["accuracy"] - zero_shot)
  side = "below" if gap < 0 else "above"
  return f"{text}, {abs(gap):.1f} points {side} zero-shot"


def _is_below(row: Row, zero_shot: float | None) -> bool:
  known = zero_shot is not None and row.get("accuracy") is not None
  return known and row["accuracy"] < zero_shot
