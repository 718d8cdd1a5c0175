"""The files of a CLIP that people bring: whole, in parts, and out of order."""

import hashlib
import json
import os
import shutil
import socket
import stat
from pathlib import Path

import numpy as np
import pytest
from model_files import embed, load, save_tokenizer
from safetensors.numpy import load_file, save_file

from cpeal_jax import quickstart
from cpeal_jax.data.images import ImageSpec, image_spec
from cpeal_jax.errors import InputError
from cpeal_jax.models import dinov2_weights, hub, text, tokenizer, weights
from cpeal_jax.models.shards import INDEX, combined_sha256

GOLDENS = Path(__file__).parent / "golden"
OPEN_CLIP = hub.LAYOUTS[1]
TABLE = "text_model.embeddings.token_embedding.weight"


@pytest.fixture
def clip(tmp_path):
  """A copy of the embedded CLIP, to be altered."""
  return shutil.copytree(quickstart.CLIP, tmp_path / "clip")


def edit(folder, name="config.json", tower="", **values):
  """Sets fields of a JSON file, in one of its objects if `tower` names it."""
  raw = json.loads((folder / name).read_text())
  (raw[tower] if tower else raw).update(values)
  (folder / name).write_text(json.dumps(raw))


def edit_tensors(folder, change):
  tensors = load_file(folder / "model.safetensors")
  change(tensors)
  save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def refused(folder, *words):
  """The one line with which a folder is refused."""
  with pytest.raises(InputError) as error:
    load(folder)
  message = str(error.value)
  assert "\n" not in message
  for word in words:
    assert word in message, message
  return message


# ---- where the text tower is pooled


@pytest.fixture(scope="module")
def right():
  return embed(load(quickstart.CLIP))


@pytest.mark.parametrize("rows", [0, 1, 15])
def test_an_old_end_token_means_the_largest_id(clip, right, rows):
  """Also with a padded vocabulary, whose last row is no end token."""
  size = 177 + rows
  edit(clip, tower="text_config", eos_token_id=2, vocab_size=size)

  def pad(tensors):
    more = np.zeros((rows, tensors[TABLE].shape[1]), tensors[TABLE].dtype)
    tensors[TABLE] = np.concatenate([tensors[TABLE], more])

  edit_tensors(clip, pad)
  np.testing.assert_allclose(embed(load(clip)), right, atol=1e-6)


def test_an_added_token_is_pooled_where_transformers_does(clip, right):
  """With an end token of its own, a config lets tokens be added behind it."""
  rng = np.random.default_rng(0)

  def add(tensors):
    more = rng.normal(size=(1, tensors[TABLE].shape[1]))
    more = more.astype(tensors[TABLE].dtype)
    tensors[TABLE] = np.concatenate([tensors[TABLE], more])

  edit(clip, tower="text_config", vocab_size=178)
  edit_tensors(clip, add)
  own = load(clip)
  own.tokenizer.add_tokens(["newword"])
  np.testing.assert_allclose(embed(own), right, atol=1e-6)
  both = embed(own, ("a newword cat", "a newword dog"))
  assert np.abs(both[0] - both[1]).max() > 1e-3
  # By the old id the tower is pooled at the added token, before the words that
  # tell the prompts apart; that is refused, not answered.
  edit(clip, tower="text_config", eos_token_id=2)
  old = load(clip)
  old.tokenizer.add_tokens(["newword"])
  prompts = ("a newword cat", "a newword dog")
  with pytest.raises(InputError, match="have the same text embedding"):
    text.refuse_equal(prompts, embed(old, prompts))


