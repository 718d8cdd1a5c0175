"""Weights out: what is written, checked by numpy; PyTorch's word by a golden.

tests/golden/check_export.py loads the same exports in PyTorch.
"""

import dataclasses
import json
import re
import resource
import shutil
import signal
import stat
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import transformers
from export_cases import (
  DINOS,
  IMAGES,
  LORAS,
  logits,
  make,
  on_dino,
  on_open_clip,
  on_siglip,
  pictures,
)
from flax import traverse_util
from runs import quickstart
from safetensors import safe_open
from safetensors.numpy import load_file

import cpeal_jax as cpeal
from cpeal_jax import export
from cpeal_jax import quickstart as embedded
from cpeal_jax.data.images import image_spec
from cpeal_jax.errors import InputError
from cpeal_jax.models import dinov2_weights, weights, weights_out
from cpeal_jax.models.adapters import Lora, Prompts, merge_lora
from cpeal_jax.models.clip import Clip
from cpeal_jax.models.naming import key_table
from cpeal_jax.run import loop

GOLDEN = Path(__file__).parent / "golden" / "export.npz"
BASE = embedded.CLIP / "model.safetensors"


def read_json(path):
  return json.loads(path.read_text())


def same_bits(a, b):
  return (
    a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
  )


@pytest.mark.parametrize("case", LORAS)
def test_our_logits_are_those_pytorch_gave_for_the_peft_export(case):
  np.testing.assert_allclose(
    logits(make(LORAS[case])), np.load(GOLDEN)[case], atol=1e-4
  )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_there_and_back_is_bit_identical(dtype):
  base = {k: v.astype(dtype) for k, v in load_file(BASE).items()}
  config = weights.load_pretrained(str(embedded.CLIP)).config
  back = weights_out.to_hf(weights.convert(base, config), config)
  assert back.keys() == base.keys()
  assert all(same_bits(back[k].astype(dtype), base[k]) for k in base)


@pytest.mark.parametrize("case", LORAS)
def test_transformers_export_touches_what_carries_lora_alone(case, tmp_path):
  own = make(LORAS[case])
  export.save(own, tmp_path / "out", format="transformers")
  base, got = load_file(BASE), load_file(tmp_path / "out/model.safetensors")
  merged = merge_lora(own.params, own.adapter, LORAS[case])
  want = weights_out.to_hf(merged, own.pretrained.config)
  changed = {name for name in base if not same_bits(base[name], got[name])}
  assert got.keys() == base.keys()
  assert all(same_bits(want[k].astype(np.float16), got[k]) for k in got)
  carry = weights_out.modules(own.adapter, key_table(own.pretrained.config))
  wrapped = re.compile(weights_out.target_modules(carry.values()))
  assert changed == {
    name for name in base if wrapped.fullmatch(name.removesuffix(".weight"))
  }
  # It is a whole CLIP for us, too: tokenizer and preprocessor came along.
  again = cpeal.load_clip(str(tmp_path / "out"))
  texts = again.encode_texts(own.classifier.tokens.texts)
  seen = again.logit_scale * again.encode_images(list(IMAGES)) @ texts.T
  np.testing.assert_allclose(seen, logits(own), atol=0.05)  # float16 weights
  with safe_open(tmp_path / "out/model.safetensors", "np") as file:
    assert file.metadata()["format"] == "pt"


def test_tensors_beside_the_model_are_kept(tmp_path):
  """Old exports carry position counters; they are the file's, not ours."""
  own = make(LORAS["vision_qv"])
  config = own.pretrained.config
  ids = np.arange(config.positions)[None]
  name = "text_model.embeddings.position_ids"
  out = weights_out.merged(
    {**load_file(BASE), name: ids},
    own.params,
    own.adapter,
    LORAS["vision_qv"],
    key_table(config),
  )
  assert same_bits(out[name], ids)


