"""Pixels: the processor's, the store's, and the training batches'."""

import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from cpeal_jax.data import batches, cache, pools, store, workers
from cpeal_jax.data.augment import augment, crop_box
from cpeal_jax.data.images import (
  CorruptImage,
  ImageSpec,
  decode,
  image_spec,
  preprocess,
)
from cpeal_jax.errors import InputError

SPEC = ImageSpec(size=16, resize=16)


def noise(width, height, seed=0, mode="RGB"):
  rng = np.random.default_rng(seed)
  bands = len(Image.new(mode, (1, 1)).getbands())
  pixels = rng.integers(0, 256, (height, width, bands), np.uint8)
  return Image.fromarray(
    pixels.squeeze(-1) if bands == 1 else pixels, mode=None
  )


def encoded(image, format_="PNG", **settings):
  file = io.BytesIO()
  image.save(file, format_, **settings)
  return file.getvalue()


def split_of(contents):
  ids = [f"{i:03}.png" for i in range(len(contents))]
  labels = [i % 3 for i in range(len(contents))]
  return pools.from_bytes("train", ids, labels, lambda i: contents[i])


def small_split(n=10, corrupt=()):
  contents = [encoded(noise(20 + i, 18, seed=i)) for i in range(n)]
  for i in corrupt:
    contents[i] = contents[i][: len(contents[i]) // 2]
  return split_of(contents)


# ---- images


def palette_with_transparency():
  image = noise(30, 20, mode="L").convert("P")
  image.info["transparency"] = bytes(range(256))
  return encoded(image)


# Gray of 16 bits is not among them: the processor turns it white. See
# test_data_formats.
ODD_IMAGES = {
  "grey": encoded(noise(31, 20, mode="L")),
  "grey-alpha": encoded(noise(31, 20, mode="LA")),
  "alpha": encoded(noise(20, 31, mode="RGBA")),
  "palette": encoded(noise(30, 20).convert("P")),
  "palette-transparent": palette_with_transparency(),
  "bilevel": encoded(noise(30, 20, mode="L").convert("1")),
  "cmyk": encoded(noise(30, 20).convert("CMYK"), "JPEG"),
  "rotated": encoded(
    noise(30, 20),
    "JPEG",
    exif=b"Exif\0\0MM\0*\0\0\0\x08"
    b"\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
  ),
  "gif": encoded(noise(30, 20), "GIF"),
  "webp": encoded(noise(30, 20), "WEBP"),
  "tiff": encoded(noise(30, 20), "TIFF"),
}


@pytest.mark.parametrize("name", ODD_IMAGES)
@pytest.mark.parametrize("size", [16, 25])
def test_preprocess_is_the_processors(name, size):
  data = ODD_IMAGES[name]
  processor = CLIPImageProcessorPil(
    size={"shortest_edge": size + 3},
    crop_size={"height": size, "width": size},
    do_rescale=False,
    do_normalize=False,
  )
  expected = processor(Image.open(io.BytesIO(data)))["pixel_values"][0]
  got = preprocess(decode(data), ImageSpec(size=size, resize=size + 3))
  assert got.dtype == np.uint8
  np.testing.assert_array_equal(got, expected.transpose(1, 2, 0))


def test_preprocess_sizes_sweep():
  for width, height in [(1, 1), (224, 224), (37, 91), (300, 17), (64, 63)]:
    image = noise(width, height)
    expected = CLIPImageProcessorPil(do_rescale=False, do_normalize=False)(
      image
    )["pixel_values"][0]
    np.testing.assert_array_equal(
      preprocess(image, ImageSpec()), expected.transpose(1, 2, 0)
    )


def test_preprocess_stretches():
  image = noise(40, 20)
  got = preprocess(image, ImageSpec(size=16, resize=16, stretch=True))
  expected = image.resize((16, 16), Image.Resampling.BICUBIC)
  np.testing.assert_array_equal(got, expected)


def png_claiming(width, height):
  data = bytearray(encoded(noise(8, 8)))
  data[16:24] = width.to_bytes(4) + height.to_bytes(4)
  # The header's checksum, so that only the size is wrong.
  data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
  return bytes(data)


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"not an image",
    encoded(noise(50, 50), "JPEG")[:-200],
    encoded(noise(50, 50))[:-200],
    encoded(noise(50, 50))[:20],
    png_claiming(60_000, 60_000),
  ],
)
def test_bad_bytes_are_corrupt(data):
  with pytest.raises(CorruptImage) as raised:
    decode(data)
  assert str(raised.value)
  assert "\n" not in str(raised.value)