def test_open_clips_padded_vocabulary(tmp_path):
  folder = shutil.copytree(GOLDENS / "laion_vit", tmp_path / "m")
  save_tokenizer(folder)
  want = embed(load(folder), ("one", "two"))
  raw = json.loads((folder / OPEN_CLIP.config).read_text())
  raw["model_cfg"]["text_cfg"]["vocab_size"] += 24
  (folder / OPEN_CLIP.config).write_text(json.dumps(raw))
  tensors = load_file(folder / OPEN_CLIP.weights)
  table = tensors["token_embedding.weight"]
  more = np.ones((24, table.shape[1]), table.dtype)
  tensors["token_embedding.weight"] = np.concatenate([table, more])
  save_file(tensors, folder / OPEN_CLIP.weights)
  np.testing.assert_allclose(embed(load(folder), ("one", "two")), want, 1e-6)


def test_a_prompt_without_its_end_token_is_refused(clip):
  """The config's end token is another than the tokenizer's."""
  edit(clip, tower="text_config", eos_token_id=5)
  with pytest.raises(InputError, match=r"lacks the end token, id 5"):
    embed(load(clip))
  edit(clip, tower="text_config", eos_token_id=176)
  edit(clip, "tokenizer.json", post_processor=None)
  with pytest.raises(InputError, match="gives no end token"):
    embed(load(clip))


def test_a_token_beyond_the_table_is_refused(clip):
  own = load(clip)
  own.tokenizer.add_tokens(["newword"])
  with pytest.raises(InputError, match="token id 177, and the text tower has"):
    embed(own, ("a newword",))


def test_an_end_token_outside_the_vocabulary_is_refused(clip):
  edit(clip, tower="text_config", eos_token_id=49407)
  refused(clip, "text_config.eos_token_id is 49407", "0 to 176")


def test_equal_embeddings_are_refused():
  rows = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
  with pytest.raises(InputError, match="'猫' and '狗' have the same"):
    text.refuse_equal(("猫", "cat", "狗"), rows)
  text.refuse_equal(("Cat", "dog", " cat"), rows)


# ---- the tokenizer


@pytest.mark.parametrize("left", [(), ("tokenizer_config.json",)])
def test_a_directory_without_a_tokenizer_is_refused(clip, left):
  for file in clip.glob("token*"):
    if file.name not in left:
      file.unlink()
  refused(clip, "has no tokenizer: it needs tokenizer.json, or vocab.json and")


def test_half_a_tokenizer_is_none(clip):
  for file in clip.glob("token*"):
    file.unlink()
  (clip / "vocab.json").write_text('{"a": 0}')
  refused(clip, "has no tokenizer")


def test_an_empty_vocabulary_is_refused(clip):
  raw = json.loads((clip / "tokenizer.json").read_text())
  raw["model"]["vocab"] = {"<|unknown|>": 0}
  (clip / "tokenizer.json").write_text(json.dumps(raw))
  refused(clip, "no usable tokenizer: its vocabulary is empty")


def test_a_tokenizer_that_is_taken_for_another_is_refused(clip):
  """Without its class, transformers takes the one of the model's type."""
  (clip / "tokenizer_config.json").unlink()
  refused(clip, "other tokens than tokenizer.json says", "CLIPTokenizer")


def test_a_vocabulary_with_holes_is_refused(clip):
  raw = json.loads((clip / "tokenizer.json").read_text())
  vocabulary = raw["model"]["vocab"]
  raw["model"]["vocab"] = {
    word: i for word, i in vocabulary.items() if i % 2 or i in (0, 176)
  }
  (clip / "tokenizer.json").write_text(json.dumps(raw))
  refused(clip, "of its token ids have no word, so it is not whole")


def test_a_tokenizer_of_code_is_not_run(clip):
  edit(
    clip,
    "tokenizer_config.json",
    auto_map={"AutoTokenizer": ["evil.Evil", None]},
    tokenizer_class="Evil",
  )
  (clip / "evil.py").write_text(f"open({str(clip / 'ran')!r}, 'w')")
  try:
    load(clip)
  except InputError as error:
    assert "no usable tokenizer" in str(error)  # noqa: PT017
  assert not (clip / "ran").exists()


# ---- numbers in the weights


