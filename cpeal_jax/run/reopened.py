"""Opens a run again, to use a finished round's model on the run's own pool.

Nothing is written into the workdir. `finished.read_round` reads the model
alone, for images from elsewhere.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from etils import epath

from cpeal_jax import config as config_lib
from cpeal_jax import scoring
from cpeal_jax.config import overrides
from cpeal_jax.errors import InputError
from cpeal_jax.labeling import (
  folding,
  oracles,
)
from cpeal_jax.parallel import sharding
from cpeal_jax.run import describe, finished, fitting, stages
from cpeal_jax.run import known as known_lib
from cpeal_jax.run.build import build
from cpeal_jax.run.journal import Journal
from cpeal_jax.run.known import Known
from cpeal_jax.run.plan import make_plan
from cpeal_jax.run.stages import Run
from cpeal_jax.storage import checkpoint, files, manifest, record


@dataclasses.dataclass(frozen=True, eq=False)
class Reopened:
  """A run and the model of one of its rounds.

  Attributes:
    run: the parts of the run; its checkpoints are closed.
    number: number of the round, counted from 0.
    adapter: of the round's model.
    temperature: of the round's model.
    known: what is known of the pool after all finished rounds.
  """

  run: Run
  number: int
  adapter: dict
  temperature: float
  known: Known


def reopen(
  workdir: str | os.PathLike, *, round: int = -1, changes: Sequence[str] = ()
) -> Reopened:
  """Builds the run again from its workdir, data and weights.

  Args:
    workdir: of the run.
    round: number of the round from 0, or from the end if it is negative.
    changes: words such as `--config.dataset.root=DIR`, for what has moved.

  Raises:
    InputError: there is no such round, the data or weights are not those of the
      run, or a change is of a setting that decides results.
  """
  start = finished.read_start(workdir, round)
  # A file of answers belongs to the command line that it was given on.
  start.config.oracle.answers = ""
  config = with_changes(start.config, changes)
  added = ()
  if not files.is_remote(workdir):
    added = folding.known_in(workdir).added
  plan = make_plan(config, added=added)
  finished.refuse_other_weights(start._replace(config=config), plan.pretrained)
  root = epath.Path(workdir)
  environment = files.read_json(root / "environment.json")
  if list(plan.dataset.classes) != environment["classes"]:
    raise InputError(
      f"the classes of the data are not those of {workdir}. If classes were "
      "added, play the next round first."
    )
  experiment = build(config, plan)
  rows = describe.manifest(experiment)
  table = pa.table({k: pa.array(v, pa.string()) for k, v in rows.items()})
  manifest.check_manifest(root, table, may_grow=True)
  # The page is not open, and who only asks now and then needs none. Whoever
  # wants to ask on it opens it and puts its own oracle in the place of this.
  kind = config.oracle.kind
  oracle = oracles.oracle_of(
    "files" if kind == "page" else kind,
    plan.dataset,
    os.fspath(workdir),
    root=config.dataset.root,
    answer_file=config.oracle.answers,
    document_root=config.oracle.document_root,
    run=describe.run_name(config, plan),
  )
  with checkpoint.open_checkpoints(
    root / "checkpoints", read_only=True
  ) as checkpoints:
    parts = (experiment, config, Journal(root), checkpoints, oracle)
    run = Run(*parts, stop=lambda: False)
    newest = checkpoints.at(start.number)
    if newest is None:
      raise InputError(f"{workdir} has no checkpoint of round {start.number}.")
    fresh = fitting.fresh_state(run, start.number)
    state, _ = checkpoints.restore(*newest, fresh)
  return Reopened(
    run=run,
    number=start.number,
    adapter=state.adapter,
    temperature=temperature(workdir, start.number),
    known=known_lib.known(run, record.finished_rounds(root)),
  )


def temperature(workdir: str | os.PathLike, round_: int) -> float:
  """Returns the temperature of a finished round's model.

  Raises:
    InputError: the round is of a version that did not record it.
  """
  found = record.temperature(workdir, round_)
  if found is None:
    raise InputError(
      f"round {round_} of {workdir} is of an older version, which recorded no "
      "temperature. Raise rounds by one and resume the run, and take the new "
      "round."
    )
  return found


def with_changes(
  config: config_lib.Config, changes: Sequence[str]
) -> config_lib.Config:
  """Returns the config with changes of settings that decide no results.

  Raises:
    InputError: a setting is unknown, decides results, or has a bad value.
  """
  values = parsed(changes)
  changed = config.copy_and_resolve_references()
  changed.update_from_flattened_dict(values)
  config_lib.validate(changed)
  return changed


def parsed(changes: Sequence[str]) -> dict[str, Any]:
  """Returns the values of changed settings by their names.

  Raises:
    InputError: a setting is unknown, decides results, or has a bad value.
  """
  values = dict(map(overrides.parse, changes))
  for name in values:
    if name not in config_lib.RUN_KEYS:
      raise InputError(
        f"{overrides.PREFIX}{name} decides results, so it is as in the run. "
        "What may change is where files are, such as dataset.root."
      )
  return values


def pool_logits(opened: Reopened) -> np.ndarray:
  """Returns the logits of the pool's images by the round's model, [N, C]."""
  scores: scoring.PoolScores = stages.score(opened.run, opened.adapter, "train")
  return sharding.fetch(scores.logits, scores.total)
