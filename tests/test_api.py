"""The front door: encode with a CLIP, ask a finished run."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from runs import quickstart

import cpeal_jax as cpeal
from cpeal_jax import quickstart as embedded
from cpeal_jax.data.digits import load_digits
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