@pytest.mark.parametrize(
  ("name", "value", "word"),
  [
    (TABLE, np.nan, "nan"),
    ("vision_model.post_layernorm.bias", np.inf, "inf"),
    ("logit_scale", -np.inf, "inf"),
  ],
)
def test_what_is_not_finite_is_named(clip, name, value, word):
  def change(tensors):
    tensors[name] = tensors[name].copy()
    tensors[name].reshape(-1)[-1] = value

  edit_tensors(clip, change)
  refused(clip, "1 problem: ", f"{name} has {word}")


def test_a_double_beyond_float32_is_named(clip):
  def change(tensors):
    bias = tensors["text_model.final_layer_norm.bias"].astype(np.float64)
    tensors["text_model.final_layer_norm.bias"] = bias + 1e300

  edit_tensors(clip, change)
  refused(clip, "text_model.final_layer_norm.bias has inf")


@pytest.mark.parametrize("dtype", [np.int8, np.bool_])
def test_a_type_without_fractions_is_named(clip, dtype):
  def change(tensors):
    tensors["text_projection.weight"] = tensors[
      "text_projection.weight"
    ].astype(dtype)

  edit_tensors(clip, change)
  refused(clip, f"text_projection.weight has type {np.dtype(dtype)}")


def test_a_logit_scale_is_a_scalar_or_one_number(clip):
  want = load(clip).params["logit_scale"]

  def change(tensors):
    tensors["logit_scale"] = tensors["logit_scale"].reshape(1)

  edit_tensors(clip, change)
  own = load(clip)
  assert own.params["logit_scale"].shape == ()
  assert own.params["logit_scale"] == want

  def exponentiate(tensors):
    tensors["logit_scale"] = np.float32([100])

  edit_tensors(clip, exponentiate)
  refused(clip, "logit_scale is 100; it must be a logarithm")


# ---- weights in several files


def split(folder, parts=2):
  """Writes the weights as `save_pretrained` splits them; their names."""
  tensors = load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  table, files = {}, []
  for part in range(parts):
    file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
    names = sorted(tensors)[part::parts]
    save_file({name: tensors[name] for name in names}, folder / file)
    table |= dict.fromkeys(names, file)
    files.append(file)
  raw = {"metadata": {"total_size": 1}, "weight_map": table}
  (folder / INDEX).write_text(json.dumps(raw))
  return files


def test_shards_are_one_model(clip, right):
  files = split(clip, 3)
  own = load(clip)
  np.testing.assert_array_equal(embed(own), right)
  assert own.weights.name == INDEX
  digests = {
    name: hashlib.sha256((clip / name).read_bytes()).hexdigest()
    for name in files
  }
  assert own.sha256 == combined_sha256(digests)
  # By what is in the files, not by the index.
  edit(clip, INDEX, metadata={})
  assert load(clip).sha256 == own.sha256
  tensors = load_file(clip / files[1])
  name = next(iter(tensors))
  save_file(tensors | {name: tensors[name] + 1}, clip / files[1])
  assert load(clip).sha256 != own.sha256


@pytest.mark.parametrize(
  "name", ["../model-1.safetensors", "/tmp/a.safetensors", "a.bin", 3, None]
)
def test_a_shard_outside_the_directory_is_refused(clip, name):
  split(clip)
  edit(clip, INDEX, tower="weight_map", logit_scale=name)
  refused(clip, f"{INDEX}: weight_map.logit_scale is", "beside the index")


def test_shards_that_are_not_whole_are_refused(clip):
  first, second = split(clip)
  tensors = load_file(clip / second)
  kept = dict(list(tensors.items())[1:])
  save_file(kept, clip / second)
  refused(clip, "names lack 1 tensor, such as", second)
  save_file(tensors | load_file(clip / first), clip / second)
  refused(clip, "but by the index it is in")
  (clip / second).unlink()
  refused(clip, f"{second}: No such file")
  edit(clip, INDEX, weight_map={})
  refused(clip, "weight_map is empty")


