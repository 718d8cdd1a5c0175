"""Several prompts a class: what they say, and how they become one."""

import dataclasses
import os
import re

import jax
import numpy as np
import pytest
import tiny

from cpeal_jax.data import catalogue
from cpeal_jax.errors import InputError
from cpeal_jax.models import text_context
from cpeal_jax.models.adapters import Prompts
from cpeal_jax.models.classifier import cosine_logits
from cpeal_jax.models.descriptors import (
  clause,
  matched,
  read_descriptors,
  with_descriptors,
)

OWNERS = (0, 1, 1)


def unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def classifier(average, prompts=None):
  plain = tiny.classifier(prompts=prompts)
  tokens = dataclasses.replace(plain.tokens, owners=OWNERS)
  return dataclasses.replace(plain, tokens=tokens, descriptor_average=average)


@pytest.mark.parametrize("prompts", [None, Prompts(tokens=4)], ids=str)
def test_averages_against_their_definition(prompts):
  """AS: a class's logit is the mean of its prompts'. AE: of raw embeddings."""
  _, params = tiny.pretrained()
  by_score, by_text = (
    classifier(average, prompts) for average in ("similarity", "embedding")
  )
  assert by_score.classes == 2
  adapter = by_score.init(params, jax.random.key(0))
  if prompts:  # Every prompt has a context of its own.
    assert jax.tree.leaves(adapter)[0].shape[0] == len(OWNERS)
  raw = np.asarray(
    by_score.model.apply(
      {"params": params, "adapter": adapter},
      by_score.tokens.ids,
      by_score.tokens.slots,
      train=False,
      method="encode_texts",
    )
  )
  features = unit(np.random.default_rng(0).normal(size=(5, raw.shape[1])))
  scale = np.exp(params["logit_scale"])
  each = scale * features @ unit(raw).T
  got = {
    c.descriptor_average: cosine_logits(
      features.astype(np.float32),
      c.class_embeddings(params, adapter),
      params["logit_scale"],
    )
    for c in (by_score, by_text)
  }
  want = np.stack([each[:, 0], each[:, 1:].mean(axis=1)], axis=1)
  np.testing.assert_allclose(got["similarity"], want, rtol=1e-4, atol=1e-4)
  means = unit(np.stack([raw[0], raw[1:].mean(axis=0)]))
  want = scale * features @ means.T
  np.testing.assert_allclose(got["embedding"], want, rtol=1e-4, atol=1e-4)
  assert np.abs(got["embedding"] - got["similarity"]).max() > 1e-3


def test_phrases():
  phrases, owners = with_descriptors(
    ("annual_crop", "River"),
    {
      "Annual Crop": ["rows of plants"],
      "river": ["a band of blue.", "has banks"],
    },
  )
  assert owners == (0, 1, 1)
  assert phrases == (
    "annual crop, which has rows of plants",
    "River, which is a band of blue",
    "River, which has banks",
  )
  assert clause("which winds") == "which winds"


def test_faithful_phrases_are_pcbs_sentence():
  """`f"{name}, which is/has {desc}."` with the name in lower case."""
  phrases, owners = with_descriptors(
    ("Sea_or_Lake",), {"sea or lake": ["large body of water"]}, "faithful"
  )
  assert owners == (0,)
  assert phrases == ("sea or lake, which is/has large body of water",)


def spelled(text, add_special_tokens=True):
  """A tokenizer to which a mark after another one is part of it, as to CLIP."""
  words = re.findall(r"\w+|[^\w\s]+", text.lower())
  ids = [sum(map(ord, word)) for word in words]
  return {"input_ids": [1, *ids, 2] if add_special_tokens else ids}


spelled.bos_token_id, spelled.eos_token_id = 1, 2


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_faithful_prompts_have_pcbs_tokens(position):
  """The reference tokenizes the whole prompt, and cuts it by the name's length.

  A trait that ends in a bracket is one token with the period.
  """
  phrases = (
    "car, which is/has a plate (if seen)",
    "car, which is/has a top",
  )
  prompts = Prompts(tokens=4, position=position)
  context = text_context.context_of(prompts, "", spelled)
  got = text_context.tokenize_with_context(
    phrases, spelled, context, joint_period=True
  )
  before = {"end": 4, "middle": 2, "front": 0}[position]
  for row, slots, phrase in zip(got.ids, got.slots, phrases, strict=True):
    length = len(spelled(phrase, False)["input_ids"])
    whole = spelled(f"{'X ' * 4}{phrase}.")["input_ids"]
    suffix = whole[5:]
    x = [ord("x")]
    want = [1, *x * before, *suffix[:length], *x * (4 - before)]
    want += suffix[length:]
    assert row[: len(want)].tolist() == want
    assert set(row[len(want) :]) <= {2}
    assert sorted(slots[slots >= 0]) == list(range(4))
    assert set(row[slots >= 0]) == {ord("x")}