def test_a_thread_of_an_image_is_corrupt():
  with pytest.raises(CorruptImage, match="1 x 9000 pixels"):
    preprocess(Image.new("RGB", (1, 9000)), ImageSpec())


def write_config(tmp_path, **settings):
  path = tmp_path / "preprocessor_config.json"
  path.write_text(json.dumps(settings))
  return path


def test_image_spec(tmp_path):
  path = write_config(tmp_path, size={"shortest_edge": 256}, crop_size=224)
  assert image_spec(path) == ImageSpec(224, 256)
  path = write_config(tmp_path, size=64, image_mean=[0, 0, 0], resample=2)
  assert image_spec(tmp_path) == ImageSpec(64, 64, False, 2, (0.0, 0.0, 0.0))
  square = {"height": 96, "width": 96}
  path = write_config(tmp_path, size=square, do_center_crop=False)
  assert image_spec(path) == ImageSpec(96, 96, stretch=True)
  path = write_config(tmp_path, size=100, crop_size=square)
  assert image_spec(path) == ImageSpec(96, 100)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"size": {"height": 9, "width": 8}}, "size is .* supported: S, "),
    ({"size": {"shortest_edge": 9, "longest_edge": 12}}, "size is"),
    ({"size": "big"}, "size is 'big'"),
    ({"size": 9, "crop_size": {"height": 9, "width": 8}}, "crop_size is"),
    ({"size": 9, "crop_size": 10}, "cannot crop 10 pixels"),
    ({"size": 9, "do_center_crop": False}, "do_center_crop is False"),
    ({"do_normalize": False}, "do_normalize is False; supported: true"),
    ({"rescale_factor": 1 / 127.5}, "rescale_factor is"),
    ({"resample": 9}, "resample is 9; supported: 0 to 5"),
    ({"image_std": [1, 1]}, "image_std is .* three numbers"),
  ],
)
def test_image_spec_refuses(tmp_path, settings, message):
  with pytest.raises(InputError, match=message):
    image_spec(write_config(tmp_path, **settings))


def test_image_spec_refuses_files(tmp_path):
  with pytest.raises(InputError, match=r"cannot read .*: No such file"):
    image_spec(tmp_path)
  path = write_config(tmp_path)
  for content in ("{", "[]"):
    path.write_text(content)
    with pytest.raises(InputError, match="JSON"):
      image_spec(path)


# ---- store


def expected_rows(split):
  return np.stack([preprocess(split.open(i), SPEC) for i in range(len(split))])


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0])
def test_store(tmp_path, monkeypatch, limit_bytes):
  monkeypatch.setattr(store, "BLOCK", 4)
  split, done = small_split(), []
  settings = dict(cache_dir=tmp_path / "new", limit_bytes=limit_bytes)
  built = store.open_store(split, SPEC, **settings, progress=done.append)
  assert done == [4, 4, 2]
  again = store.open_store(split, SPEC, **settings, progress=done.append)
  assert len(done) == 3
  for images in (built, again):
    assert len(images) == 10
    assert images.ok.all()
    np.testing.assert_array_equal(images.rows(0, 10), expected_rows(split))
    np.testing.assert_array_equal(images.rows(3, 99), expected_rows(split)[3:])
  files = list((tmp_path / "new").iterdir())
  assert len(files) == (2 if limit_bytes else 1)
  assert not any(file.suffix == ".tmp" for file in files)


