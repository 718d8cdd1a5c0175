"""The front door: encode with a CLIP, ask a finished run."""

import csv
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import quickstart

import cpeal_jax as cpeal
from cpeal_jax import quickstart as embedded
from cpeal_jax.data.digits import load_digits
from cpeal_jax.data.images import image_spec
from cpeal_jax.data.pictures import as_pictures, as_texts, open_picture
from cpeal_jax.errors import InputError
from cpeal_jax.run import loop


def test_load_clip_encodes_anything_that_is_a_picture(tmp_path):
  clip = cpeal.load_clip(str(embedded.CLIP))
  rng = np.random.default_rng(0)
  array = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
  image = Image.fromarray(array)
  image.save(tmp_path / "a.png")
  features = clip.encode_images([array, image, tmp_path / "a.png"])
  assert features.shape == (3, 64)
  assert features.dtype == np.float32
  np.testing.assert_array_equal(features[0], features[1])
  np.testing.assert_array_equal(features[0], features[2])
  np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
  texts = clip.encode_texts(["a photo of the digit two.", "x"])
  assert texts.shape == (2, 64)
  np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
  measured = json.loads((embedded.CLIP / "measured.json").read_text())
  assert clip.logit_scale == pytest.approx(measured["logit_scale"], abs=0.01)
  (tmp_path / "b.png").write_bytes(b"no image")
  with pytest.raises(InputError, match=r"b\.png"):
    clip.encode_images([tmp_path / "b.png"])


def test_bfloat16_agrees_with_float32():
  test = load_digits().test
  images = [test.open(i) for i in range(100)]
  prompts = [f"a photo of the digit {name}." for name in load_digits().classes]
  answers = {}
  for dtype in ("float32", "bfloat16"):
    clip = cpeal.load_clip(embedded.CLIP, dtype=dtype)
    answers[dtype] = clip.encode_images(images), clip.encode_texts(prompts)
  for ours, theirs in zip(*answers.values(), strict=True):
    assert ours.dtype == theirs.dtype == np.float32
    assert np.sum(ours * theirs, axis=1).min() > 0.999
  votes = [(f @ t.T).argmax(axis=1) for f, t in answers.values()]
  assert np.mean(votes[0] == votes[1]) > 0.95
  with pytest.raises(InputError, match="unknown dtype 'float16'"):
    cpeal.load_clip(embedded.CLIP, dtype="float16")


def test_load_run_answers_as_the_run_did(tmp_path):
  config = quickstart(str(tmp_path / "cache"), rounds=2)
  rows = loop.run(config, tmp_path / "run")
  test = load_digits().test
  images = [test.open(i) for i in range(len(test))]
  for round_ in (0, -1):
    run = cpeal.load_run(tmp_path / "run", round=round_)
    probs = run.predict(images)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
    hits = np.mean(probs.argmax(axis=1) == test.labels)
    want = next(row for row in rows if row["round"] == run.round)
    assert hits == pytest.approx(want["accuracy"], abs=1e-6)
  assert run.classes[3] == "three"
  with open(tmp_path / "run/rounds/001/selection.csv") as file:
    assert len(list(csv.DictReader(file))) == 10
  with pytest.raises(InputError, match="2 finished rounds"):
    cpeal.load_run(tmp_path / "run", round=2)


def test_attributes_come_when_asked_for():
  assert cpeal.losses.calibration_weight(9, 10, 1.0) == pytest.approx(0.89)
  assert "entropy" in cpeal.acquisition.ACQUISITIONS
  with pytest.raises(AttributeError, match="'nothing'"):
    _ = cpeal.nothing


@pytest.fixture(scope="module")
def clip():
  return cpeal.load_clip(embedded.CLIP)


def some_pictures(count):
  rng = np.random.default_rng(1)
  return rng.integers(0, 256, (count, 40, 50, 3), dtype=np.uint8)


def test_one_picture_is_a_list_of_it(clip, tmp_path):
  (array,) = some_pictures(1)
  image = Image.fromarray(array)
  image.save(tmp_path / "a.png")
  want = clip.encode_images([array])
  assert want.shape == (1, 64)
  path = tmp_path / "a.png"
  for one in (array, image, path, str(path)):
    np.testing.assert_array_equal(clip.encode_images(one), want)
  spec = image_spec(clip.pretrained.preprocessor)
  (one,) = as_pictures(jnp.asarray(array))
  np.testing.assert_array_equal(
    open_picture(one, spec), open_picture(array, spec)
  )
  gray = array[..., 0]
  np.testing.assert_array_equal(
    clip.encode_images(gray), clip.encode_images([gray[..., None]])
  )


