"""Times BADGE, CoreSet and weighted k-means against straightforward versions.

  python benchmarks/speed/selection_peers.py --out=runs/selection_peers.json
  python benchmarks/speed/selection_peers.py --threads=1,2
  python benchmarks/speed/selection_peers.py --small

The pools are those of `method_costs.py`: D = 512, 100 picks, 100 classes. The
ratio is the peer's seconds over ours. The calls of one run alternate, and
compilation is not included.

BADGE, 4,000 images: the peers are numpy and PyTorch programs that build every
gradient ([N, C D], 0.8 GB) within the measured time and read all of them at
each pick. All use the same Gumbel noise and must select the same picks; ours
draws the noise itself, while the peers are given it. Gate: 50 times as fast.

CoreSet, 13,500 images, 500 labeled: the peer is a numpy loop over the centers.
It computes distances from differences, as ours does, or from a matrix-vector
product, which is faster but not exact at ties. The picks must equal those of
the first. Gate: no slower.

Weighted k-means, 13,500 images, entropies as weights: the peer is
scikit-learn's Lloyd algorithm with one greedy seeding, the same maximum number
of iterations and the same tolerance. Each repeat has another seed. Gate: at
most 1.5 times its time and 1.02 times its inertia, as medians over ten seeds.
Both inertias are computed in float64.
"""

import statistics
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from method_costs import make_pool
from scipy import special
from timing import Row, has, in_turn, parser, run

from cpeal_jax import acquisition
from cpeal_jax.acquisition.kmeans import kmeans
from cpeal_jax.acquisition.scores import entropy

PICKS = 100


def noise(key: jax.Array, rows: int, picks: int) -> np.ndarray:
  """Returns the Gumbel noise that `badge` draws, [picks, rows]."""

  def at(step):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.fold_in(key, step), jnp.arange(rows)
    )
    return jax.vmap(jax.random.gumbel)(keys)

  return np.asarray(jax.jit(jax.vmap(at))(jnp.arange(picks)))


def gradients(pool: acquisition.PoolView) -> np.ndarray:
  """Returns each image's gradient of the cross entropy, [N, C D].

  The predicted class is taken as the label.
  """
  logits, features = np.asarray(pool.logits), np.asarray(pool.features)
  a = -special.softmax(logits, axis=1)
  a[np.arange(len(a)), logits.argmax(axis=1)] += 1
  return (a[:, :, None] * features[:, None, :]).reshape(len(a), -1)


def badge_numpy(pool: acquisition.PoolView, draws: np.ndarray) -> list[int]:
  """Runs k-means++ on stored gradients, with distances from products."""
  g, free = gradients(pool), ~np.asarray(pool.labeled)
  squares = np.einsum("nd,nd->n", g, g)
  picks = [int(np.argmax(np.where(free, squares, -1)))]
  nearest = np.full(len(g), np.inf, np.float32)
  for own in draws[1:]:
    j = picks[-1]
    apart = np.maximum(squares + squares[j] - 2 * (g @ g[j]), 0)
    nearest = np.minimum(nearest, apart)
    free[j] = False
    with np.errstate(divide="ignore"):
      drawn = np.where(free, np.log(nearest) + own, -np.inf)
    picks.append(int(np.argmax(drawn)))
  return picks


def badge_torch(pool: acquisition.PoolView, draws: np.ndarray) -> list[int]:
  """Runs the algorithm of `badge_numpy` in PyTorch."""
  import torch

  h, logits = torch.tensor(pool.features), torch.tensor(pool.logits)
  a = -torch.softmax(logits, 1)
  a[torch.arange(len(a)), logits.argmax(1)] += 1
  g = (a[:, :, None] * h[:, None, :]).flatten(1)
  free = torch.tensor(~pool.labeled)
  squares = torch.linalg.vector_norm(g, dim=1).square()
  picks = [int(torch.where(free, squares, -torch.ones(())).argmax())]
  nearest = torch.full((len(g),), torch.inf)
  for own in torch.tensor(draws)[1:]:
    j = picks[-1]
    apart = (squares + squares[j] - 2 * (g @ g[j])).clamp(min=0)
    nearest = torch.minimum(nearest, apart)
    free[j] = False
    drawn = torch.where(free, nearest.log() + own, -torch.inf)
    picks.append(int(drawn.argmax()))
  return picks


def coreset_numpy(
  pool: acquisition.PoolView, picks: int, products: bool
) -> list[int]:
  """Runs greedy k-center selection, one center after the other."""
  x, free = np.asarray(pool.features), ~np.asarray(pool.labeled)
  nearest = np.full(len(x), np.inf, np.float32)

  def see(j: int) -> None:
    apart = 2 - 2 * (x @ x[j]) if products else np.square(x - x[j]).sum(axis=1)
    np.minimum(nearest, apart, out=nearest)

  for j in np.flatnonzero(~free):
    see(int(j))
  chosen: list[int] = []
  for _ in range(picks):
    j = int(np.argmax(np.where(free, nearest, -np.inf)))
    chosen.append(j)
    free[j] = False
    see(j)
  return chosen


