"""Altered model files: either a model that works, or one line, and never both.

A few alterations in the suite; CPEAL_JAX_EXAMPLES=1000 tries as many of each.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from flax import serialization
from flax_naming import in_flax_naming
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import TEXTS, embed, load
from safetensors.numpy import load_file

from cpeal_jax import quickstart
from cpeal_jax.data.images import ImageSpec, image_spec
from cpeal_jax.errors import InputError
from cpeal_jax.models import (
  dinov2_weights,
  hub,
  prompted,
  siglip_weights,
  tensors,
  weights,
)
from cpeal_jax.models.descriptors import read_descriptors, with_descriptors
from cpeal_jax.models.shards import INDEX, shard_names
from cpeal_jax.models.siglip import Siglip
from cpeal_jax.models.text_classifier import TextClassifier

GOLDEN = Path(__file__).parent / "golden"
OPEN_CLIP = hub.LAYOUTS[1]
few = settings(
  max_examples=int(os.environ.get("CPEAL_JAX_EXAMPLES", "20")),
  deadline=None,
  derandomize=True,
  suppress_health_check=list(HealthCheck),
)
STRANGE = [None, True, False, 0, -1, 1, 2, 10**9, 10**30, 0.5, 1e308]
STRANGE += [float("nan"), float("inf"), "", "64", "eight", "\x00", "a" * 10_000]
STRANGE += [[], [1], [[]], {}, {"a": {}}, ["gelu", 1], "\ud800"]
values = st.sampled_from(STRANGE) | st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=5,
)


def places(value, path=()):
  """The path of everything that is in a JSON value."""
  yield path
  if isinstance(value, dict | list):
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
      yield from places(value[key], (*path, key))


def altered(raw, path, how, value):
  """A JSON value with one place of it replaced, removed or doubled."""
  if not path:
    return value
  copy = json.loads(json.dumps(raw))
  parent = copy
  for key in path[:-1]:
    parent = parent[key]
  if how == "replace":
    parent[path[-1]] = value
  elif how == "remove":
    del parent[path[-1]]
  elif isinstance(parent, dict):
    parent[f"{path[-1]}_"] = parent.pop(path[-1])
  else:
    parent.append(parent[path[-1]])
  return copy


@st.composite
def alterations(draw, file, least=1):
  """Bytes of a JSON file that is altered in some places, or cut."""
  raw = json.loads(file.read_bytes())
  for _ in range(draw(st.integers(least, 2))):
    # A vocabulary's thousand places do not crowd out the others.
    path = draw(st.sampled_from(list(places(raw))[:200]))
    how = draw(st.sampled_from(["replace", "replace", "remove", "rename"]))
    raw = altered(raw, path, how, draw(values))
    if not isinstance(raw, dict | list):
      break
  data = json.dumps(raw).encode("utf-8", "surrogatepass")
  if draw(st.integers(0, 9)) == 0:
    data = data[: draw(st.integers(0, len(data)))]
  return draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"])) + data


def attempt(call):
  """What a call gives, or None where it is refused as it should be."""
  try:
    return call()
  except InputError as error:
    message = str(error)
  assert message
  assert "\n" not in message
  assert len(message) < 20_000
  return None


def copy_of(source, **contents):
  folder = Path(tempfile.mkdtemp())
  for file in source.iterdir():
    # Links cost no time, and what is altered is written anew.
    if file.name not in contents:
      (folder / file.name).symlink_to(file)
  for name, data in contents.items():
    (folder / name).write_bytes(data)
  return folder


def check_clip(folder):
  try:
    own = attempt(lambda: load(folder))
    if own is None:
      return
    texts = attempt(lambda: embed(own))
    if texts is None:
      return
    assert texts.shape == (len(TEXTS), own.config.dim)
    assert np.isfinite(texts).all()
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-4)
  finally:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
  "name", ["config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_clip_with_an_altered_file(name):
  @few
  @given(alterations(quickstart.CLIP / name))
  def run(data):
    check_clip(copy_of(quickstart.CLIP, **{name: data}))

  run()


@few
@given(alterations(GOLDEN / "laion_vit" / OPEN_CLIP.config))
def test_an_altered_open_clip_config(data):
  folder = copy_of(GOLDEN / "laion_vit", **{OPEN_CLIP.config: data})
  path = folder / OPEN_CLIP.config

  def read():
    config = weights.read_config(path)
    return weights.convert(
      tensors.read_tensors(folder / OPEN_CLIP.weights), config
    )

  params = attempt(read)
  assert params is None or np.isfinite(params["text"]["tokens"]).all()
  spec = attempt(lambda: image_spec(path))
  assert spec is None or spec.size <= spec.resize
  shutil.rmtree(folder)


@pytest.mark.parametrize(
  ("model", "name"),
  [
    ("siglip", "config.json"),
    ("siglip", "tokenizer_config.json"),
    ("siglip2", "tokenizer.json"),
    ("siglip2", "tokenizer_config.json"),
  ],
)
def test_a_siglip_with_an_altered_file(model, name):
  @few
  @given(alterations(GOLDEN / model / name))
  def run(data):
    folder = copy_of(GOLDEN / model, **{name: data})
    own = attempt(lambda: siglip_weights.load_siglip(str(folder)))
    tokens = own and attempt(lambda: prompted.tokenize(own, TEXTS))
    if own and tokens:
      assert tokens.ids.shape == (len(TEXTS), own.config.positions)
      classifier = attempt(
        lambda: TextClassifier(
          Siglip(own.config), tokens, (0.0,) * 3, (1.0,) * 3
        )
      )
      if classifier:
        texts = classifier.class_embeddings(own.params, {})
        assert np.isfinite(texts).all()
    shutil.rmtree(folder)

  run()


@few
@given(alterations(GOLDEN / "dinov2_registers" / "config.json"))
def test_an_altered_dinov2_config(data):
  folder = copy_of(GOLDEN / "dinov2_registers", **{"config.json": data})
  own = attempt(lambda: dinov2_weights.load_dinov2(str(folder)))
  assert own is None or own.config.dim == 24
  shutil.rmtree(folder)


@pytest.mark.parametrize("nested", [False, True])
def test_an_altered_preprocessor(nested, tmp_path):
  whole = quickstart.CLIP / "preprocessor_config.json"
  source = tmp_path / whole.name
  raw = json.loads(whole.read_text())
  source.write_text(json.dumps({"image_processor": raw} if nested else raw))
  name = "processor_config.json" if nested else whole.name

  @few
  @given(alterations(source))
  def run(data):
    folder = copy_of(tmp_path, **{name: data, whole.name: data})
    spec = attempt(lambda: image_spec(folder))
    shutil.rmtree(folder)
    if spec is not None:
      assert isinstance(spec, ImageSpec)
      assert 0 < spec.size <= spec.resize
      assert min(spec.std) > 0
      assert np.isfinite([*spec.mean, *spec.std]).all()

  run()


@st.composite
def cut_or_flipped(draw, data, head):
  """Bytes of which some at the beginning are others, or the end is missing."""
  data = bytearray(data)
  for _ in range(draw(st.integers(1, 4))):
    place = draw(st.integers(0, min(head, len(data)) - 1))
    data[place] = draw(st.integers(0, 255))
  if draw(st.booleans()):
    del data[draw(st.integers(0, len(data))) :]
  return bytes(data)


SAFETENSORS = (GOLDEN / "clip_gelu" / "model.safetensors").read_bytes()
MSGPACK = serialization.msgpack_serialize(
  in_flax_naming(load_file(GOLDEN / "clip_gelu" / "model.safetensors"))
)


@pytest.mark.parametrize(
  ("name", "data"),
  [("model.safetensors", SAFETENSORS), ("flax_model.msgpack", MSGPACK)],
  ids=["safetensors", "msgpack"],
)
def test_altered_bytes_of_weights(name, data, tmp_path):
  config = weights.read_config(GOLDEN / "clip_gelu" / "config.json")

  @few
  @given(cut_or_flipped(data, 3000))
  def run(altered):
    (tmp_path / name).write_bytes(altered)
    params = attempt(
      lambda: weights.convert(tensors.read_tensors(tmp_path / name), config)
    )
    assert params is None or np.isfinite(params["text"]["tokens"]).all()

  run()


@few
@given(st.data())
def test_an_altered_header_of_safetensors(data):
  """The header is JSON with its length before it; both stay in step."""
  length = int.from_bytes(SAFETENSORS[:8], "little")
  with tempfile.TemporaryDirectory() as folder:
    header = Path(folder) / "header.json"
    header.write_bytes(SAFETENSORS[8 : 8 + length])
    changed = data.draw(alterations(header))
    path = Path(folder) / "model.safetensors"
    size = len(changed).to_bytes(8, "little")
    path.write_bytes(size + changed + SAFETENSORS[8 + length :])
    config = weights.read_config(GOLDEN / "clip_gelu" / "config.json")
    attempt(lambda: weights.convert(tensors.read_tensors(path), config))


@few
@given(st.data())
def test_an_altered_index_of_shards(data):
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / INDEX
    table = {"a": "model-00001-of-00002.safetensors", "b": "c.safetensors"}
    path.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    path.write_bytes(data.draw(alterations(path)))
    for name in attempt(lambda: shard_names(path)) or ():
      assert os.path.dirname(name) == ""
      assert name.endswith(".safetensors")


@few
@given(st.data())
def test_altered_descriptors(data):
  traits = {"river": ["wet", "long"], "sea or lake": ["blue"], "Forest": ["a"]}
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "d.json"
    path.write_text(json.dumps(traits))
    path.write_bytes(data.draw(alterations(path)))
    classes = ("River", "sea or lake", "forest")
    made = attempt(lambda: with_descriptors(classes, read_descriptors(path)))
    if made is not None:
      assert set(made[1]) == {0, 1, 2}
      assert all(", which " in phrase for phrase in made[0])