@pytest.mark.parametrize(("small", "count"), [(0, os.cpu_count()), (1e9, 1)])
def test_small_images_are_decoded_by_one_thread(
  tmp_path, monkeypatch, small, count
):
  monkeypatch.setattr(workers, "SMALL_SECONDS", small)
  monkeypatch.setattr(store, "IMAGES_PER_TASK", 1)
  threads, plain = set(), store.preprocess

  def noted(*args):
    threads.add(threading.get_ident())
    time.sleep(0.01)  # Long enough for another thread to take the next.
    return plain(*args)

  split = small_split()
  monkeypatch.setattr(store, "preprocess", noted)
  built = store.open_store(split, SPEC, cache_dir=tmp_path)
  # Who measures is one more.
  assert len(threads) == 1 + min(count, 10)
  np.testing.assert_array_equal(built.rows(0, 10), expected_rows(split))


def test_a_store_says_whether_it_is_built(tmp_path):
  split = small_split()
  assert not store.is_built(split, SPEC, cache_dir=tmp_path)
  store.open_store(split, SPEC, cache_dir=tmp_path)
  assert store.is_built(split, SPEC, cache_dir=tmp_path)
  assert not store.is_built(split, ImageSpec(16, 17), cache_dir=tmp_path)
  # A name that no file may have: left to `open_store` to explain.
  assert not store.is_built(split, SPEC, cache_dir=tmp_path / ("x" * 300))


def test_store_is_keyed_by_content_and_spec(tmp_path):
  def files(split, spec, **settings):
    store.open_store(split, spec, cache_dir=tmp_path, **settings)
    return len(list(tmp_path.iterdir()))

  split = small_split()
  assert files(split, SPEC) == 2
  assert files(split, ImageSpec(16, 16, mean=(0.5, 0.5, 0.5))) == 2
  assert files(split, ImageSpec(16, 17)) == 4
  assert files(small_split(9), SPEC) == 6
  assert files(split, SPEC, fingerprint="other") == 8


def test_empty_store(tmp_path):
  images = store.open_store(split_of([]), SPEC, cache_dir=tmp_path)
  assert len(images) == 0
  assert images.rows(0, 5).shape == (0, 16, 16, 3)


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0])
def test_corrupt_images_are_masked_or_refused(tmp_path, limit_bytes):
  split = small_split(corrupt=(2, 7))
  settings = dict(cache_dir=tmp_path, limit_bytes=limit_bytes)
  message = r"2 image.*'train'.* the 1 allowed: 002.png, 007.png;"
  with pytest.raises(InputError, match=message):
    store.open_store(split, SPEC, **settings, max_corrupt=1)
  assert not list(tmp_path.iterdir())
  images = store.open_store(split, SPEC, **settings, max_corrupt=2)
  assert np.flatnonzero(~images.ok).tolist() == [2, 7]
  rows = images.rows(0, 10)
  assert not rows[[2, 7]].any()
  assert rows[[0, 9]].any(axis=(1, 2, 3)).all()
  with pytest.raises(InputError, match=message):
    store.open_store(split, SPEC, **settings, max_corrupt=1)


def test_an_unreadable_file_is_not_masked(tmp_path):
  def read(index):
    raise InputError("cannot read x")

  split = pools.Split(
    "train", ("x",), np.zeros(1, np.int32), ("0",), ("x",), read
  )
  with pytest.raises(InputError, match="cannot read x"):
    store.open_store(split, SPEC, cache_dir=tmp_path, max_corrupt=9)


@pytest.mark.parametrize(
  "damage",
  [
    lambda data: data[:-1],
    lambda data: data + b"\0",
    lambda data: data[:40],
    lambda data: b"",
    lambda data: b"x" * len(data),
  ],
)
@pytest.mark.parametrize("pattern", ["*.ok.npy", "*[0-9a-f].npy"])
def test_damaged_cache_is_rebuilt(tmp_path, damage, pattern):
  split = small_split()
  store.open_store(split, SPEC, cache_dir=tmp_path)
  (file,) = (
    f
    for f in tmp_path.glob(pattern)
    if f.name.endswith(".ok.npy") == pattern.endswith(".ok.npy")
  )
  whole = file.read_bytes()
  file.unlink()
  file.write_bytes(damage(whole))
  images = store.open_store(split, SPEC, cache_dir=tmp_path)
  np.testing.assert_array_equal(images.rows(0, 10), expected_rows(split))
  assert file.read_bytes() == whole


