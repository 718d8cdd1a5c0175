"""From scores to picks: the `n` images to label next, best first.

A selector is a function (key, pool, n) -> Picks. It may assume finite inputs
and n <= unlabeled images: `choose` checks both.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.pool import Picks, PoolView, on_host, placed
from cpeal_jax.parallel import rowwise
from cpeal_jax.parallel.rowwise import ROWS, WHOLE

Score = Callable[[PoolView], Float[Array, " N"]]
# (key, pool, n, *, hyperparameters) -> Picks.
Selector = Callable[..., Picks]


def selector(body: Selector) -> Selector:
  """Compiles a selector whose body is written for one device's rows.

  Indices are numbers among all rows; `parts` are the same on every device,
  `columns` are rows. n and the hyperparameters are static. See
  `parallel.rowwise`.
  """

  @functools.cache
  def compiled(n: int, total: int, options: tuple) -> Callable:
    @rowwise.per_device(rows=("rows",), out=(WHOLE, ROWS))
    def run(key: PRNGKeyArray, whole: dict, rows: dict) -> Any:
      pool = PoolView(**whole, **rows, total=total)
      picks = body(key, pool, n, **dict(options))
      indices = picks.indices.astype(jnp.int32)
      return (indices, picks.parts), picks.columns

    return run

  @functools.wraps(body)
  def select(key: PRNGKeyArray, pool: PoolView, n: int, **hyper) -> Picks:
    there = placed(pool)
    whole = {
      "class_embeddings": there.class_embeddings,
      "logit_scale": there.logit_scale,
    }
    run = compiled(n, there.images, tuple(sorted(hyper.items())))
    (indices, parts), columns = run(key, whole, there.rows())
    return unpad_columns(Picks(indices, parts, columns), pool)

  vars(select)["compiled"] = compiled
  return select


def unpad_columns(picks: Picks, pool: PoolView) -> Picks:
  """Columns without padding that the pool did not have."""
  if pool.total is not None:
    return picks
  columns = {name: on_host(x, pool) for name, x in picks.columns.items()}
  return dataclasses.replace(picks, columns=columns)


def best(
  values: Float[Array, " N"], pool: PoolView, n: int
) -> Int[Array, " n"]:
  """The n highest unlabeled values; ties go to the lower index."""
  return rowwise.top(jnp.where(pool.labeled, -jnp.inf, values), n)[1]


def by_score(score: Score) -> Selector:
  """The selector that takes the highest scores of a row-wise function."""

  @selector
  def select(key, pool, n):
    del key  # Deterministic; kept so that all selectors share a signature.
    values = score_rows(score, pool)
    return Picks(best(values, pool, n), columns={"score": values})

  return select


def score_rows(score: Callable, pool: PoolView) -> Any:
  """A row-wise function of the pool, on one block of rows at a time."""
  return rowwise.each(
    lambda rows: score(dataclasses.replace(pool, **rows)), pool.rows()
  )


@selector
def random(key: PRNGKeyArray, pool: PoolView, n: int) -> Picks:
  """Uniform without replacement: the baseline.

  Each image draws its own noise from (key, index), so the draw does not
  depend on how many others there are or on which device they sit.
  """
  return Picks(best(noise(key, pool), pool, n))


def noise(key: PRNGKeyArray, pool: PoolView) -> Float[Array, " N"]:
  """A uniform number per image, from the key and the image's index."""
  own = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))
  return own(rowwise.ids(pool.labeled))
