"""SigLIP against PyTorch, through files that `save_pretrained` wrote."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from runs import load
from safetensors.numpy import load_file, save_file

import cpeal_jax as cpeal
from cpeal_jax import config as config_lib
from cpeal_jax.data.digits import CLASSES, load_digits
from cpeal_jax.errors import InputError
from cpeal_jax.models import (
  backbones,
  prompted,
  siglip_text,
  siglip_weights,
  text,
  text_context,
  tokenizer,
)
from cpeal_jax.models.adapters import Prompts
from cpeal_jax.models.backbone import Wording
from cpeal_jax.models.classifier import cosine_logits
from cpeal_jax.models.clip import normalize
from cpeal_jax.models.siglip import Siglip, config_from_hf
from cpeal_jax.run import loop
from cpeal_jax.run.plan import make_plan

GOLDEN = Path(__file__).parent / "golden"
RANDOM = ("siglip", "siglip2")


def golden(name):
  own = siglip_weights.load_siglip(str(GOLDEN / name))
  return own, dict(np.load(GOLDEN / name / "expected.npz"))


def outputs(own, want, ids, dtype=jnp.float32):
  with jax.default_matmul_precision("highest"):
    images, texts = jax.jit(Siglip(own.config, dtype=dtype).apply)(
      {"params": own.params}, want["pixels"], ids, np.full_like(ids, -1)
    )
  units = normalize(images), normalize(texts)
  scaled = cosine_logits(*units, own.params["logit_scale"])
  return {
    "image_features": images,
    "text_features": texts,
    "image_embeds": units[0],
    "text_embeds": units[1],
    "logits": scaled + own.params["logit_bias"],
  }


@pytest.mark.parametrize("name", RANDOM)
def test_random_models_agree_with_pytorch(name):
  """From a text and a picture to logits, with our own tokens."""
  own, want = golden(name)
  tokens = siglip_text.tokenize(
    [str(line) for line in want["texts"]],
    own.tokenizer,
    positions=own.config.positions,
  )
  np.testing.assert_array_equal(tokens.ids, want["ids"])
  for key, value in outputs(own, want, tokens.ids).items():
    gap = np.abs(np.asarray(value) - want[key]).max()
    assert gap <= 1e-5 * np.abs(want[key]).max(), key
  # Else the tolerance would pass a tower that hardly looks at its input.
  for key in ("image_features", "text_features"):
    assert np.std(want[key], axis=0).max() > 0.01
  assert {x.dtype for x in jax.tree.leaves(own.params)} == {np.dtype("float32")}


@pytest.mark.parametrize("name", RANDOM)
def test_bfloat16_stays_close(name):
  own, want = golden(name)
  got = outputs(own, want, want["ids"], jnp.bfloat16)
  for kind in ("image_embeds", "text_embeds"):
    assert np.sum(got[kind] * want[kind], axis=1).min() > 0.999


@pytest.mark.parametrize("name", RANDOM)
def test_there_and_back_is_bit_identical(tmp_path, name):
  """Through a file, which has an array's memory and not its strides."""
  own, _ = golden(name)
  file = load_file(GOLDEN / name / "model.safetensors")
  written = tmp_path / "model.safetensors"
  save_file(siglip_weights.to_hf(own.params, own.config), written)
  got = load_file(written)
  assert got.keys() == file.keys()
  for key, value in file.items():
    assert got[key].shape == value.shape, key
    np.testing.assert_array_equal(got[key], value)
  raw = json.loads((GOLDEN / name / "config.json").read_text())
  again = siglip_weights.hf_config(own.config, dtype="float32")
  for tower in ("text_config", "vision_config"):
    assert again[tower].items() <= raw[tower].items()


# ---- full sizes

WIDE = {"hidden_size": 1152, "intermediate_size": 4304}
WIDE |= {"num_hidden_layers": 27, "num_attention_heads": 16}


# OpenCLIP's docs/model_profile.csv, in millions: ViT-B-16-SigLIP,
# ViT-SO400M-14-SigLIP-384 and ViT-B-16-SigLIP-i18n-256. The last one has nearly
# the vocabulary of SigLIP 2, for which that file has no line.
@pytest.mark.parametrize(
  ("millions", "vision", "words"),
  [
    (203.16, {}, {}),
    (877.96, WIDE | {"image_size": 384, "patch_size": 14}, WIDE),
    (370.63, {"image_size": 256}, {"vocab_size": 250_000}),
    (375.19, {}, {"vocab_size": 256_000}),
  ],
)
def test_full_sizes_have_the_published_parameter_counts(
  millions, vision, words
):
  config = config_from_hf({"vision_config": vision, "text_config": words})
  leaves = jax.tree.leaves(siglip_weights.shapes(config))
  assert round(sum(leaf.size for leaf in leaves) / 1e6, 2) == millions


