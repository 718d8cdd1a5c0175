"""CLIP against PyTorch: goldens of random models and of a trained one."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file
from shared_data import SHARED, needs_shared

from cpeal_jax.models import text, text_context, weights
from cpeal_jax.models.adapters import Prompts
from cpeal_jax.models.classifier import cosine_logits
from cpeal_jax.models.clip import Clip, normalize
from cpeal_jax.models.hf_clip import config_from_hf

GOLDEN = Path(__file__).parent / "golden"
RANDOM = ("clip_small_patches", "clip_gelu")


def golden(name):
  raw = json.loads((GOLDEN / name / "config.json").read_text())
  config = config_from_hf(raw)
  tensors = load_file(GOLDEN / name / "model.safetensors")
  return config, tensors, dict(np.load(GOLDEN / name / "expected.npz"))


def assert_parity(config, params, pixels, want):
  with jax.default_matmul_precision("highest"):
    images, texts = jax.jit(Clip(config).apply)(
      {"params": params}, pixels, want["ids"], np.full_like(want["ids"], -1)
    )
  unit_images, unit_texts = normalize(images), normalize(texts)
  got = {
    "image_features": images,
    "text_features": texts,
    "image_embeds": unit_images,
    "text_embeds": unit_texts,
    "logits": cosine_logits(unit_images, unit_texts, params["logit_scale"]),
  }
  for name, value in got.items():
    gap = np.abs(np.asarray(value) - want[name]).max()
    assert gap <= 1e-5 * np.abs(want[name]).max(), name


@pytest.mark.parametrize("name", RANDOM)
def test_random_models_agree_with_pytorch(name):
  config, tensors, want = golden(name)
  params = weights.convert(tensors, config)
  assert_parity(config, params, want["pixels"], want)


@needs_shared
def test_trained_model_agrees_with_pytorch():
  clip = weights.load_pretrained(str(SHARED / "models" / "clip-tiny64"))
  want = dict(np.load(GOLDEN / "clip_tiny64.npz"))
  rng = np.random.default_rng(0)
  pixels = rng.normal(size=(3, 64, 64, 3)).astype(np.float32)
  assert_parity(clip.config, clip.params, pixels, want)


@pytest.mark.parametrize("name", RANDOM)
def test_cutting_after_the_longest_prompt_is_exact(name):
  config, tensors, want = golden(name)
  params = weights.convert(tensors, config)

  def texts(length):
    ids = want["ids"][:2, :length]
    encode = functools.partial(Clip(config).apply, method="encode_texts")
    return jax.jit(encode)({"params": params}, ids, np.full_like(ids, -1))

  np.testing.assert_allclose(texts(8), texts(20), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_the_last_block_computes_only_the_token_that_is_read(tower):
  config, tensors, want = golden("clip_gelu")
  params = {"params": weights.convert(tensors, config)}
  ids = want["ids"]
  args, name = (want["pixels"],), "encode_images"
  if tower == "text":
    args, name = (ids, np.full_like(ids, -1)), "encode_texts"

  def operations(layers):
    own = dataclasses.replace(getattr(config, tower), layers=layers)
    model = Clip(dataclasses.replace(config, **{tower: own}))
    run = jax.jit(lambda *args: model.apply(params, *args, method=name))
    cost = run.lower(*args).compile().cost_analysis()
    return cost["flops"]

  last, block = operations(1) - operations(0), operations(2) - operations(1)
  # All tokens' keys and values, two of its twelve products, and one token's
  # share of the others; what is no product is in both.
  assert last < 0.5 * block


def test_all_mismatches_are_in_one_message():
  config, tensors, _ = golden("clip_gelu")
  del tensors["logit_scale"]
  tensors["extra.weight"] = np.zeros(2, np.float32)
  tensors["text_projection.weight"] = np.zeros((3, 3), np.float32)
  with pytest.raises(weights.InputError) as error:
    weights.convert(tensors, config)
  message = str(error.value)
  assert "3 problems" in message
  for word in ("missing logit_scale", "left over extra.weight", "(3, 3)"):
    assert word in message
  assert "\n" not in message


@needs_shared
def test_tokens_and_learnable_slots():
  tokenizer = transformers.AutoTokenizer.from_pretrained(
    SHARED / "data" / "clip-tokenizer"
  )
  tokens = text.tokenize(["a photo of a cat"], tokenizer)
  assert tokens.ids.tolist() == [
    [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
  ]
  classes = ("Sea_or_Lake", "AnnualCrop 2")
  for position in ("end", "middle", "front"):
    prompts = Prompts(tokens=5, position=position)
    context = text_context.context_of(prompts, "", tokenizer)
    tokens = text_context.tokenize_with_context(classes, tokenizer, context)
    whole = text.tokenize(tokens.texts, tokenizer)
    np.testing.assert_array_equal(tokens.ids, whole.ids)
    assert tokens.ids.shape[1] % 8 == 0
    for ids, slots in zip(tokens.ids, tokens.slots, strict=True):
      assert sorted(slots[slots >= 0]) == list(range(5))
      assert {*ids[slots >= 0]} == {343}  # the X that a context replaces
  many = text_context.context_of(Prompts(tokens=80), "", tokenizer)
  with pytest.raises(text.InputError, match="needs 87 of 77"):
    text_context.tokenize_with_context(classes, tokenizer, many)
  with pytest.raises(text.InputError, match="longer than the text tower's"):
    text.tokenize(["word " * 80], tokenizer)


@needs_shared
def test_classes_that_read_alike_are_refused():
  tokenizer = transformers.AutoTokenizer.from_pretrained(
    SHARED / "data" / "clip-tokenizer"
  )
  classes = ("cat", "dog", "Cat")
  tokens = text.tokenize(text.from_template(classes, "a {}."), tokenizer)
  with pytest.raises(text.InputError, match="'cat' and 'Cat'"):
    text.refuse_alike(tokens, classes)
  text.refuse_alike(text.tokenize(("a", "b"), tokenizer), ("a", "b"))


def test_a_directory_that_is_no_clip_is_named(tmp_path):
  with pytest.raises(weights.InputError, match=r"has no config.json"):
    weights.load_pretrained(str(tmp_path))
  with pytest.raises(weights.InputError, match="no directory"):
    weights.load_pretrained(str(tmp_path / "absent"))
