"""Computes the features of a frozen image tower once, and caches them on disk.

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
from cpeal_jax.models import fused_attention
from cpeal_jax.neighbors import SPARE
from cpeal_jax.parallel import processes, rowwise, sharding
from cpeal_jax.progress import stage
from cpeal_jax.run import precompile
from cpeal_jax.run.build import Experiment

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
  """Reads rows from a file in `directory`, or computes and writes them.

  With several processes, each has a file with the rows of its own devices. A
  file is written under a temporary name and then renamed, so that a reader sees
  all of it or nothing.

  Args:
    directory: directory of the cache.
    key: text of everything that the rows depend on; the file is named after its
      hash.
    compute: function that returns `total` rows, split over the mesh and padded.
    total, mesh, tile: as in `scoring.by_chunks`.

  Raises:
    InputError: the file cannot be written.
  """
  padded = sharding.padded(total, mesh.devices.size, 2 * tile)
  share = sharding.own_rows(mesh, padded)
  # The file has no rows of padding.
  count = max(0, min(share.stop, total) - share.start)
  if jax.process_count() > 1:
    key += f"|{count} rows from {share.start}"
  path = _path(directory, key)
  stored = cache.read(path)
  # Either all processes read or all compute, since all of them have to take
  # part in the computation.
  if processes.everywhere(stored is not None):
    rows = scoring.fill_up(cast("np.ndarray", stored), share.stop - share.start)
    return sharding.join(rows, mesh)
  answer = compute()
  try:
    directory.mkdir(parents=True, exist_ok=True)
    cache.remove_leftovers(directory)
    with cache.atomic_file(path) as file:
      rows = sharding.own_part(answer)[:count]
      cache.write_array(file, rows.shape, rows.dtype, [rows])
  except OSError as error:
    raise InputError(
      f"cannot write the cache in {directory}: {error.strerror}; make room, or "
      "choose another cache_dir."
    ) from error
  return answer


def _path(directory: Path, key: str) -> Path:
  digest = hashlib.sha256(f"{CACHE_VERSION}|{key}".encode())
  return directory / f"features-{digest.hexdigest()[:32]}.npy"


def is_cached(
  experiment: Experiment, config: config_lib.Config, split: str
) -> bool:
  """Returns whether a run of one process left the features of a split."""
  key = key_of(experiment, config, split)
  return _path(experiment.plan.cache, key).exists()


def key_of(
  experiment: Experiment, config: config_lib.Config, split: str
) -> str:
  """Returns the key of a split's pretrained features in the cache.

  It is a text of everything that they depend on.
  """
  plan = experiment.plan
  # In float32 attention is the same everywhere.
  fused = config.model.dtype != "float32" and fused_attention.in_use()
  return "|".join(
    (
      plan.pretrained.sha256,
      getattr(plan.dataset, split).fingerprint,
      repr(plan.spec),
      str(config.model.dtype),
      str(experiment.scorer.tile),
      jax.default_backend(),
      jax.__version__,
      *["fused attention"] * fused,
    )
  )


def _kept(
  experiment: Experiment, key: str, split: str, compute: Callable
) -> jax.Array:
  """Returns `cached` rows, and keeps them on the devices during the run."""
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
  """Returns the cached features of a split by the pretrained image tower."""
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
  """Returns each image's nearest neighbors in the whole pool, cached on disk.

  While the image tower is frozen, only the labels change from round to round.
  So the list is longer than scoring.neighbors asks for, and in each round
  `neighbors.narrow` skips the labeled images in it.

  Returns:
    (indices [N, K], similarities [N, K]), where K is scoring.neighbors plus
    `SPARE`.
  """
  total = len(experiment.plan.dataset.train)
  wide = config.scoring.neighbors + SPARE
  scorer = experiment.zero_scorer

  def compute() -> jax.Array:
    rows = features(experiment, config, "train")
    with stage("neighbors", total, "images") as advance:
      all_images = np.ones(total, bool)
      where = sharding.place(all_images, scorer.mesh, to=len(rows))
      nearest = scorer.neighbors(rows, where, wide, total=total)
      jax.block_until_ready(nearest)
      advance(total)
    return _as_one(nearest)

  key = key_of(experiment, config, "train") + f"|neighbors {wide}"
  if total > config.scoring.neighbors_exact:
    key += f"|recall {config.scoring.neighbors_recall}"
  return _as_two(_kept(experiment, key, "train", compute))


# Indices and similarities go into one file as an int32 array [N, 2, K], which
# holds the indices and beside them the bits of the float32 similarities.
@rowwise.per_device(rows=("found",), out=rowwise.ROWS)
def _as_one(found):
  indices, similarities = found
  bits = jax.lax.bitcast_convert_type(similarities, jnp.int32)
  return jnp.stack([indices, bits], axis=1)


@rowwise.per_device(rows=("both",), out=rowwise.ROWS)
def _as_two(both):
  values = jax.lax.bitcast_convert_type(both[:, 1], jnp.float32)
  return both[:, 0], values