@pytest.mark.parametrize("case", LORAS)
def test_peft_export(case, tmp_path):
  own, lora = make(LORAS[case]), LORAS[case]
  export.save(own, tmp_path / "out", format="peft")
  about = read_json(tmp_path / "out/adapter_config.json")
  assert about["use_rslora"] == (lora.scaling == "rank_stabilized")
  assert (about["r"], about["lora_alpha"]) == (lora.rank, lora.alpha)
  assert about["base_model_name_or_path"] == str(embedded.CLIP)
  file = tmp_path / "out/adapter_model.safetensors"
  tensors, base = load_file(file), load_file(BASE)
  with safe_open(file, "np") as opened:
    assert opened.metadata()["base_sha256"] == own.pretrained.sha256
  # By PEFT's definition: W [out, in] + scale * B [out, r] A [r, in].
  root = np.sqrt(lora.rank) if about["use_rslora"] else lora.rank
  merged = merge_lora(own.params, own.adapter, lora)
  want = weights_out.to_hf(merged, own.pretrained.config)
  wrapped = set()
  for name, a in tensors.items():
    if ".lora_A." not in name:
      continue
    b = tensors[name.replace("lora_A", "lora_B")]
    module = name.removeprefix("base_model.model.").removesuffix(
      ".lora_A.weight"
    )
    wrapped.add(module)
    kernel = base[f"{module}.weight"].astype(np.float32)
    got = kernel + about["lora_alpha"] / root * (b @ a)
    np.testing.assert_allclose(got, want[f"{module}.weight"], atol=1e-5)
  assert len(tensors) == 2 * len(wrapped)
  modules = {name.rpartition(".")[0] for name in base}
  pattern = re.compile(about["target_modules"])
  assert wrapped == {name for name in modules if pattern.fullmatch(name)}


@pytest.mark.parametrize("shared", [False, True])
def test_prompts_and_head_exports(shared, tmp_path):
  own = make(Prompts(tokens=4, shared=shared))
  export.save(own, tmp_path / "out", format="prompts")
  got = load_file(tmp_path / "out/prompts.safetensors")
  assert same_bits(got["context"], own.adapter["text"]["context"])
  about = read_json(tmp_path / "out/prompts.json")
  assert about["shared"] == shared
  assert about["context"] == list(got["context"].shape)
  card = read_json(tmp_path / "out/classes.json")
  assert card["learned_tokens"] == 4
  assert card["prompts"][3] == "X X X X three."
  # An empty directory is as good as none.
  (tmp_path / "head").mkdir()
  export.save(own, tmp_path / "head", format="head")
  head = load_file(tmp_path / "head/head.safetensors")
  assert same_bits(head["class_embeddings"], got["class_embeddings"])
  images = jax.jit(own.classifier.image_features)(
    own.params, own.adapter, IMAGES
  )
  served = head["logit_scale"] * images @ head["class_embeddings"].T
  np.testing.assert_allclose(served, logits(own), atol=1e-4)
  for format in ("transformers", "peft"):
    with pytest.raises(InputError, match=r"\(prompts on.*prompts, head\."):
      export.save(own, tmp_path / format, format=format)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["head", "out"]


def test_open_clips_naming_is_turned_into_transformers(tmp_path):
  """In the file's types, with the settings transformers reads."""
  own = on_open_clip(LORAS["vision_qv"])
  side = own.pretrained.config.image_size
  export.save(own, tmp_path / "out", format="transformers")
  config = weights.read_config(tmp_path / "out/config.json")
  assert config == own.pretrained.config
  assert image_spec(tmp_path / "out") == own.spec
  written = load_file(tmp_path / "out/model.safetensors")
  base = load_file(own.pretrained.weights)
  assert same_bits(written["logit_scale"], base["logit_scale"])
  assert same_bits(written["visual_projection.weight"].T, base["visual.proj"])
  again = dataclasses.replace(own, params=weights.convert(written, config))
  again = dataclasses.replace(
    again,
    classifier=dataclasses.replace(own.classifier, model=Clip(config)),
    adapter={},
  )
  want = logits(own, pictures(side))
  # The merged weights are rounded to the file's bfloat16 or float16.
  np.testing.assert_allclose(
    logits(again, pictures(side)), want, atol=0.02 * np.abs(want).max()
  )
  with pytest.raises(InputError, match=r"choose from: transformers, head\."):
    export.save(own, tmp_path / "peft", format="peft")


