"""Builds a report: from workdirs to a page, tables and plots."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cpeal_jax import config as config_lib
from cpeal_jax.errors import InputError, one_of
from cpeal_jax.report import (
  arms as arms_lib,
)
from cpeal_jax.report import (
  bundle,
  comparing,
  erring,
  facts,
  features,
  honesty,
  learning,
  measures,
  mistakes,
  page,
  picked,
  plots,
  pool_map,
  reading,
  reliability,
  tables,
)
from cpeal_jax.report.arms import Arm
from cpeal_jax.report.comparing import Comparison
from cpeal_jax.report.measures import Measure
from cpeal_jax.report.pictures import Pictures
from cpeal_jax.report.reading import LeftOut
from cpeal_jax.report.verdict import verdict
from cpeal_jax.run import reopened

# The metrics that arms are compared by, besides the accuracy.
ALSO_COMPARED = ("nll", "ece")


class Report(NamedTuple):
  """What a report is made of.

  Attributes:
    page: the HTML file.
    verdict: its sentences.
    left_out: workdirs that are not in it.
    files: tables and plots by their names.
  """

  page: str
  verdict: tuple[str, ...]
  left_out: tuple[LeftOut, ...]
  files: Mapping[str, bytes]


def build(
  workdirs: Sequence[str], *, base: str = "", changes: Sequence[str] = ()
) -> Report:
  """Builds a report of the runs in some workdirs.

  Args:
    workdirs: of the runs, or folders that have workdirs below them.
    base: name of the arm that others are compared with; empty for the one that
      draws at random.
    changes: words such as --config.dataset.root=DIR, for what has moved.

  Raises:
    InputError: no run can be read, there is no such arm, or a package is
      missing.
  """
  runs, left_out = reading.read_all(workdirs)
  if not runs:
    reason = (
      f": {left_out[0].workdir}: {left_out[0].reason}" if left_out else ""
    )
    raise InputError(f"there is no run to report on{reason}")  # fmt: skip
  arms, repeated = arms_lib.group(runs, config_lib.RUN_KEYS)
  left_out += repeated
  if base:
    one_of("arm", base, [arm.name for arm in arms])
  moved = reopened.parsed(changes)
  directory = features.cache_of(arms[0].first, moved)
  script = bundle.bundle(directory)
  primary = measures.primary(arms)
  comparisons = compared(arms, primary, base)
  if comparisons:
    place = [summary.arm for summary in comparisons[0].summaries]
    arms.sort(key=lambda arm: place.index(arm.name))
  notes: list[str] = []
  pictures = Pictures(
    os.path.expanduser(moved.get("dataset.root", "")),
    functools.partial(features.data_of, changes=changes),
  )
  found_map = _map(arms, directory, changes)
  bins = [
    b for arm in arms for b in _noted(notes, reliability.reliability, arm, [])
  ]
  confusions: dict[str, np.ndarray] = {}
  for arm in arms:
    counts = _noted(notes, mistakes.confusion, arm, None)
    if counts is not None:
      confusions[arm.name] = counts
  sections = [
    learning.section(arms, primary, comparisons),
    honesty.section(arms, bins),
    picked.section(arms, pictures, found_map, has_curve=primary is not None),
    erring.section(arms, confusions, pictures),
    facts.section(arms, left_out),
  ]
  said = verdict(arms, comparisons[0] if primary else None)
  text = page.render(
    title=f"Active learning on {facts.data_name(arms)}",
    verdict=said,
    facts=facts.head(arms),
    left_out=left_out,
    notes=[*dict.fromkeys(notes), *pictures.sentences()],
    sections=sections,
    script=script,
  )
  return Report(text, said, tuple(left_out), files_of(arms, comparisons))


def compared(
  arms: Sequence[Arm], primary: Measure | None, base: str = ""
) -> list[Comparison]:
  """Compares the arms by their accuracy first, and by NLL and ECE."""
  chosen = [primary] if primary else []
  also = [m for m in measures.shown(arms) if m.key in ALSO_COMPARED]
  reference = arms_lib.base_of(arms, base)
  return [
    comparing.compare(arms, m, reference) for m in [*chosen, *also]
  ]  # fmt: skip


def _map(
  arms: Sequence[Arm], directory: Path, changes: Sequence[str]
) -> pool_map.PoolMap | str:
  """Returns the map of the pool, or why there is none."""
  run = arms[0].first
  try:
    return pool_map.make(
      arms,
      directory,
      functools.partial(features.features_of, run, changes=changes),
    )
  except InputError as error:
    return str(error).rstrip(".")


def _noted(notes: list[str], call: Callable, arm: Arm, instead):
  """Returns `call(arm)`; after an error it is noted, and `instead` returned."""
  try:
    return call(arm)
  except InputError as error:
    notes.append(f"Calibration or errors of {arm.name} are missing: {error}")
    return instead


def files_of(
  arms: Sequence[Arm], comparisons: Sequence[Comparison]
) -> dict[str, bytes]:
  """Returns the tables and plots by the names of their files."""
  found = {"results.csv": tables.results_csv(arms).encode()}
  texts, latex = [], []
  for comparison in comparisons:
    measure = comparison.measure
    for title, (head, rows) in (
      (f"{measure.title}: all arms", tables.comparison(comparison)),
      (f"{measure.title} by labels", tables.curves(arms, measure)),
    ):
      texts.append(f"## {title}\n\n{tables.markdown(head, rows)}")
      latex.append(f"% {title}\n{tables.latex(head, rows)}")
    if power := tables.power_text(comparison):
      texts.append(f"{power}\n")
    pictures = {"curves": plots.curves(arms, measure)}
    pictures["differences"] = plots.differences(comparison)
    for name, kinds in pictures.items():
      for kind, data in kinds.items():
        found[f"{name}_{measure.key}.{kind}"] = data
  if texts:
    found["tables.md"] = "\n".join(texts).encode()
    found["tables.tex"] = "\n".join(latex).encode()
  return found