# ---- the image processor's settings


def nest(folder, **values):
  """Moves the settings to where transformers 5 saves them."""
  path = folder / "preprocessor_config.json"
  raw = json.loads(path.read_text()) | values
  nested = {"image_processor": raw, "processor_class": "CLIPProcessor"}
  (folder / "processor_config.json").write_text(json.dumps(nested))
  return path


def test_the_processor_of_transformers_5(clip):
  want = image_spec(clip)
  assert want != ImageSpec(32, 32)
  nest(clip).unlink()
  assert image_spec(load(clip).preprocessor) == want
  assert image_spec(clip) == want


def test_of_two_the_nested_settings_count(clip):
  nest(clip, image_mean=[0.1, 0.2, 0.3])
  assert image_spec(load(clip).preprocessor).mean == (0.1, 0.2, 0.3)
  # An older file of that name is about something else.
  (clip / "processor_config.json").write_text('{"processor_class": "C"}')
  assert image_spec(load(clip).preprocessor).mean == (0.5, 0.5, 0.5)
  (clip / "preprocessor_config.json").unlink()
  with pytest.raises(InputError, match=r"image_processor is missing"):
    image_spec(load(clip).preprocessor)


# ---- a byte order mark


def test_a_byte_order_mark_is_passed_over(clip, right):
  want = image_spec(clip)
  for file in clip.glob("*.json"):
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
  own = load(clip)
  np.testing.assert_array_equal(embed(own), right)
  assert image_spec(own.preprocessor) == want
  split_ = clip / INDEX
  split(clip)
  split_.write_bytes(b"\xef\xbb\xbf" + split_.read_bytes())
  np.testing.assert_array_equal(embed(load(clip)), right)


# ---- what is no file, or may not be read


def make_fifo(path):
  os.mkfifo(path)


def make_directory(path):
  path.mkdir()


def make_device(path):
  path.symlink_to("/dev/zero")


def make_socket(path):
  # A socket's address is short, so it is bound from its own folder.
  before = os.getcwd()
  os.chdir(path.parent)
  try:
    with socket.socket(socket.AF_UNIX) as own:
      own.bind(path.name)
  finally:
    os.chdir(before)


def make_broken_link(path):
  path.symlink_to(path.parent / "nowhere")


def make_circle(path):
  path.symlink_to(path)


MAKERS = {
  make_fifo: "a named pipe",
  make_directory: "a directory",
  make_device: "a device",
  make_socket: "a socket",
  make_broken_link: "a link to a file that is not there",
  make_circle: "levels of symbolic links",
}
FILES = ("model.safetensors", "config.json", "tokenizer.json")


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_named_and_not_waited_for(clip, name, make):
  (clip / name).unlink()
  make(clip / name)
  refused(clip, f"cannot read {clip / name}: ", MAKERS[make])


@pytest.mark.parametrize("name", ["preprocessor_config.json", INDEX])
def test_other_files_are_not_waited_for_either(clip, name):
  if name == INDEX:
    split(clip)
  (clip / name).unlink()
  make_fifo(clip / name)
  with pytest.raises(InputError, match="a named pipe"):
    image_spec(load(clip).preprocessor)


def test_a_file_is_no_directory(clip):
  hint = "--config.model.arch=ViT-B-32."
  refused(clip / "model.safetensors", "is no directory; give the", hint)
  with pytest.raises(InputError, match="is no directory") as error:
    hub.locate(str(clip / "model.safetensors"), "DINOv2")
  assert "CLIP" not in str(error.value)


def test_a_model_that_is_not_whole_is_not_called_none(clip):
  (clip / "model.safetensors").rename(clip / "weights.h5")
  message = refused(clip, "has no model.safetensors", "is not whole")
  assert "holds no CLIP" not in message
  assert "It has weights.h5 instead" in message


# ---- config.json