# ---- texts


@pytest.mark.parametrize("name", RANDOM)
def test_padding_is_part_of_a_text(name):
  """So a text is never cut after its last word, as CLIP's are."""
  own, want = golden(name)
  whole = prompted.tokenize(own, ["cat", "dog"])
  assert whole.ids.shape == (2, own.config.positions)
  cut = text.tokenize(["cat", "dog"], own.tokenizer)
  assert cut.ids.shape == (2, 8)
  features = [
    outputs(own, want, tokens.ids)["text_embeds"] for tokens in (whole, cut)
  ]
  assert np.abs(features[0] - features[1]).max() > 1e-2


@pytest.mark.parametrize("name", RANDOM)
def test_case_is_no_part_of_a_text(name):
  own, _ = golden(name)
  upper = prompted.tokenize(own, ["A Photo of a CAT."])
  lower = prompted.tokenize(own, ["a photo of a cat."])
  np.testing.assert_array_equal(upper.ids, lower.ids)
  assert upper.texts == lower.texts == ("a photo of a cat.",)


TEMPLATES = (
  "a photo of the digit {}.",
  "{} on a photo",
  "the {} of a photo.",
  "A {}, seen from above!",
)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", RANDOM)
def test_prompts_from_a_template_begin_as_the_template(name, template):
  """Token for token, with the spaces that a tokenizer makes pieces of."""
  own, _ = golden(name)
  prompts = Prompts(initial="template")
  context = text_context.context_of(prompts, template.lower(), own.tokenizer)
  learned = siglip_text.tokenize_with_context(
    CLASSES, own.tokenizer, context, positions=own.config.positions
  )
  fixed = prompted.tokenize(own, text.from_template(CLASSES, template))
  np.testing.assert_array_equal(learned.ids, fixed.ids)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("name", RANDOM)
def test_learned_prompts_keep_the_length_of_training(name, position):
  own, _ = golden(name)
  trained, zero_shot = backbones.backbone_of(own).classifiers(
    own,
    ("cat", "Dog", "long_tail"),
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    lora=None,
    prompts=Prompts(tokens=4, position=position),
    wording=Wording(),
    dtype="float32",
    remat=False,
  )
  shape = 3, own.config.positions
  assert trained.tokens.ids.shape == zero_shot.tokens.ids.shape == shape
  for slots in trained.tokens.slots:
    assert [slot for slot in slots if slot >= 0] == [0, 1, 2, 3]
  # There is no start token, so the first place is the first vector's or the
  # name's.
  assert (
    trained.tokens.slots[:, 0] == (-1 if position == "front" else 0)
  ).all()
  adapter = trained.init(own.params, jax.random.key(0))
  assert adapter["text"]["context"].shape == (3, 4, own.config.text.width)
  embeddings = trained.class_embeddings(own.params, adapter)
  lengths = np.linalg.norm(embeddings, axis=1)
  np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_prompts_that_are_too_long_are_refused():
  own, _ = golden("siglip2")
  with pytest.raises(
    InputError, match="longer than the text tower's 40 tokens"
  ):
    prompted.tokenize(own, ["cat " * 40])
  context = text_context.context_of(Prompts(tokens=39), "", own.tokenizer)
  with pytest.raises(InputError, match=r"lower adapter\.prompts\.tokens"):
    siglip_text.tokenize_with_context(
      ("cat",), own.tokenizer, context, positions=40
    )


def test_the_library_reads_a_siglip():
  _, want = golden("siglip")
  model = cpeal.load_clip(GOLDEN / "siglip")
  assert "SigLIP" in repr(model)
  assert model.logit_scale == pytest.approx(np.exp(2.5), rel=1e-5)
  with jax.default_matmul_precision("highest"):
    texts = model.encode_texts([str(line) for line in want["texts"]])
  np.testing.assert_allclose(texts, want["text_embeds"], atol=1e-5)
  pixels = np.random.default_rng(0).integers(0, 256, (2, 30, 20, 3), np.uint8)
  images = model.encode_images(list(pixels))
  np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)


# ---- runs