def test_any_iterable_will_do(clip):
  pictures = some_pictures(3)
  want = clip.encode_images(list(pictures))
  for many in (
    pictures,
    tuple(pictures),
    (x for x in pictures),
    iter(pictures),
  ):
    np.testing.assert_array_equal(clip.encode_images(many), want)
  texts = ["a photo of the digit two.", "a cat"]
  want = clip.encode_texts(texts)
  for many in (tuple(texts), (x for x in texts), np.array(texts)):
    np.testing.assert_array_equal(clip.encode_texts(many), want)
  for one in ("a cat", np.str_("a cat")):
    np.testing.assert_allclose(clip.encode_texts(one), want[1:], atol=1e-6)


def test_nothing_gives_no_rows(clip):
  for none in ([], (), iter(()), np.zeros((0, 32, 32, 3), np.uint8)):
    rows = clip.encode_images(none)
    assert (rows.shape, rows.dtype) == ((0, 64), np.float32)
  for none in ([], (), iter(())):
    rows = clip.encode_texts(none)
    assert (rows.shape, rows.dtype) == ((0, 64), np.float32)


@pytest.mark.parametrize(
  ("images", "words"),
  [
    (np.zeros((32, 32, 3), np.float32), "array of float32, whose range"),
    ([np.zeros((32, 32, 3), np.uint16)], "array of uint16, whose range"),
    ([np.ones((32, 32), bool)], "array of bool, whose range"),
    (np.zeros((3, 32, 32), np.uint8), r"shape \(3, 32, 32\)"),
    (np.zeros((0, 32, 3), np.uint8), "has no pixels"),
    (np.uint8(3), r"shape \(\)"),
    (np.zeros((1, 1, 1, 1, 3), np.uint8), "shape"),
    ({"a": "b.png"}, "of type dict, is no list"),
    ({"b.png"}, "of type set, is no list"),
    (b"\x89PNG", "of type bytes, is no list"),
    ([b"\x89PNG"], "of type bytes, is no picture"),
    ([None], "None, of type NoneType, is no picture"),
    (7, "7, of type int, is no list"),
    ("/nowhere/a.png", "cannot read an image from /nowhere/a.png: No such"),
    ("/", "it is a directory"),
    ("/dev/zero", "it is a device"),
  ],
  ids=str,
)
def test_what_is_no_picture_is_refused_by_what_it_is(clip, images, words):
  spec = image_spec(clip.pretrained.preprocessor)
  with pytest.raises(InputError, match=words):
    [open_picture(picture, spec) for picture in as_pictures(images)]


def test_the_front_door_refuses_alike(clip, tmp_path):
  floats = np.zeros((32, 32, 3), np.float32)
  for images in (floats, [floats], (x for x in [floats])):
    with pytest.raises(InputError, match="array of float32, whose range"):
      clip.encode_images(images)
  with pytest.raises(InputError, match="it is a directory"):
    clip.encode_images(tmp_path)


def test_a_named_pipe_is_not_waited_for(clip, tmp_path):
  os.mkfifo(tmp_path / "a.png")
  with pytest.raises(InputError, match="it is a named pipe"):
    clip.encode_images(tmp_path / "a.png")


@pytest.mark.parametrize(
  ("texts", "words"),
  [
    (["a", 3], "text 1 is 3, of type int"),
    ([["a"]], "text 0 is"),
    (b"a cat", "of type bytes, is no list"),
    ({"a": 1}, "of type dict, is no list"),
    (None, "of type NoneType, is no list"),
  ],
  ids=str,
)
def test_what_is_no_text_is_refused(texts, words):
  with pytest.raises(InputError, match=words):
    as_texts(texts)


def test_texts_that_a_tokenizer_does_not_know_are_refused(clip):
  with pytest.raises(InputError, match="'猫' and '狗' have the same text"):
    clip.encode_texts(["猫", "狗"])
  rows = clip.encode_texts(["A Cat", "a  cat"])
  np.testing.assert_array_equal(rows[0], rows[1])
