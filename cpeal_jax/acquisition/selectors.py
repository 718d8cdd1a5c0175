"""Selectors: functions that choose the `n` images to label next, best first.

A selector has the signature (key, pool, n) -> Picks. It may assume that its
inputs are finite and that n is at most the number of unlabeled images;
`choose` checks both.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.pool import Picks, PoolView, on_host, placed
from cpeal_jax.parallel import numbered, rowwise
from cpeal_jax.parallel.rowwise import ROWS, WHOLE

Score = Callable[[PoolView], Float[Array, " N"]]
# (key, pool, n, *, hyperparameters) -> Picks.
Selector = Callable[..., Picks]


def selector(body: Selector) -> Selector:
  """Decorates and compiles a selector that is written for one device's rows.

  Inside `body` the arrays of the pool are the rows of one device; the functions
  of `parallel.rowwise` compute what depends on the rows of all devices. The
  indices that `body` returns count over the rows of all devices, its `parts`
  must be the same on every device, and its `columns` have one value per row of
  the device. n and the hyperparameters are static: each combination is compiled
  once.
  """

  @functools.cache
  def compiled(n: int, total: int, options: tuple) -> Callable:
    @rowwise.per_device(rows=("rows",), out=(WHOLE, ROWS))
    def run(key: PRNGKeyArray, replicated: dict, rows: dict) -> Any:
      pool = PoolView(**replicated, **rows, total=total)
      picks = body(key, pool, n, **dict(options))
      indices = picks.indices.astype(jnp.int32)
      return (indices, picks.parts), picks.columns

    return run

  @functools.wraps(body)
  def select(key: PRNGKeyArray, pool: PoolView, n: int, **hyper) -> Picks:
    placed_pool = placed(pool)
    run = compiled(n, placed_pool.images, tuple(sorted(hyper.items())))
    (indices, parts), columns = run(
      key, placed_pool.replicated(), placed_pool.rows()
    )
    return unpad_columns(Picks(indices, parts, columns), pool)

  vars(select)["compiled"] = compiled
  return select


def unpad_columns(picks: Picks, pool: PoolView) -> Picks:
  """Removes padding rows from the columns if the caller's pool had none.

  Args:
    picks: the answer for the placed pool, whose rows may be padded.
    pool: the pool as the caller passed it. If it was placed already
      (`total` is set), the columns stay padded on the devices, as its rows are.
  """
  if pool.total is not None:
    return picks
  columns = {name: on_host(x, pool) for name, x in picks.columns.items()}
  return dataclasses.replace(picks, columns=columns)


def best(
  values: Float[Array, " N"], pool: PoolView, n: int
) -> Int[Array, " n"]:
  """Returns the indices of the n highest values among the unlabeled images.

  The highest value comes first. On a tie the lower index wins.
  """
  return numbered.top(jnp.where(pool.labeled, -jnp.inf, values), n)[1]


def by_score(score: Score) -> Selector:
  """Makes a selector that takes the images of the highest score.

  Args:
    score: maps a pool to one number per row. It must work row by row, because
      it is called on blocks of rows.
  """

  @selector
  def select(key, pool, n):
    del key  # Deterministic; kept so that all selectors share a signature.
    values = score_rows(score, pool)
    return Picks(best(values, pool, n), columns={"score": values})

  return select


def score_rows(score: Callable, pool: PoolView) -> Any:
  """Computes a row-wise function of the pool, one block of rows at a time."""
  return rowwise.each(
    lambda rows: score(dataclasses.replace(pool, **rows)), pool.rows()
  )


@selector
def random(key: PRNGKeyArray, pool: PoolView, n: int) -> Picks:
  """Draws uniformly without replacement: the baseline.

  Each image draws its own noise from (key, index), so the draw does not
  depend on the number of images or on the device that an image is on.
  """
  return Picks(best(noise(key, pool), pool, n))


def noise(key: PRNGKeyArray, pool: PoolView) -> Float[Array, " N"]:
  """Draws a number in [0, 1) for each image, from the key and its index."""
  draw = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))
  return draw(numbered.ids(pool.labeled))