def test_leftovers_of_dead_builders_are_removed(tmp_path):
  old, young = tmp_path / "a.npy.1.tmp", tmp_path / "b.npy.2.tmp"
  for file in (old, young):
    file.touch()
  os.utime(old, (0, time.time() - 2 * cache.STALE_SECONDS))
  store.open_store(small_split(), SPEC, cache_dir=tmp_path)
  assert not old.exists()
  assert young.exists()


def test_a_full_disk_says_so(tmp_path):
  """A limit on file sizes refuses writes the way a full disk does."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
  try:
    with (
      pytest.raises(OSError, match="File too large") as caught,
      cache.atomic_file(tmp_path / "x.npy") as file,
    ):
      np.save(file, np.zeros(100_000))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert caught.value.strerror == "File too large"
  assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_explained(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(InputError, match="cannot write the image cache in"):
    store.open_store(small_split(), SPEC, cache_dir=tmp_path / "file")


def test_simultaneous_builders_agree(tmp_path):
  split, found = small_split(), []

  def build():
    images = store.open_store(split, SPEC, cache_dir=tmp_path)
    found.append(images.rows(0, 10))

  builders = [threading.Thread(target=build) for _ in range(4)]
  for builder in builders:
    builder.start()
  for builder in builders:
    builder.join()
  assert len(found) == 4
  for rows in found:
    np.testing.assert_array_equal(rows, expected_rows(split))


KILLED = """
import sys, time
import numpy as np
from cpeal_jax.data import folders, images, store
store.BLOCK = 2
def stop(done):
  print(done, flush=True)
  if sys.argv[3] == "stop":
    time.sleep(100)
