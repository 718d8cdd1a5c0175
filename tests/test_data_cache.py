"""The cache notices values that were altered, and computes them again."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from cpeal_jax.data import cache, pools, store
from cpeal_jax.data.images import ImageSpec
from cpeal_jax.errors import InputError

SPEC = ImageSpec(size=16, resize=16)


def write(path, array, parts=1):
  with cache.atomic_file(path) as file:
    pieces = np.array_split(array, parts)
    cache.write_array(file, array.shape, array.dtype, pieces)


def flip(path, at):
  data = bytearray(path.read_bytes())
  data[at] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int32, np.bool_])
@pytest.mark.parametrize("parts", [1, 3, 7])
def test_an_array_comes_back(tmp_path, monkeypatch, dtype, parts):
  monkeypatch.setattr(cache, "BLOCK_BYTES", 64)
  array = np.arange(7 * 13).reshape(7, 13).astype(dtype)
  write(tmp_path / "x.npy", array, parts)
  np.testing.assert_array_equal(cache.read(tmp_path / "x.npy"), array)
  assert cache.read(tmp_path / "x.npy", (7, 13), dtype) is not None
  assert cache.read(tmp_path / "x.npy", (7, 12)) is None
  assert cache.read(tmp_path / "x.npy", None, np.float64) is None
  # Anybody can read it without us.
  np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), array)


def test_every_altered_byte_is_noticed(tmp_path, monkeypatch):
  monkeypatch.setattr(cache, "BLOCK_BYTES", 64)
  array = np.arange(60, dtype=np.float32).reshape(6, 10)
  path = tmp_path / "x.npy"
  write(path, array)
  for at in range(path.stat().st_size):
    flip(path, at)
    assert cache.read(path) is None, at
    flip(path, at)
  assert cache.read(path) is not None


def test_blocks_are_checked_when_they_are_read(tmp_path, monkeypatch):
  monkeypatch.setattr(cache, "BLOCK_BYTES", 40)
  array = np.arange(60, dtype=np.float32).reshape(6, 10)
  path = tmp_path / "x.npy"
  write(path, array)
  header = path.stat().st_size - array.nbytes - 4 * 7 - len(cache.MARK)
  flip(path, header + 130)  # in row 3
  kept = cache.open_array(path)
  np.testing.assert_array_equal(kept.rows(0, 3), array[:3])
  assert kept.rows(2, 4) is None
  np.testing.assert_array_equal(kept.rows(4, 99), array[4:])
  assert kept.rows(3, 3).shape == (0, 10)
  assert kept.checked == {0, 1, 2, 4, 5}


def split(n=10, size=20):
  contents = []
  for i in range(n):
    file = io.BytesIO()
    pixels = np.random.default_rng(i).integers(
      0, 256, (size, size, 3), np.uint8
    )
    Image.fromarray(pixels).save(file, "PNG")
    contents.append(file.getvalue())
  ids = [f"{i:03}.png" for i in range(n)]
  return pools.from_bytes("train", ids, [0] * n, contents.__getitem__)


def test_altered_pixels_are_decoded_again(tmp_path):
  want = store.open_store(split(), SPEC, cache_dir=tmp_path).rows(0, 10).copy()
  (pixels,) = (f for f in tmp_path.iterdir() if ".ok" not in f.name)
  flip(pixels, pixels.stat().st_size - 100)
  images = store.open_store(split(), SPEC, cache_dir=tmp_path)
  np.testing.assert_array_equal(images.rows(0, 10), want)
  assert not pixels.exists()
  # The next start builds the file anew.
  images = store.open_store(split(), SPEC, cache_dir=tmp_path)
  np.testing.assert_array_equal(images.rows(0, 10), want)
  assert pixels.exists()


def test_an_altered_mask_is_found_again(tmp_path):
  store.open_store(split(), SPEC, cache_dir=tmp_path)
  (mask,) = tmp_path.glob("*.ok.npy")
  data = bytearray(mask.read_bytes())
  at = bytes(data).index(b"\n") + 1
  data[at + 3] = 0  # image 3 would be taken for corrupt
  mask.write_bytes(data)
  assert store.open_store(split(), SPEC, cache_dir=tmp_path).ok.all()


def test_a_large_array_opens_at_once(tmp_path):
  """200 MB: only the header and the checksums are read."""
  path = tmp_path / "x.npy"
  with cache.atomic_file(path) as file:
    part = np.zeros((50, 1 << 20), np.uint8)
    cache.write_array(file, (200, 1 << 20), np.uint8, [part] * 4)
  begun = time.perf_counter()
  kept = cache.open_array(path, (200, 1 << 20), np.uint8)
  assert time.perf_counter() - begun < 0.5
  assert kept.rows(7, 9).shape == (2, 1 << 20)
  assert len(kept.checked) <= 2


def test_all_corrupt_images_of_a_split_are_named_with_the_key(tmp_path):
  whole = split(600, size=4)
  broken = {3, 300, 599}

  def read(index):
    return b"x" if index in broken else whole.read(index)

  images = pools.from_bytes("test", whole.ids, [0] * 600, read)
  with pytest.raises(InputError) as error:
    store.open_store(images, SPEC, cache_dir=tmp_path)
  assert "003.png, 300.png, 599.png" in str(error.value)
  assert "dataset.max_corrupt=3" in str(error.value)
  both = store.TooManyCorrupt([("train", ["a"]), ("test", ["b", "c"])], 0)
  assert "split 'train' cannot be decoded, more than the 0 allowed: a" in str(
    both
  )
  assert "split 'test' cannot be decoded, more than the 0 allowed: b, c" in str(
    both
  )
  assert str(both).count("dataset.max_corrupt=2") == 1


def test_altered_features_are_computed_again(tmp_path):
  """A file of the same size with other floats in it is not used."""
  import jax

  from cpeal_jax.parallel import sharding
  from cpeal_jax.run import feature_cache

  mesh = sharding.make_mesh(1)
  rows = jax.random.normal(jax.random.key(0), (64, 8))
  calls = []

  def compute():
    calls.append(1)
    return sharding.join(np.asarray(rows), mesh)

  def get():
    settings = {"total": 64, "mesh": mesh, "tile": 32}
    kept = feature_cache.cached(tmp_path, "key", compute, **settings)
    return np.asarray(kept)[:64]  # The rest is padding.

  np.testing.assert_array_equal(get(), rows)
  np.testing.assert_array_equal(get(), rows)
  assert len(calls) == 1
  (file,) = tmp_path.iterdir()
  flip(file, 128 + 4 * 8 * 5)
  np.testing.assert_array_equal(get(), rows)
  assert len(calls) == 2
  get()
  assert len(calls) == 2
