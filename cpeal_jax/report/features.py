"""Features of a run's pool, for the map: from the cache, or computed if few.

This is the one place where a report needs the weights and the images. All else
comes from the workdir.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from cpeal_jax.config import Config, base
from cpeal_jax.data.pools import Dataset
from cpeal_jax.errors import InputError, reason
from cpeal_jax.parallel import sharding
from cpeal_jax.report.reading import Run
from cpeal_jax.run import build, datasets, feature_cache, finished, reopened
from cpeal_jax.run.plan import cache_directory, make_plan

# Features of a larger pool are not computed only for a map.
MOST_COMPUTED = 2_000


def cache_of(run: Run, changes: Mapping[str, Any]) -> Path:
  """Returns the cache that a run was given, or the one in `changes`."""
  config = base()
  recorded = {"cache_dir": run.settings.get("cache_dir", "")}
  config.update_from_flattened_dict(recorded | dict(changes))
  return cache_directory(config)


def settings_of(run: Run, changes: Sequence[str]) -> Config:
  """Returns a run's settings, with changes of where files are.

  Raises:
    InputError: a setting is not one of this version.
  """
  try:
    config = finished.read_start(run.workdir).config
  except InputError:
    raise
  except (KeyError, AttributeError, TypeError, ValueError) as error:
    raise InputError(
      f"its settings are of another version of cpeal_jax ({reason(error)})"
    ) from error
  return reopened.with_changes(config, changes)


def data_of(run: Run, changes: Sequence[str]) -> Dataset:
  """Reads a run's data set again.

  Raises:
    InputError: it is not at hand.
  """
  return datasets.load_dataset(settings_of(run, changes), prepare=False)


def features_of(
  run: Run, ids: Sequence[str], changes: Sequence[str]
) -> Float[np.ndarray, "N D"]:
  """Returns the features of images of a pool by the pretrained image tower.

  Raises:
    InputError: weights or images are not at hand, or the pool is large and its
      features are not in the cache.
  """
  config = settings_of(run, changes)
  plan = make_plan(config, prepare=False)
  finished.refuse_other_weights(
    finished.read_start(run.workdir), plan.pretrained
  )
  experiment = build.build(config, plan)
  pool = plan.dataset.train
  if len(pool) > MOST_COMPUTED and not feature_cache.is_cached(
    experiment, config, "train"
  ):
    raise InputError(
      f"the features of its {len(pool)} images are not in {plan.cache}"
    )
  rows = feature_cache.features(experiment, config, "train")
  values = sharding.fetch(rows, len(pool))
  index = {id_: row for row, id_ in enumerate(pool.ids)}
  if missing := [id_ for id_ in ids if id_ not in index]:
    raise InputError(f"the data set has no image {missing[0]}")
  return values[[index[id_] for id_ in ids]]
