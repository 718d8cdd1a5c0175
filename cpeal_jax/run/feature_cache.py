"""Features of a frozen image tower: computed once and cached on disk.

While only prompts, the text tower or a head are trained, neither the features
of an image nor its nearest neighbors change from round to round or run to run.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from cpeal_jax import config as config_lib
from cpeal_jax import scoring
from cpeal_jax.data import cache
from cpeal_jax.errors import InputError
from cpeal_jax.parallel import processes, rowwise, sharding
from cpeal_jax.progress import stage
from cpeal_jax.run import precompile
from cpeal_jax.run.build import Experiment

# Neighbors kept beyond scoring.neighbors, since labeled ones are skipped later.
SPARE_NEIGHBORS = 30
CACHE_VERSION = 4


def cached(
  directory: Path,
  key: str,
  compute: Callable[[], Array],
  *,
  total: int,
  mesh: jax.sharding.Mesh,
  tile: int,
) -> Shaped[Array, "N ..."]:
  """Returns what `compute` returns, and keeps it in a file of `directory`.

  With several processes, each keeps the rows of its own devices. The file is
  written aside and renamed, so that a reader sees all of it or nothing.

  Args:
    directory: the cache's.
    key: everything that the rows depend on; its hash names the file.
    compute: returns `total` rows, split over the mesh and padded.
    total, mesh, tile: as in `scoring.by_chunks`.

  Raises:
    InputError: the file cannot be written.
  """
  padded = sharding.padded(total, mesh.devices.size, 2 * tile)
  share = sharding.own_rows(mesh, padded)
  # Padding is not kept.
  count = max(0, min(share.stop, total) - share.start)
  if jax.process_count() > 1:
    key += f"|{count} rows from {share.start}"
  digest = hashlib.sha256(f"{CACHE_VERSION}|{key}".encode())
  path = directory / f"features-{digest.hexdigest()[:32]}.npy"
  kept = cache.read(path)
  # All processes read or all compute, since computing is a pass that every
  # process has to enter.
  if processes.everywhere(kept is not None):
    rows = scoring.fill_up(cast("np.ndarray", kept), share.stop - share.start)
    return sharding.join(rows, mesh)
  answer = compute()
  try:
    directory.mkdir(parents=True, exist_ok=True)
    cache.sweep(directory)
    with cache.aside(path) as file:
      np.save(file, sharding.own_part(answer)[:count])
  except OSError as error:
    raise InputError(
      f"cannot write the cache in {directory}: {error.strerror}; make room, or "
      "choose another cache_dir."
    ) from error
  return answer


def key_of(
  experiment: Experiment, config: config_lib.Config, split: str
) -> str:
  """Everything that a split's features of the pretrained tower depend on."""
  plan = experiment.plan
  return "|".join(
    (
      plan.pretrained.sha256,
      getattr(plan.dataset, split).fingerprint,
      repr(plan.spec),
      str(config.model.dtype),
      str(experiment.scorer.tile),
      jax.default_backend(),
      jax.__version__,
    )
  )


def _kept(
  experiment: Experiment, key: str, split: str, compute: Callable
) -> jax.Array:
  """Rows that do not change during a run: kept on the devices and on disk."""
  if key not in experiment.cached_rows:
    scorer = experiment.zero_scorer
    experiment.cached_rows[key] = cached(
      experiment.plan.cache,
      key,
      compute,
      total=len(experiment.stores[split]),
      mesh=scorer.mesh,
      tile=scorer.tile,
    )
  return experiment.cached_rows[key]


def features(
  experiment: Experiment, config: config_lib.Config, split: str
) -> jax.Array:
  """The pretrained image tower's features of a split, cached on disk."""
  pixels = experiment.stores[split]

  def compute() -> jax.Array:
    with stage(f"encode {split}", len(pixels), "images") as advance:
      precompile.wait_for(experiment.compiled, "encode")
      return scoring.encode_pool(
        experiment.zero_scorer, experiment.params, {}, pixels, progress=advance
      )

  return _kept(experiment, key_of(experiment, config, split), split, compute)


def neighbors(
  experiment: Experiment, config: config_lib.Config
) -> tuple[jax.Array, jax.Array]:
  """A wide list of each image's neighbors in the whole pool, cached on disk.

  While the image tower is frozen, only the labels change from round to round:
  `neighbors.narrow` skips the labeled images in this list.

  Returns:
    (indices [N, K], similarities [N, K]) with K = scoring.neighbors and
    `SPARE_NEIGHBORS` more.
  """
  total = len(experiment.plan.dataset.train)
  wide = config.scoring.neighbors + SPARE_NEIGHBORS
  scorer = experiment.zero_scorer

  def compute() -> jax.Array:
    rows = features(experiment, config, "train")
    with stage("neighbors", total, "images") as advance:
      everyone = np.ones(total, bool)
      where = sharding.place(everyone, scorer.mesh, to=len(rows))
      found = scorer.neighbors(rows, where, wide, total=total)
      jax.block_until_ready(found)
      advance(total)
    return _as_one(found)

  key = key_of(experiment, config, "train") + f"|neighbors {wide}"
  return _as_two(_kept(experiment, key, "train", compute))


# Indices and similarities go into one file, as int32: the bits of a float32 are
# kept beside the indices, [N, 2, K].
@rowwise.per_device(rows=("found",), out=rowwise.ROWS)
def _as_one(found):
  indices, similarities = found
  bits = jax.lax.bitcast_convert_type(similarities, jnp.int32)
  return jnp.stack([indices, bits], axis=1)


@rowwise.per_device(rows=("both",), out=rowwise.ROWS)
def _as_two(both):
  values = jax.lax.bitcast_convert_type(both[:, 1], jnp.float32)
  return both[:, 0], values