VALUES = [
  ("text_config", "num_attention_heads", 5, "does not divide"),
  ("vision_config", "num_attention_heads", 7, "does not divide"),
  ("text_config", "hidden_size", None, "hidden_size is None"),
  ("text_config", "hidden_size", "64", "hidden_size is '64'"),
  ("text_config", "hidden_size", 64.0, "hidden_size is 64.0"),
  ("text_config", "hidden_size", True, "hidden_size is True"),
  ("text_config", "vocab_size", 10**30, "vocab_size is 1000"),
  ("vision_config", "num_hidden_layers", 0, "num_hidden_layers is 0"),
  ("vision_config", "num_hidden_layers", -1, "num_hidden_layers is -1"),
  ("text_config", "num_hidden_layers", 10**9, "num_hidden_layers is 1000000"),
  ("text_config", "num_hidden_layers", 900, "wants 903 blocks"),
  ("vision_config", "patch_size", "eight", "patch_size is 'eight'"),
  ("vision_config", "patch_size", 33, "patch_size is 33"),
  ("vision_config", "image_size", [32, 32], "image_size is [32, 32]"),
  ("vision_config", "image_size", 10**9, "image_size is 1000000000"),
  ("vision_config", "num_channels", 1, "num_channels is 1"),
  ("vision_config", "hidden_act", "swish", "unknown vision_config.hidden_act"),
  ("vision_config", "hidden_act", ["gelu"], "hidden_act is ['gelu']"),
  ("text_config", "layer_norm_eps", "1e-5", "layer_norm_eps is '1e-5'"),
  ("text_config", "layer_norm_eps", float("nan"), "layer_norm_eps is nan"),
  ("text_config", "max_position_embeddings", 0, "max_position_embeddings is 0"),
  ("text_config", "eos_token_id", [2], "eos_token_id is [2]"),
  ("", "projection_dim", None, "projection_dim is None"),
  ("", "text_config", [1], "text_config is [1]"),
  ("", "vision_config", "vit", "vision_config is 'vit'"),
  ("", "text_config_dict", 3, "text_config_dict is 3"),
  ("", "model_type", {"a": 1}, "model_type {'a': 1}"),
]


@pytest.mark.parametrize(("tower", "name", "value", "words"), VALUES)
def test_a_size_that_cannot_be_is_named(clip, tower, name, value, words):
  edit(clip, tower=tower, **{name: value})
  message = refused(clip, words)
  assert "config.json" in message or "blocks" in message


def test_a_whole_number_will_do_for_a_float(clip):
  edit(clip, tower="text_config", layer_norm_eps=1)
  epsilon = load(clip).config.text.epsilon
  assert (epsilon, type(epsilon)) == (1.0, float)