data = folders.load_folders(sys.argv[1])
spec = images.ImageSpec(16, 16)
found = store.open_store(data.train, spec, cache_dir=sys.argv[2], progress=stop)
print(found.rows(0, 99).sum())
"""


def test_a_kill_leaves_nothing_half_written(tmp_path):
  total = 0
  for c in ("cat", "dog"):
    for i in range(8):
      path = tmp_path / "data" / "train" / c / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      noise(20, 20, seed=i).save(path)
      total += int(preprocess(noise(20, 20, seed=i), SPEC).sum())
  for split in ("val", "test"):
    (tmp_path / "data" / split / "cat").mkdir(parents=True)
  cache = tmp_path / "cache"
  command = [sys.executable, "-c", KILLED, str(tmp_path / "data"), str(cache)]
  builder = subprocess.Popen([*command, "stop"], stdout=subprocess.PIPE)
  assert builder.stdout.readline() == b"2\n"
  builder.send_signal(signal.SIGKILL)
  builder.communicate()
  assert [file.suffix for file in cache.iterdir()] == [".tmp"]
  run = subprocess.run([*command, "go"], capture_output=True, check=True)
  assert int(run.stdout.split()[-1]) == total


# ---- augmentation


@pytest.mark.parametrize("size", [(224, 224), (300, 200), (64, 90)])
def test_crop_boxes(size):
  rng = np.random.default_rng(0)
  boxes = np.array([crop_box(rng, *size) for _ in range(4000)])
  left, top, right, bottom = boxes.T
  width, height = right - left, bottom - top
  assert (left >= 0).all()
  assert (top >= 0).all()
  assert (right <= size[0]).all()
  assert (bottom <= size[1]).all()
  # Rounding a side to a whole pixel moves area and ratio by this much.
  slack = 1 + 1 / width.min() + 1 / height.min()
  area, ratio = width * height / math.prod(size), width / height
  assert 0.08 / slack <= area.min() < 0.1
  assert 0.7 < area.max() <= 1
  assert 3 / 4 / slack <= ratio.min() < 0.78
  assert 1.29 < ratio.max() <= 4 / 3 * slack
  # Small boxes always fit, so among them area and log ratio are uniform,
  # and so is the place within what is left.
  small = area < 0.4
  assert np.abs(np.log(ratio[small])).mean() == pytest.approx(
    np.log(4 / 3) / 2, rel=0.05
  )
  assert np.median(area[small]) == pytest.approx(0.24, rel=0.05)
  place = (left[small] + 0.5) / (size[0] - width[small] + 1)
  assert place.mean() == pytest.approx(0.5, abs=0.03)
  assert place.std() == pytest.approx(12**-0.5, rel=0.05)


@pytest.mark.parametrize(
  ("size", "box"),
  [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506))],
)
def test_crop_falls_back_to_the_centre(size, box):
  # Too long for any draw: the whole short side, at the nearest ratio.
  large = dict(scale=(0.9, 1.0))
  assert crop_box(np.random.default_rng(0), *size, **large) == box


def test_crop_of_the_whole_image():
  # Scale 1 and ratio 1 leave no choice: the square image itself.
  box = crop_box(
    np.random.default_rng(0), 50, 50, scale=(1.0, 1.0), ratio=(1.0, 1.0)
  )
  assert box == (0, 0, 50, 50)


def test_augment_flips_half_and_only_mirrors():
  image = noise(16, 16)
  whole = dict(scale=(1.0, 1.0), ratio=(1.0, 1.0))
  plain, flips = np.asarray(image), 0
  for seed in range(400):
    got = augment(np.random.default_rng(seed), image, SPEC, **whole)
    flipped = not np.array_equal(got, plain)
    np.testing.assert_array_equal(got, plain[:, ::-1] if flipped else plain)
    flips += flipped
  assert 160 < flips < 240  # four standard deviations


# ---- batches


def epoch_of(split, indices, *, epoch=3, start_step=0, **settings):
  """An epoch's batches, from one of its steps on."""
  indices = np.asarray(indices)
  settings = dict(seed=1, round_=2, batch=4) | settings
  steps = batches.steps_per_epoch(len(indices), settings["batch"])
  return list(
    batches.pixel_batches(
      batches.LabeledImages(split),
      indices,
      split.labels[indices],
      SPEC,
      epochs=epoch + 1,
      start_step=epoch * steps + start_step,
      **settings,
    )
  )


def by_pixels(found):
  return {
    image.tobytes(): int(label)
    for b in found
    for image, label, real in zip(b.images, b.labels, b.where, strict=True)
    if real
  }


@pytest.mark.parametrize(
  ("n", "steps", "real"),
  [(1, 1, 1), (3, 1, 3), (4, 1, 4), (7, 1, 4), (9, 2, 8)],
)
def test_batches_count(n, steps, real):
  split = small_split()
  found = epoch_of(split, range(n))
  assert len(found) == steps == batches.steps_per_epoch(n, 4)
  for b in found:
    assert b.images.shape == (4, 16, 16, 3)
    assert b.labels.dtype == np.int32
    assert not b.images[~b.where].any()
    assert not b.labels[~b.where].any()
  assert sum(b.where.sum() for b in found) == real
  assert len(by_pixels(found)) == real


def test_batches_without_augmentation_are_preprocessed():
  split = small_split()
  expected = {
    preprocess(split.open(i), SPEC).tobytes(): int(split.labels[i])
    for i in range(1, 9)
  }
  assert by_pixels(epoch_of(split, range(1, 9), augment=False)) == expected


def test_batches_depend_on_seed_round_and_epoch_alone():
  split = small_split()
  first = epoch_of(split, range(8))
  same = epoch_of(split, [5, 2, 7, 0, 1, 3, 6, 4])
  for a, b in zip(first, same, strict=True):
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.labels, b.labels)
  # An image's crop is the same in whatever batch and company it comes.
  pixels = by_pixels(first)
  assert by_pixels(epoch_of(split, range(8), batch=8)) == pixels
  alone = by_pixels(epoch_of(split, [6]))
  assert alone.items() <= pixels.items()
  for other in ("seed", "round_", "epoch"):
    assert (
      not by_pixels(epoch_of(split, range(8), **{other: 9})) & pixels.keys()
    )