def small(folder, variant, name="siglip", **changes):
  """A preset of configs/eurosat.py, on the digits with a small SigLIP."""
  config = load("eurosat").get_config(variant)
  config.dataset.layout = "digits"
  config.model.weights = str(GOLDEN / name)
  config.model.template = "a photo of the digit {}."
  config.cache_dir = str(folder / "cache")
  config.parallel.devices = 1
  config.scoring.tile = 32
  config.rounds = 2
  config.train.epochs = 2
  config.update_from_flattened_dict(changes)
  config_lib.validate(config)
  return config


RUNS = [
  ("anchored", "siglip"),
  ("cpeal_lora", "siglip2"),
  ("cpeal_prompt", "siglip"),
]
SLOW_RUNS = [
  ("cpeal_prompt", "siglip2"),
  ("pcb", "siglip2"),
  ("cec", "siglip"),
  ("cpeal_script", "siglip"),
  ("cpeal_lora_script", "siglip"),
  ("cpeal_lora_anchored", "siglip"),
  ("cpeal_prompt_anchored", "siglip2"),
]


def check_run(tmp_path, variant, name):
  workdir = tmp_path / "run"
  config = small(tmp_path, variant, name)
  # A preset names the model of its paper; this is another.
  rows = loop.run(config, workdir)
  assert [row["round"] for row in rows] == [-1, 0, 1]  # zero-shot before
  test = load_digits().test
  probs = cpeal.load_run(workdir).predict(
    [test.open(i) for i in range(len(test))]
  )
  hits = np.mean(probs.argmax(axis=1) == test.labels)
  assert hits == pytest.approx(rows[-1]["accuracy"], abs=1e-6)
  kept = json.loads((workdir / "environment.json").read_text())
  assert kept["zero_shot_prompts"][3] == "a photo of the digit three."


@pytest.mark.parametrize(("variant", "name"), RUNS)
def test_presets_run(tmp_path, variant, name):
  check_run(tmp_path, variant, name)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "name"), SLOW_RUNS)
def test_the_other_presets_run(tmp_path, variant, name):
  check_run(tmp_path, variant, name)


@pytest.mark.slow
def test_descriptors_run(tmp_path):
  traits = tmp_path / "traits.json"
  traits.write_text(json.dumps({n: ["a line", "small"] for n in CLASSES}))
  more = {"model.descriptors": str(traits)}
  config = small(tmp_path, "pcb_as", **more)
  assert len(loop.run(config, tmp_path / "run")) == 3


def test_lora_is_refused_where_there_is_no_block(tmp_path):
  layers = {"adapter.lora.layers": "0,3"}
  with pytest.raises(InputError, match="vision and text tower has 3 blocks"):
    make_plan(small(tmp_path, "cpeal_lora", **layers))
  with pytest.raises(InputError, match="anchored_head a DINOv2"):
    make_plan(small(tmp_path, "peal"))


# ---- files that are refused


@pytest.fixture
def copy(tmp_path):
  """A copy of the golden model, to be altered."""
  return shutil.copytree(GOLDEN / "siglip", tmp_path / "siglip")


def edit(folder, file="config.json", tower="", **values):
  raw = json.loads((folder / file).read_text())
  (raw[tower] if tower else raw).update(values)
  (folder / file).write_text(json.dumps(raw))


def refused(folder, *words):
  """The one line with which a run on a folder is refused."""
  with pytest.raises(InputError) as error:
    backbones.load("lora", str(folder))
  message = str(error.value)
  assert "\n" not in message
  for word in words:
    assert word in message, message


VALUES = [
  ("text_config", "hidden_act", "relu", "hidden_act"),
  ("vision_config", "hidden_act", "gelu", ""),  # another, and supported
  ("vision_config", "num_attention_heads", 5, "does not divide"),
  ("text_config", "num_attention_heads", 0, "text_config.num_attention_heads"),
  ("text_config", "hidden_size", 48, "the config wants (48, 96)"),
  ("text_config", "projection_size", 16, "texts end in 16 dimensions"),
  ("text_config", "projection_size", "32", "text_config.projection_size"),
  ("vision_config", "vision_use_head", False, "vision_config.vision_use_head"),
  ("vision_config", "patch_size", 48, "vision_config.patch_size"),
  ("vision_config", "patch_size", 12, "vision/positions"),
  ("vision_config", "num_channels", 1, "num_channels"),
  ("vision_config", "image_size", [24, 24], "vision_config.image_size"),
  ("vision_config", "num_hidden_layers", 3, "missing vision_model.encoder"),
  ("text_config", "max_position_embeddings", 32, "text/positions"),
  ("text_config", "vocab_size", 58, "text/tokens"),
  ("vision_config", "intermediate_size", 63, "vision/pool/mlp1/kernel"),
  ("vision_config", "layer_norm_eps", "small", "layer_norm_eps"),
]


