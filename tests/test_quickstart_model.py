"""The embedded CLIP: what it was trained on, how, and that it is as stated."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font
from PIL import ImageChops
from scipy.spatial import distance

from cpeal_jax import quickstart
from cpeal_jax.data.images import image_spec
from cpeal_jax.models import weights, weights_out
from cpeal_jax.models.clip import Clip, normalize
from cpeal_jax.quickstart import glyphs, pretrain, tokenizer

MEASURED = json.loads((quickstart.CLIP / "measured.json").read_text())
SEED = 999  # no checkpoint was trained on its pictures


def rng():
  return np.random.default_rng(SEED)


def test_checkpoint_is_the_one_that_was_measured():
  own = weights.load_pretrained(str(quickstart.CLIP))
  assert own.sha256 == MEASURED["sha256"]
  assert own.config == pretrain.sizes()
  assert image_spec(own.preprocessor) == pretrain.SPEC
  files = [path.stat().st_size for path in quickstart.CLIP.iterdir()]
  assert sum(files) < 2e6


def test_accuracy_on_real_digits_is_the_stated_one():
  again = pretrain.measure(quickstart.CLIP)
  assert again["zero_shot"] == pytest.approx(MEASURED["zero_shot"], abs=0.002)
  assert 0.5 < again["zero_shot"] < 0.8
  few = np.mean(again["logistic_regression"])
  stated = np.mean(MEASURED["logistic_regression"])
  assert few == pytest.approx(stated, abs=0.005)
  assert few > again["zero_shot"] + 0.1
  readme = Path(quickstart.__file__).with_name("README.md").read_text()
  for value in (MEASURED["zero_shot"], stated):
    assert f"{100 * value:.1f} %" in readme
  assert MEASURED["sha256"] in readme


def test_checkpoint_matches_unseen_glyphs_with_their_captions():
  own = weights.load_pretrained(str(quickstart.CLIP))
  images, ids = pretrain.make_pairs(4, seed=SEED)
  pixels = np.repeat((images[:, 0, :, :, None] / 127.5 - 1), 3, axis=-1)
  captions = ids[:, 0].astype(np.int32)
  features, texts = jax.jit(Clip(own.config).apply)(
    {"params": own.params}, pixels, captions, np.full_like(captions, -1)
  )
  similar = np.asarray(normalize(features)) @ np.asarray(normalize(texts)).T
  assert np.mean(similar.argmax(1) == np.arange(len(ids))) > 0.6


def test_fonts_have_every_character_they_are_asked_for():
  folder = Path(get_data_path(), "fonts", "ttf")
  for font in glyphs.FONTS + glyphs.TEX_FONTS:
    has = FT2Font(str(folder / font)).get_charmap()
    for glyph in glyphs.GLYPHS:
      if font in glyphs.FONTS or glyph.name not in glyphs.SIGNS:
        assert all(ord(character) in has for character in glyph.characters)


def test_looks_are_drawn_and_rendered_the_same_again():
  for glyph in glyphs.GLYPHS:
    look = glyphs.draw_look(glyph, rng())
    assert look == glyphs.draw_look(glyph, rng())
    assert look.character in glyph.characters
    picture = glyphs.render(look)
    assert picture.size == (look.side, look.side)
    assert not ImageChops.difference(picture, glyphs.render(look)).getbbox()


def plain(character: str, **how) -> glyphs.Look:
  look = glyphs.Look(
    character, "DejaVuSans.ttf", 0, 0.9, 1.0, 0.0, 0.0, (0.0, 0.0), 0.0, 64,
    False,
  )  # fmt: skip
  return dataclasses.replace(look, **how)


def test_render_does_what_the_look_says():
  def ink(**how):
    return np.asarray(glyphs.render(plain("1", **how))).astype(float)

  def middle(pixels):
    total = pixels.sum()
    down, right = np.indices(pixels.shape)
    return (pixels * right).sum() / total, (pixels * down).sum() / total

  left, top, right, bottom = glyphs.render(plain("1")).getbbox()
  assert bottom - top == pytest.approx(0.9 * 64, abs=2)
  assert (left + right) / 2 == pytest.approx(32, abs=1)
  np.testing.assert_array_equal(ink(inverted=True), 255 - ink())
  assert ink(stroke=3).sum() > 1.2 * ink().sum()
  assert ink(stretch=1.3).sum() > 1.2 * ink().sum()
  moved = ink(size=0.5, shift=(6 / 64, 12 / 64))
  np.testing.assert_array_equal(np.roll(ink(size=0.5), (12, 6), (0, 1)), moved)
  # Counter-clockwise: the top of the stem goes left, as shear's goes right.
  head = lambda pixels: middle(pixels[:20])[0]  # noqa: E731
  assert head(ink(angle=15.0)) < head(ink()) - 2
  assert head(ink(shear=0.3)) > head(ink()) + 2


def test_captions_name_the_glyph_and_say_nothing_untrue():
  draw = rng()
  said = set()
  for glyph in glyphs.GLYPHS:
    for _ in range(60):
      look = glyphs.draw_look(glyph, draw)
      words = glyphs.caption(glyph, look, draw).rstrip(".").split()
      words = [word.rstrip(",") for word in words]
      assert glyph.name in words
      assert ("capital" in words) <= look.character.isupper()
      kinds = {kind for g in glyphs.GLYPHS for kind in g.kinds}
      assert kinds & set(words) <= set(glyph.kinds)
      for word, holds in glyphs.ADJECTIVES.items():
        if word in words:
          said.add(word)
          assert holds(look)
  assert said == set(glyphs.ADJECTIVES)


def test_pairs_depend_on_the_seed_alone():
  images, ids = pretrain.make_pairs(2, seed=1)
  again, ids_again = pretrain.make_pairs(2, seed=1)
  np.testing.assert_array_equal(images, again)
  np.testing.assert_array_equal(ids, ids_again)
  other, _ = pretrain.make_pairs(2, seed=2)
  assert np.mean(images != other) > 0.3
  assert images.shape == (len(glyphs.GLYPHS), 2, 32, 32)
  # Every row is a glyph's, and says so.
  known = tokenizer.vocabulary()
  for glyph, rows in zip(glyphs.GLYPHS, ids, strict=True):
    assert (rows == known[glyph.name]).any(1).all()


def test_tokenizer_frames_and_spells():
  own = weights.load_pretrained(str(quickstart.CLIP)).tokenizer
  known = tokenizer.vocabulary()
  assert own.get_vocab() == known
  assert own.eos_token_id == own.pad_token_id == len(known) - 1

  def tokens(text, **how):
    return own.convert_ids_to_tokens(own(text, **how)["input_ids"])

  assert tokens("A photo of the digit Seven.") == [
    tokenizer.START, "a", "photo", "of", "the", "digit", "seven", ".",
    tokenizer.END,
  ]  # fmt: skip
  assert tokens("X", add_special_tokens=False) == ["x"]
  assert tokens(".", add_special_tokens=False) == ["."]
  assert tokens("Café 42", add_special_tokens=False) == [
    "c", "##a", "##f", "##e", "4", "##2"
  ]  # fmt: skip
  assert tokens("日", add_special_tokens=False) == [tokenizer.UNKNOWN]


def test_contrastive_loss_is_two_cross_entropies():
  images, texts = jnp.asarray(rng().normal(size=(2, 5, 4)))
  cosines = 1 - distance.cdist(images, texts, "cosine")
  cross = optax.softmax_cross_entropy_with_integer_labels
  right, logits = jnp.arange(5), jnp.exp(2.0) * jnp.asarray(cosines)
  expected = jnp.mean(cross(logits, right) + cross(logits.T, right)) / 2

  def loss(logit_scale):
    return pretrain.contrastive_loss(images, texts, jnp.asarray(logit_scale))

  np.testing.assert_allclose(loss(2.0), expected, rtol=1e-5)
  # The scale stops at 100, as CLIP's.
  np.testing.assert_allclose(loss(9.0), loss(np.log(100)), rtol=1e-6)


def random_params(config):
  """Any weights that let a signal through; quicker than the real ones."""
  draw = rng()

  def leaf(path, shape):
    near = 1 if path[-1].key == "scale" else 0
    return (near + 0.1 * draw.normal(size=shape.shape)).astype(np.float32)

  return jax.tree.map_with_path(leaf, weights.shapes(config))


def test_training_starts_from_a_whole_model():
  config = pretrain.sizes()
  start = jax.eval_shape(lambda: pretrain.init(Clip(config), seed=0))
  assert start == weights.shapes(config)


def test_two_steps_lower_the_loss():
  images, ids = pretrain.make_pairs(2, seed=SEED)
  batch = images[:6].swapaxes(0, 1), ids[:6].swapaxes(0, 1).astype(np.int32)
  config, optimizer = pretrain.sizes(), optax.adam(1e-3)
  one = {
    name: dataclasses.replace(getattr(config, name), layers=1)
    for name in ("vision", "text")
  }
  config = dataclasses.replace(config, **one)
  params = random_params(config)
  state, step = (
    optimizer.init(params),
    pretrain.make_step(Clip(config), optimizer),
  )
  losses = []
  for _ in range(3):
    params, state, loss = step(params, state, *batch)
    losses.append(float(loss))
  assert losses[0] > losses[1] > losses[2]


def test_saved_weights_are_read_back(tmp_path):
  config = pretrain.sizes()
  params = random_params(config)
  back = weights.convert(weights_out.to_hf(params, config), config)
  jax.tree.map(np.testing.assert_array_equal, back, params)
  pretrain.save(params, config, tmp_path)
  own = weights.load_pretrained(str(tmp_path))
  assert own.config == config
  flat = traverse_util.flatten_dict(params)
  for path, value in traverse_util.flatten_dict(own.params).items():
    half = np.asarray(flat[path]).astype(np.float16)
    np.testing.assert_array_equal(value, half.astype(np.float32))