def test_epochs_are_shuffled():
  split = small_split()
  orders = {
    tuple(
      b.tobytes()
      for b in epoch_of(split, range(8), augment=False, epoch=e, batch=8)[
        0
      ].images
    )
    for e in range(5)
  }
  assert len(orders) == 5


def test_a_round_is_its_epochs_one_after_the_other():
  split = small_split()
  indices = np.arange(9)
  settings = dict(seed=1, round_=2, batch=4)
  images = batches.LabeledImages(split)
  whole = batches.pixel_batches(
    images, indices, split.labels[indices], SPEC, epochs=3, **settings
  )
  parts = [b for e in range(3) for b in epoch_of(split, indices, epoch=e)]
  for a, b in zip(whole, parts, strict=True):
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.labels, b.labels)


def test_start_step_resumes_without_decoding_what_it_skips():
  split, opened = small_split(), []
  counted = pools.Split(
    split.name,
    split.ids,
    split.labels,
    split.sha256,
    split.paths,
    lambda i: opened.append(i) or split.read(i),
  )
  whole = epoch_of(split, range(10))
  rest = epoch_of(counted, range(10), start_step=1)
  assert len(rest) == 1
  assert len(opened) == 4
  np.testing.assert_array_equal(rest[0].images, whole[1].images)
  assert epoch_of(split, range(10), start_step=2) == []


def test_batches_stop_early_and_on_errors_without_hanging():
  before = threading.active_count()
  split = small_split(corrupt=(5,))
  labels = split.labels
  images = batches.LabeledImages(split)
  settings = dict(seed=0, round_=0, epochs=1, batch=2)
  stream = batches.pixel_batches(
    images, np.arange(5), labels[:5], SPEC, **settings
  )
  next(stream)
  stream.close()
  with pytest.raises(CorruptImage, match=r"'005.png' cannot be decoded"):
    list(batches.pixel_batches(images, np.arange(10), labels, SPEC, **settings))
  assert threading.active_count() == before


@pytest.mark.parametrize(("small", "count"), [(0, 2), (1e9, 1)])
def test_crops_of_small_images_are_cut_by_one_thread(monkeypatch, small, count):
  monkeypatch.setattr(workers, "SMALL_SECONDS", small)
  monkeypatch.setattr(os, "cpu_count", lambda: 2)
  threads, plain = set(), batches.augmented

  def noted(*args):
    threads.add(threading.current_thread())
    time.sleep(0.01)
    return plain(*args)

  want = epoch_of(small_split(), range(10))
  monkeypatch.setattr(batches, "augmented", noted)
  got = epoch_of(small_split(), range(10))
  assert len(threads - {threading.current_thread()}) == count
  for a, b in zip(got, want, strict=True):
    np.testing.assert_array_equal(a.images, b.images)


def test_batches_refuse():
  split = small_split()
  images = batches.LabeledImages(split)
  settings = dict(seed=0, round_=0, epochs=1)
  none, one = np.zeros(0, np.int32), np.zeros(1, np.int32)
  with pytest.raises(ValueError, match="0 indices and 0 labels"):
    batches.pixel_batches(images, none, none, SPEC, **settings)
  with pytest.raises(ValueError, match="unknown label"):
    batches.pixel_batches(images, one, one - 1, SPEC, **settings)


def test_labeled_images_decode_once_within_their_limit():
  opened = []
  content = encoded(noise(10, 10))
  split = pools.from_bytes("train", ["a", "b"], [0, 1], lambda i: content)
  split = pools.Split(
    "train",
    split.ids,
    split.labels,
    split.sha256,
    split.paths,
    lambda i: opened.append(i) or content,
  )
  images = batches.LabeledImages(split, limit_bytes=300)
  for index in (0, 0, 1, 1, 0):
    assert images[index].size == (10, 10)
  assert opened == [0, 1, 1]
