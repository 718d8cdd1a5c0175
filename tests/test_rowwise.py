"""What a per-device function may ask about all rows, on 1 to 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpeal_jax.acquisition.kmeans import kmeans
from cpeal_jax.acquisition.methods.coreset import k_center
from cpeal_jax.parallel import numbered, rowwise, sharding

every_count = pytest.mark.parametrize("devices", [1, 2, 3, 8])


def rows(devices, *columns):
  mesh = sharding.make_mesh(devices)
  return [sharding.place(x, mesh) for x in columns]


def asked(body, columns, devices, out=rowwise.WHOLE, **whole):
  run = rowwise.per_device(rows=("columns",), out=out)(
    lambda columns, whole: body(*columns, **whole)
  )
  return jax.tree.map(np.asarray, run(rows(devices, *columns), whole))


@every_count
@pytest.mark.parametrize("count", [5, 64, 1000])
def test_answers_are_those_of_the_whole(devices, count):
  rng = np.random.default_rng(count)
  x = rng.normal(size=(count, 3)).astype(np.float32)
  values = rng.integers(0, 9, count).astype(np.float32)  # with ties
  where = values > 3
  which = rng.integers(0, count, 7)

  def body(x, values, where, number, which):
    real = number > 0
    highest = jnp.where(real, values, -jnp.inf)
    many, number_of = numbered.selected_rows(where)
    return {
      "total": rowwise.total(lambda x: x.sum(axis=0), x),
      "top": numbered.top(highest, 5),
      "argmax": numbered.argmax(highest),
      "at": numbered.take(x, which),
      "count": rowwise.count_true(where),
      "listed": (many, number_of(jnp.arange(4))),
      "any": (rowwise.any_true(where), rowwise.any_true(where & ~where)),
      "each": rowwise.gather(rowwise.each(lambda x: jnp.square(x), x)),
      "without": rowwise.gather(numbered.clear_rows(real, which)),
      "scatter": rowwise.gather(
        numbered.scatter(jnp.arange(7.0), which, len(values))
      ),
    }

  got = asked(
    body, (x, values, where, np.ones(count, int)), devices, which=which
  )
  np.testing.assert_allclose(got["total"], x.sum(axis=0), atol=1e-4)
  order = np.argsort(-values, kind="stable")[:5]
  np.testing.assert_array_equal(got["top"][1], order)
  np.testing.assert_array_equal(got["top"][0], values[order])
  assert got["argmax"] == order[0]
  np.testing.assert_array_equal(got["at"], x[which])
  there = np.flatnonzero(where)
  assert got["count"] == got["listed"][0] == len(there)
  few = min(4, len(there))
  np.testing.assert_array_equal(got["listed"][1][:few], there[:few])
  assert got["any"] == (where.any(), False)
  np.testing.assert_array_equal(got["each"][:count], np.square(x))
  left = np.isin(np.arange(count), which, invert=True)
  np.testing.assert_array_equal(got["without"][:count], left)
  values = np.zeros(count)
  values[which] = np.arange(7)
  np.testing.assert_array_equal(got["scatter"][:count], values)


def test_bits_of_sums_do_not_depend_on_devices():
  x = np.random.default_rng(0).normal(size=(5000, 17)).astype(np.float32)
  sums = [
    asked(
      lambda x: rowwise.total(lambda x: jnp.exp(x).sum(axis=0), x),
      (x,),
      devices,
    )
    for devices in (1, 2, 4, 8)
  ]
  for other in sums[1:]:
    np.testing.assert_array_equal(other, sums[0])


@every_count
def test_draws_follow_the_chances(devices):
  chances = np.zeros(40, np.float32)
  chances[[3, 17, 39]] = 1, 2, 5

  def body(x, key):
    return numbered.draw(key, x, x > 0, 4000)

  got = asked(body, (chances,), devices, key=jax.random.key(1))
  share = np.bincount(got, minlength=40) / 4000
  np.testing.assert_allclose(share, chances / 8, atol=0.03)
  assert set(got.tolist()) == {3, 17, 39}

  def nothing(x, key):
    return numbered.draw(key, 0 * x, x > 0, 3)

  # Without any chance: the last that is meant, never padding.
  got = asked(nothing, (chances,), devices, key=jax.random.key(1))
  assert got.tolist() == [39, 39, 39]


def test_what_is_placed_stays_where_it_is():
  """Also where the blocks are of another unit than the default's."""
  mesh, x = sharding.make_mesh(2), np.ones((9000, 2), np.float32)
  there = sharding.place(x, mesh, to=sharding.padded(9000, 2, 4))
  assert sharding.padded(9000, 2) > len(there) > 9000
  columns = {"x": there, "mask": np.ones(9000, bool)}
  double = rowwise.per_device(rows=("columns",), out=rowwise.ROWS)(
    lambda columns: columns["x"] * 2 + columns["mask"][:, None]
  )
  got = double(columns)
  assert len(got) == len(there)
  np.testing.assert_array_equal(got[:9000], 3)


@pytest.mark.parametrize("count", [1, 7, 64, 9000])
def test_rows_by_number_on_the_host(count):
  x = np.random.default_rng(0).normal(size=(count, 2))
  which = np.random.default_rng(1).integers(0, count, min(count, 700))
  for devices in (1, 8):
    got = numbered.rows_at(rows(devices, x.astype(np.float32))[0], which)
    np.testing.assert_array_equal(got, x.astype(np.float32)[which])
  assert numbered.rows_at(x, which[:0]).shape == (0, 2)


def needs(devices, count):
  """Bytes a device of what selects: arguments and temporaries."""
  mesh = sharding.make_mesh(devices)

  def row(*shape, dtype=np.float32):
    split = sharding.split_rows(mesh)
    return jax.ShapeDtypeStruct((count, *shape), dtype, sharding=split)

  mask, points = row(dtype=bool), row(64)
  options = {"iterations": 9, "restarts": 1, "size": 9, "tolerance": 0.1}
  for run, whole, split in (
    (
      k_center.program(mesh, (("n", 9),)),
      {},
      {"features": points, "anchors": mask, "free": mask},
    ),
    (
      kmeans.program(mesh, tuple(sorted(options.items()))),
      {"key": jax.random.key(0), "count": np.int32(9)},
      {"points": points, "weights": row()},
    ),
  ):
    compiled = run.lower(np.int32(1), whole, split).compile()
    used = compiled.memory_analysis()
    yield used.argument_size_in_bytes + used.temp_size_in_bytes


@pytest.mark.slow
def test_memory_of_selecting_grows_by_a_devices_share():
  grown = {
    p: np.subtract(list(needs(p, 1 << 16)), list(needs(p, 1 << 15)))
    for p in (1, 2, 8)
  }
  for devices, own in grown.items():
    assert (own <= 1.15 / devices * grown[1]).all(), grown