CONTENTS = {
  "empty": (b"", "is not JSON"),
  "cut": (b'{"model_type": "cl', "is not JSON"),
  "list": (b"[1]", "must hold one JSON object"),
  "null": (b"null", "must hold one JSON object"),
  "latin": (b'{"a": "\xe9"}', "is not JSON"),
  "zeros": (bytes(100), "is not JSON"),
  "deep": (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
  "deep_object": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too"),
  "long": (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize(
  "name", ["config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_file_that_is_no_object_is_named(clip, name, content):
  data, words = CONTENTS[content]
  (clip / name).write_bytes(data)
  refused(clip, str(clip / name), words)


@pytest.mark.parametrize("content", CONTENTS)
def test_a_preprocessor_that_is_no_object_is_named(tmp_path, content):
  data, words = CONTENTS[content]
  for name in ("preprocessor_config.json", OPEN_CLIP.config):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=words) as error:
      image_spec(tmp_path / name)
    assert name in str(error.value)


@pytest.mark.parametrize(
  "settings",
  [
    {"rescale_factor": "1/255"},
    {"rescale_factor": float("nan")},
    {"image_mean": ["a", 0, 0]},
    {"image_mean": [0, 0, float("inf")]},
    {"image_std": [0, 1, 1]},
    {"image_std": {"r": 1}},
    {"resample": True},
    {"resample": "bicubic"},
    {"do_center_crop": "false"},
    {"size": 10**9},
    {"size": {"shortest_edge": 10**400}},
    {"crop_size": [32]},
  ],
  ids=str,
)
def test_a_setting_that_cannot_be_is_named(clip, settings):
  edit(clip, "preprocessor_config.json", **settings)
  with pytest.raises(
    InputError, match=rf"config\.json: {next(iter(settings))}"
  ):
    image_spec(clip)


OPEN_CLIP_VALUES = [
  ("vision_cfg", "mlp_ratio", "4", "vision_cfg.mlp_ratio is '4'"),
  ("text_cfg", "mlp_ratio", float("inf"), "text_cfg.mlp_ratio is inf"),
  ("text_cfg", "mlp_ratio", 0.001, "perceptron is not empty"),
  ("vision_cfg", "norm_kwargs", {"eps": "a"}, "norm_kwargs.eps is 'a'"),
  ("vision_cfg", "norm_kwargs", [1], "norm_kwargs is [1]"),
  ("vision_cfg", "pool_type", "argmax", "vision_cfg.pool_type is 'argmax'"),
  ("text_cfg", "pool_type", "tok", "text_cfg.pool_type is 'tok'"),
  ("text_cfg", "layers", 10**9, "layers (not 1000000000)"),
  ("vision_cfg", "layers", [1, 2], "layers is [1, 2]"),
  ("vision_cfg", "image_size", [[30], [30]], "image_size (not [30])"),
  ("vision_cfg", "image_size", 2, "at least a patch"),
]


@pytest.mark.parametrize(("tower", "name", "value", "words"), OPEN_CLIP_VALUES)
def test_open_clips_sizes_that_cannot_be(tmp_path, tower, name, value, words):
  raw = json.loads((GOLDENS / "laion_vit" / OPEN_CLIP.config).read_text())
  raw["model_cfg"][tower][name] = value
  (tmp_path / OPEN_CLIP.config).write_text(json.dumps(raw))
  with pytest.raises(InputError) as error:
    weights.read_config(tmp_path / OPEN_CLIP.config)
  assert words in str(error.value)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("hidden_size", "24"),
    ("num_attention_heads", 5),
    ("num_hidden_layers", 10**9),
    ("mlp_ratio", None),
    ("patch_size", 0),
    ("num_register_tokens", -1),
    ("use_swiglu_ffn", "no"),
  ],
)
def test_dinov2s_sizes_that_cannot_be(tmp_path, name, value):
  folder = shutil.copytree(GOLDENS / "dinov2_registers", tmp_path / "d")
  edit(folder, **{name: value})
  with pytest.raises(InputError, match=rf"config\.json: {name} is"):
    dinov2_weights.load_dinov2(str(folder))


# ---- messages of other libraries


class Panic(BaseException):
  """What Rust's panics are in Python: no Exception, with an empty message."""


@pytest.mark.parametrize(
  "error", [Panic(), ValueError(""), KeyError("\x1b[1m")]
)
def test_an_exception_without_words_is_named_by_its_type(
  clip, monkeypatch, error
):
  def fail(*args, **kwargs):
    raise error

  monkeypatch.setattr(tokenizer, "_from_files", fail)
  message = refused(clip, "has no usable tokenizer: ")
  assert message.isprintable()
  if not str(error):
    assert type(error).__name__ in message


def test_what_may_not_be_read_is_named(clip):
  """Also as root, to whom the system allows everything."""
  os.chmod(clip / "model.safetensors", 0)
  if os.access(clip / "model.safetensors", os.R_OK):
    assert stat.S_IMODE(os.stat(clip / "model.safetensors").st_mode) == 0
    load(clip)
  else:
    refused(clip, "model.safetensors: Permission denied")