@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_siglips_export(name, tmp_path):
  """PyTorch's answers, and files in which LoRA's matrices alone are others."""
  own = on_siglip(LORAS["standard"], name)
  side = own.spec.size
  np.testing.assert_allclose(
    logits(own, pictures(side)), np.load(GOLDEN)[name], atol=1e-4
  )
  export.save(own, tmp_path / "out", format="transformers")
  base = load_file(own.pretrained.weights)
  got = load_file(tmp_path / "out/model.safetensors")
  carry = weights_out.modules(
    own.adapter, own.backbone.tensor_names(own.pretrained)
  )
  # q, k, v and out of every block; the attention pooling has none.
  blocks = own.pretrained.config.vision.layers
  blocks += own.pretrained.config.text.layers
  assert len(carry) == 4 * blocks
  changed = {name for name in base if not same_bits(base[name], got[name])}
  assert got.keys() == base.keys()
  assert changed == {f"{module}.weight" for module in carry.values()}
  # It is a whole SigLIP for us, too.
  again = cpeal.load_clip(tmp_path / "out")
  texts = again.encode_texts(own.classifier.prompts)
  images = again.encode_images(list(pictures(side)))
  seen = again.logit_scale * images @ texts.T
  np.testing.assert_allclose(seen, logits(own, pictures(side)), atol=1e-4)
  export.save(own, tmp_path / "peft", format="peft")
  about = read_json(tmp_path / "peft/adapter_config.json")
  pattern = re.compile(about["target_modules"])
  modules = {name.rpartition(".")[0] for name in base}
  assert {m for m in modules if pattern.fullmatch(m)} == set(carry.values())


def test_siglips_prompts_export(tmp_path):
  own = on_siglip(Prompts(tokens=4))
  assert export.formats(own) == ("prompts", "head")
  export.save(own, tmp_path / "out", format="prompts")
  file = load_file(tmp_path / "out/prompts.safetensors")
  assert file["context"].shape == (10, 4, own.pretrained.config.text.width)
  side = own.spec.size
  features = own.classifier.image_features(
    own.params, own.adapter, pictures(side)
  )
  got = file["logit_scale"] * features @ file["class_embeddings"].T
  np.testing.assert_allclose(got, logits(own, pictures(side)), atol=1e-4)


@pytest.mark.parametrize("name", DINOS)
def test_a_linear_head_and_its_tower(tmp_path, name):
  own = on_dino(Lora(rank=2, towers=("vision",)), name)
  side = own.spec.size
  want = logits(own, pictures(side))
  export.save(own, tmp_path / "head", format="head")
  head = load_file(tmp_path / "head/head.safetensors")
  assert read_json(tmp_path / "head/classes.json")["image_tower"] == "adapted"
  export.save(own, tmp_path / "tower", format="transformers")
  tower = dinov2_weights.load_dinov2(str(tmp_path / "tower"))
  plain = on_dino(None, name).classifier
  features = plain.image_features(tower.params, {}, pictures(side))
  served = np.asarray(features) @ head["weight"].T + head["bias"]
  np.testing.assert_allclose(served, want, atol=1e-4)
  base = load_file(own.pretrained.weights)
  changed = load_file(tmp_path / "tower/model.safetensors")
  touched = {k for k in base if not same_bits(base[k], changed[k])}
  matrices = (
    *(".query.weight", ".key.weight", ".value.weight"),
    *(".q_proj.weight", ".k_proj.weight", ".v_proj.weight"),
  )
  assert touched == {k for k in base if k.endswith(matrices)}
  assert len(touched) == 3 * own.pretrained.config.vision.layers
  head_alone = on_dino(None, name)
  for lora, left in ((own, "transformers, head"), (head_alone, "head")):
    with pytest.raises(InputError, match=f"choose from: {left}\\."):
      export.save(lora, tmp_path / "other", format="peft")


def test_descriptors_give_one_row_a_class(tmp_path):
  own = make(LORAS["stabilized"], owners=(0, 1, 1))
  export.save(own, tmp_path / "out", format="head")
  head = load_file(tmp_path / "out/head.safetensors")
  card = read_json(tmp_path / "out/classes.json")
  assert card["prompt_classes"] == [0, 1, 1]
  assert len(card["prompts"]) == 3
  assert head["class_embeddings"].shape == (2, 64)
  # Their mean is served as it is, not made a unit again.
  assert np.linalg.norm(head["class_embeddings"][1]) < 0.9999
  images = jax.jit(own.classifier.image_features)(
    own.params, own.adapter, IMAGES
  )
  served = head["logit_scale"] * images @ head["class_embeddings"].T
  np.testing.assert_allclose(served, logits(own), atol=1e-4)