@pytest.mark.parametrize(("tower", "field", "value", "words"), VALUES)
def test_an_altered_config_is_refused(copy, tower, field, value, words):
  edit(copy, tower=tower, **{field: value})
  if words:
    refused(copy, words)
  else:
    backbones.load("lora", str(copy))


def test_another_model_is_refused_by_name(copy):
  edit(copy, model_type="siglip2")
  refused(copy, "model_type 'siglip2'", "'clip' or 'siglip'", "NaFlex")
  edit(copy, model_type="siglip_text_model")
  refused(copy, "model_type 'siglip_text_model'")
  edit(copy, model_type="clip")  # whose end token is in the vocabulary
  refused(copy, "text_config.eos_token_id is 49407")
  edit(copy, tower="text_config", eos_token_id=56)
  refused(copy, "missing vision_model.pre_layrnorm.weight", "left over")
  edit(copy, model_type="siglip", text_config=None)
  refused(copy, "no text_config")
  edit(copy, text_config=[1])
  refused(copy, "text_config is [1]")


def test_tensors_that_do_not_fit_are_in_one_message(copy):
  file = copy / "model.safetensors"
  tensors = load_file(file)
  del tensors["logit_bias"]
  del tensors["vision_model.head.attention.out_proj.bias"]
  del tensors["vision_model.embeddings.patch_embedding.bias"]
  stacked = "vision_model.head.attention.in_proj_weight"
  tensors[stacked] = tensors[stacked][:64]
  tensors["classifier.weight"] = np.zeros((2, 2), np.float32)
  save_file(tensors, file, {"format": "pt"})
  refused(
    copy,
    "missing logit_bias",
    "missing vision_model.head.attention.out_proj.bias",
    "missing vision_model.embeddings.patch_embedding.bias",
    f"{stacked} gives",
    "left over classifier.weight",
  )


def test_a_scale_that_is_no_logarithm_is_refused(copy):
  file = copy / "model.safetensors"
  tensors = load_file(file)
  tensors["logit_scale"] = np.float32([117.0])
  save_file(tensors, file, {"format": "pt"})
  refused(copy, "logit_scale is 117")


def test_a_model_without_its_tokenizer_is_refused(copy):
  (copy / "spiece.model").unlink()
  refused(copy, "has no tokenizer", "or spiece.model")
  (copy / "spiece.model").write_bytes(b"none of this is a model")
  refused(copy, "no usable tokenizer")


def test_sentencepiece_is_asked_for_by_the_extras_name(copy, monkeypatch):
  monkeypatch.setattr(tokenizer, "_is_installed", lambda module: False)
  refused(copy, "without sentencepiece and protobuf", "cpeal_jax[siglip]")
  # SigLIP 2's tokenizer.json needs neither.
  assert backbones.load("lora", str(GOLDEN / "siglip2"))


def test_a_tokenizer_without_padding_is_refused(copy):
  own, _ = golden("siglip2")
  made = transformers.AutoTokenizer.from_pretrained(GOLDEN / "siglip2")
  made.pad_token = None
  with pytest.raises(InputError, match="names no padding token"):
    siglip_text.tokenize(["cat"], made, positions=own.config.positions)


def test_a_tokenizer_that_pads_on_the_left_pads_on_the_right(tmp_path):
  """Gemma's class pads on the left by itself, and training did not."""
  folder = shutil.copytree(GOLDEN / "siglip2", tmp_path / "left")
  edit(folder, "tokenizer_config.json", padding_side="left")
  own = siglip_weights.load_siglip(str(folder))
  assert own.tokenizer.padding_side == "left"
  want = np.load(GOLDEN / "siglip2" / "expected.npz")
  tokens = prompted.tokenize(own, [str(line) for line in want["texts"]])
  np.testing.assert_array_equal(tokens.ids, want["ids"])


def test_images_of_another_size_are_refused(tmp_path, copy):
  edit(copy, "preprocessor_config.json", size={"height": 32, "width": 32})
  config = small(tmp_path, "cpeal_lora")
  config.model.weights = str(copy)
  with pytest.raises(InputError, match="crops to 32 pixels"):
    make_plan(config)