def badge(rows: int, repeats: int, picks: int) -> list[Row]:
  pool, key = make_pool(rows), jax.random.key(0)
  draws = noise(key, rows, picks)
  calls: dict[str, Any] = {
    "ours": lambda _: acquisition.select("badge", key, pool, picks).tolist(),
    "numpy": lambda _: badge_numpy(pool, draws),
  }
  if has("torch"):
    calls["PyTorch"] = lambda _: badge_torch(pool, draws)
  seconds, found = in_turn(calls, repeats)
  c, d = pool.logits.shape[1], pool.features.shape[1]
  case = f"BADGE, N={rows:,}, C={c}, D={d}, {picks} picks"
  return [
    row(case, name, seconds, 50, {"equal picks": found[name] == found["ours"]})
    for name in list(calls)[1:]
  ]


def coreset(rows: int, repeats: int, picks: int) -> list[Row]:
  pool, key = make_pool(rows), jax.random.key(0)
  calls: dict[str, Any] = {
    "ours": lambda _: acquisition.select("coreset", key, pool, picks).tolist(),
    "numpy": lambda _: coreset_numpy(pool, picks, products=False),
    "numpy, products": lambda _: coreset_numpy(pool, picks, products=True),
  }
  seconds, found = in_turn(calls, repeats)
  labels, d = int(pool.labeled.sum()), pool.features.shape[1]
  case = f"CoreSet, N={rows:,}, D={d}, {labels} labeled, {picks} picks"
  same = {name: answer[0] == found["ours"][0] for name, answer in found.items()}
  return [
    row(case, "numpy", seconds, 1, {"equal picks": same["numpy"]}),
    row(
      case,
      "numpy, products",
      seconds,
      1,
      {"picks": "equal" if same["numpy, products"] else "others"},
    ),
  ]


def clusters(rows: int, repeats: int, count: int) -> list[Row]:
  if not has("sklearn"):
    return []
  from sklearn.cluster import KMeans

  pool = make_pool(rows)
  x = np.asarray(pool.features)
  w = np.asarray(entropy(pool))
  on_device = jnp.asarray(x), jnp.asarray(w)

  def ours(seed: int) -> np.ndarray:
    key = jax.random.key(seed)
    found = kmeans(key, *on_device, np.int32(count), size=count)
    jax.block_until_ready(found)
    return np.asarray(found.centers)

  def theirs(seed: int) -> np.ndarray:
    # One greedy k-means++ seeding and Lloyd's algorithm are the defaults.
    own = KMeans(count, max_iter=100, random_state=seed)
    return own.fit(x, sample_weight=w).cluster_centers_

  calls = {"ours": ours, "scikit-learn": theirs}
  seconds, found = in_turn(calls, repeats)
  inertias = {
    name: statistics.median(inertia(x, w, centers) for centers in answers)
    for name, answers in found.items()
  }
  share = inertias["ours"] / inertias["scikit-learn"]
  notes = {"inertia, ours / theirs": round(share, 4), "fits": share <= 1.02}
  case = f"weighted k-means, N={rows:,}, D={x.shape[1]}, K={count}"
  return [row(case, "scikit-learn", seconds, 1 / 1.5, notes)]


def inertia(x: np.ndarray, w: np.ndarray, centers: np.ndarray) -> float:
  x, centers = x.astype(np.float64), centers.astype(np.float64)
  apart = (x**2).sum(1)[:, None] + (centers**2).sum(1) - 2 * x @ centers.T
  return float(w @ apart.min(axis=1))


def row(
  case: str, peer: str, seconds: dict, gate: float, notes: dict[str, Any]
) -> Row:
  return Row(case, peer, seconds["ours"], seconds[peer], gate, notes)


PARTS = {"badge": badge, "coreset": coreset, "kmeans": clusters}


def measure(_: Any, part: str, *sizes: int) -> list[Row]:
  return PARTS[part](*sizes)


def jobs(small: bool, repeats: int) -> list[tuple[str, int, int, int]]:
  """Returns jobs: the part, images, repeats, and picks or clusters."""
  if small:
    return [
      ("badge", 600, 1, 20),
      ("coreset", 2000, 1, 20),
      ("kmeans", 2000, 2, 10),
    ]
  return [
    ("badge", 4000, repeats, PICKS),
    ("coreset", 13500, repeats, PICKS),
    ("kmeans", 13500, max(repeats, 10), 10),
    ("kmeans", 13500, max(repeats, 10), PICKS),
  ]


def main() -> int:
  flags = parser(__doc__)
  flags.add_argument("--only", default=",".join(PARTS))
  own = flags.parse_args()
  only = own.only.split(",")
  chosen = [job for job in jobs(own.small, own.repeats) if job[0] in only]
  return run(own, measure, chosen)


if __name__ == "__main__":
  sys.exit(main())