def test_others_may_read_an_export_and_pass_its_prompts_on(tmp_path):
  own = make(LORAS["stabilized"])
  folder = tmp_path / "base"
  shutil.copytree(own.pretrained.directory, folder)
  path = folder / "tokenizer_config.json"
  path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
  path.chmod(0o600)
  base = dataclasses.replace(own.pretrained, directory=folder)
  own = dataclasses.replace(own, pretrained=base)
  for format in ("transformers", "peft", "head"):
    export.save(own, tmp_path / format, format=format)
    for file in (tmp_path / format).iterdir():
      assert stat.S_IMODE(file.stat().st_mode) == 0o644, file
  tokenizer = transformers.AutoTokenizer.from_pretrained(
    tmp_path / "transformers"
  )
  card = read_json(tmp_path / "transformers/classes.json")
  ids = tokenizer(text=card["prompts"], padding=True)["input_ids"]
  assert len(ids) == len(card["classes"]) == len(card["prompt_classes"])


def test_a_failed_write_leaves_nothing(tmp_path):
  """With files limited to 4 KiB, as a full disk would limit them."""
  own = make(LORAS["vision_qv"])
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    with pytest.raises(InputError, match=r"cannot write .*too large"):
      export.save(own, tmp_path / "out", format="peft")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_on_a_real_run(tmp_path, capsys):
  config = quickstart(str(tmp_path / "cache"), rounds=1)
  loop.run(config, tmp_path / "run")

  def command(*words):
    capsys.readouterr()
    code = export.main(["export", *map(str, words)])
    return code, capsys.readouterr()

  run, out = tmp_path / "run", tmp_path / "out"
  code, said = command(run, "--format=peft", f"--to={out}")
  assert (code, said.out) == (0, f"wrote {out}\n")
  card = read_json(out / "classes.json")
  environment = read_json(run / "environment.json")
  assert card["classes"] == environment["classes"]
  assert card["prompts"] == environment["prompts"]
  assert card["base_sha256"] == environment["weights_sha256"]
  assert re.fullmatch("[0-9a-f]{64}", card["config_sha256"])
  clip = cpeal.load_clip(str(embedded.CLIP))
  assert card["logit_scale"] == pytest.approx(clip.logit_scale)
  trained = load_file(out / "adapter_model.safetensors")
  adapter = traverse_util.flatten_dict(cpeal.load_run(run).adapter, sep="/")
  name = "encoder.layers.0.self_attn.q_proj.lora_B.weight"
  np.testing.assert_array_equal(
    trained[f"base_model.model.text_model.{name}"],
    np.asarray(adapter["text/blocks/block0/attention/q/lora_b"]).T,
  )
  for words, told in (
    ((run, "--format=peft", f"--to={out}"), "not empty"),
    ((run, "--format=onnx", f"--to={out}"), "transformers"),
    ((run, "--format=prompts", f"--to={out}2"), "transformers, peft, head"),
    (
      (run, "--format=head", f"--to={out}2", "--round=4"),
      "round 4 is not among them",
    ),
    ((out, "--format=head", f"--to={out}2"), "no workdir"),
    ((run, "--format=head", "--to=gs://bucket/out"), "local directory"),
    ((run, "--format=head"), "--to"),
    ((run, "--format=head", f"--to={out}2", "--rond=1"), "--rond"),
  ):
    code, said = command(*words)
    assert code == 2
    assert re.fullmatch(r"error: .*\n", said.err)
    assert told in said.err
  assert not Path(f"{out}2").exists()


def test_an_export_leaves_hidden_folders_of_others_alone(tmp_path):
  """And removes what a killed one to the same target left half-written."""
  mine = tmp_path / ".mine.export"
  mine.mkdir()
  (mine / "thesis.txt").write_text("mine")
  looks_alike = tmp_path / f".mine.{export.UNFINISHED}notes"
  looks_alike.mkdir()
  (looks_alike / "notes.txt").write_text("mine")
  left = tmp_path / f".mine.{export.UNFINISHED}abc"
  left.mkdir()
  (left / export.UNFINISHED).touch()
  export.save(on_dino(None), tmp_path / "mine", format="head")
  assert (mine / "thesis.txt").read_text() == "mine"
  assert (looks_alike / "notes.txt").read_text() == "mine"
  assert not left.exists()
  assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
    "classes.json",
    "head.safetensors",
  ]