# Names as CoOp's split files have them, and keys as PCB's files do.
PAIRS = [
  ("Annual Crop Land", "annual crop land"),
  ("Highway or Road", "highway or road"),
  ("Industrial Buildings", "industrial buildings or commercial buildings"),
  ("Residential Buildings", "residential buildings or homes or apartments"),
  ("Sea or Lake", "sea or lake"),
  ("2000 AM General Hummer SUV", "AM General Hummer SUV 2000"),
  ("2012 Audi TT RS Coupe", "Audi TT RS Coupe 2012"),
  ("2012 Audi TTS Coupe", "Audi TTS Coupe 2012"),
  ("2012 Audi S4 Sedan", "Audi S4 Sedan 2012"),
  ("2007 Audi S4 Sedan", "Audi S4 Sedan 2007"),
  (
    "2012 Bentley Continental Supersports Conv. Convertible",
    "Bentley Continental Supersports Conv. Convertible 2012",
  ),
  ("american_pit_bull_terrier", "American Pit Bull Terrier"),
]


def test_pcbs_keys_find_coops_classes():
  classes, keys = zip(*PAIRS, strict=True)
  assert matched(classes, keys[::-1]) == keys


def test_every_class_of_cars_is_found_with_its_year_behind():
  classes = catalogue.classes("stanford_cars")
  keys = tuple(f"{name[5:]} {name[:4]}" for name in classes)
  assert matched(classes, keys) == keys


def test_the_strictest_rule_goes_first():
  classes = ("sea or lake", "lake", "Lake Sea")
  keys = ("lake", "sea or lake", "sea lake")
  assert matched(classes, keys) == ("sea or lake", "lake", "sea lake")


@pytest.mark.parametrize(
  ("classes", "keys", "words"),
  [
    (("river",), ("River", "river"), "'river' could be 'River' or 'river'"),
    (("homes",), ("homes or flats", "flats or homes"), "'homes' could be"),
    (("a b", "b a"), ("A. B", "c"), "'A. B' could be of the classes 'a b' or"),
    (("homes", "flats"), ("homes or flats",), "'homes' or 'flats'"),
  ],
)
def test_what_could_be_two_is_refused(classes, keys, words):
  with pytest.raises(InputError) as error:
    matched(classes, keys)
  assert words in str(error.value)


def test_classes_without_a_key_are_named_with_how_to_map_them():
  traits = {"brushland": ["dry"], "river": ["wet"]}
  with pytest.raises(InputError) as error:
    with_descriptors(("River", "Brush land", "Sea"), traits)
  for words in ("2 of 3", "'Brush land' Did you mean 'brushland'", "'Sea'"):
    assert words in str(error.value)
  assert "rename the keys to these class names" in str(error.value)


def test_a_byte_order_mark_and_what_is_no_file(tmp_path):
  path = tmp_path / "d.json"
  path.write_bytes(b'\xef\xbb\xbf{"river": ["wet"]}')
  assert read_descriptors(path) == {"river": ["wet"]}
  path.unlink()
  os.mkfifo(path)
  with pytest.raises(InputError, match=r"cannot read desc.* named pipe"):
    read_descriptors(path)
  for wrong in (tmp_path, "/dev/zero", tmp_path / "nowhere"):
    with pytest.raises(InputError, match="cannot read descriptors from"):
      read_descriptors(wrong)


def test_what_is_wrong_with_descriptors_is_said(tmp_path):
  with pytest.raises(InputError, match=r"1 of 2 classes.*'sea'"):
    with_descriptors(("river", "sea"), {"river": ["wet"], "sea": []})
  path = tmp_path / "d.json"
  for content in ("[", '["a"]', '{"a": "b"}', '{"a": [1]}', '{"a": [" "]}'):
    path.write_text(content)
    with pytest.raises(InputError, match=r"d\.json"):
      read_descriptors(path)
