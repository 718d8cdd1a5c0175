"""Files of weights without a config: OpenCLIP's names, and what did not fit.

Those that PyTorch wrote are in `test_bare_pytorch.py`.
"""

import json
import sys
import types
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
from bare_files import (
  ARCH,
  SMALL,
  golden,
  openai_named,
  random_params,
  run_digits,
  stand_in,
)
from flax import traverse_util
from parity import assert_parity, expected, outputs
from runs import quickstart
from safetensors.numpy import load_file, save_file

import cpeal_jax as cpeal
from cpeal_jax import config as config_lib
from cpeal_jax import quickstart as embedded
from cpeal_jax.data.images import ImageSpec
from cpeal_jax.errors import InputError
from cpeal_jax.export import export
from cpeal_jax.models import hub, single_files, tensors, weights
from cpeal_jax.models.architectures import (
  ARCHITECTURES,
  RESNETS,
  VITS,
  fitting,
)
from cpeal_jax.models.shards import INDEX
from cpeal_jax.run.plan import make_plan

GOLDEN = Path(__file__).parent / "golden"
TOKENIZER = str(embedded.CLIP)
REVISION = "0123456789abcdef0123456789abcdef01234567"

# ---- the table

# Millions of parameters by open_clip's docs/model_profile.csv, in whose rows
# batch norm's statistics are none. The last three take long to trace.
PUBLISHED = {
  "ViT-B-32": 151.28,
  "ViT-B-32-256": 151.29,
  "ViT-B-16": 149.62,
  "ViT-B-16-plus-240": 208.38,
  "ViT-L-14": 427.62,
  "ViT-L-14-336": 427.94,
  "RN50": 102.01,
  "RN101": 119.69,
  "RN50x4": 178.3,
  "RN50x16": 290.98,
  "RN50x64": 623.26,
  "ViT-H-14": 986.11,
  "ViT-g-14": 1366.68,
  "ViT-bigG-14": 2539.57,
}


def test_every_size_has_a_published_count():
  assert {*PUBLISHED} == {*VITS, *RESNETS}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_and_what_a_file_says_of_its_size(name):
  """A file's sizes lead back to its name, and to no other sizes."""
  config = ARCHITECTURES[name]
  shapes = weights.shapes(config)
  flat = traverse_util.flatten_dict(shapes)
  count = sum(
    int(np.prod(x.shape))
    for path, x in flat.items()
    if path[-1] not in ("mean", "var")
  )
  assert round(count / 1e6, 2) == PUBLISHED[name]
  empty = jax.tree.map(
    lambda x: np.broadcast_to(np.float32(0), x.shape), shapes
  )
  quick = f"{name}-quickgelu"
  also = (quick,) if quick in ARCHITECTURES else ()
  assert fitting(openai_named(empty, config)) == (name, *also)


def test_quick_names_differ_in_the_activation_alone():
  quick = [name for name in ARCHITECTURES if name.endswith("-quickgelu")]
  assert "ViT-L-14-336-quickgelu" in quick
  for name in quick:
    plain, own = (
      ARCHITECTURES[name.removesuffix("-quickgelu")],
      ARCHITECTURES[name],
    )
    assert own.text.activation == "quick_gelu"
    assert plain.text.activation == "gelu"
    assert (own.dim, own.text.width) == (plain.dim, plain.text.width)
    if name.startswith("ViT"):
      assert own.vision.activation == "quick_gelu"
    else:
      assert own.vision == plain.vision


def test_an_unknown_name_is_refused_with_the_most_similar():
  config = config_lib.base()
  config.model.arch = "ViT-B/32"
  config.model.weights = "x.pt"
  with pytest.raises(InputError, match="Did you mean 'ViT-B-32'"):
    config_lib.validate(config)
  with pytest.raises(InputError, match=r"unknown model\.arch 'ViT-B-33'"):
    cpeal.load_clip("x.pt", arch="ViT-B-33")


@pytest.mark.parametrize("name", ["arch", "tokenizer"])
def test_a_model_without_texts_takes_neither_setting(name):
  config = config_lib.base()
  config.model.weights = "x"
  config.adapter.kind, config.round0 = "head", "random"
  config.model[name] = ARCH
  with pytest.raises(InputError, match=f"model.{name}=ViT-B-32 is for a CLIP"):
    config_lib.validate(config)


# ---- what is in the file


def test_a_name_and_a_file_agree_with_pytorch(tmp_path, monkeypatch):
  """Names with `module.`, and extra heads that are passed over."""
  for name in ("laion_vit", "openai_rn_deep"):
    own = golden(GOLDEN / name, monkeypatch, tmp_path)
    own |= {"logit_bias": np.float32(-10), "head.weight": np.ones((2, 2))}
    file = tmp_path / f"{name}.safetensors"
    own = {f"module.{key}": np.asarray(x) for key, x in own.items()}
    save_file(own, file)
    read = weights.load_pretrained(str(file), arch=ARCH)
    want = expected(GOLDEN / name, read.config.image_size)
    assert_parity(outputs(read.config, read.params, want), want)


def test_weights_in_several_files(tmp_path, monkeypatch):
  own = golden(GOLDEN / "laion_vit", monkeypatch, tmp_path)
  whole = weights.convert(own, weights.ARCHITECTURES[ARCH])
  halves = sorted(own)[::2], sorted(own)[1::2]
  table = {}
  for i, names in enumerate(halves, start=1):
    shard = f"model-{i:05}-of-00002.safetensors"
    save_file({f"module.{x}": own[x] for x in names}, tmp_path / shard)
    table |= {f"module.{x}": shard for x in names}
  (tmp_path / INDEX).write_text(json.dumps({"weight_map": table}))
  for source in (tmp_path, tmp_path / INDEX):
    read = weights.load_pretrained(str(source), arch=ARCH)
    jax.tree.map(np.testing.assert_array_equal, read.params, whole)


def small_file(folder, monkeypatch, change=lambda own: None):
  stand_in(monkeypatch, SMALL)
  own = openai_named(random_params(SMALL), SMALL)
  change(own)
  own = {name: np.ascontiguousarray(x) for name, x in own.items()}
  own["logit_scale"] = own["logit_scale"].reshape(())
  file = folder / "RemoteCLIP-ViT-B-32.safetensors"
  save_file(own, file)
  return file


def refused(source, *words, arch=ARCH, tokenizer=TOKENIZER):
  with pytest.raises(InputError) as error:
    weights.load_pretrained(str(source), arch=arch, tokenizer=tokenizer)
  message = str(error.value)
  assert "\n" not in message
  for word in words:
    assert word in message, message
  return message


def test_what_did_not_fit_is_listed_by_tensor(tmp_path, monkeypatch):
  def change(own):
    del own["visual.ln_pre.bias"]
    own["visual.proj"] = own["visual.proj"][:, :3]
    own["odd.weight"] = own["ln_final.bias"]

  file = small_file(tmp_path, monkeypatch, change)
  message = refused(
    file,
    f"{file} does not have the form of model.arch={ARCH}: ",
    "3 problems",
    "missing visual.ln_pre.bias",
    "visual.proj gives (32, 3) for vision/projection/kernel, but the config "
    "wants (32, 16)",
    "left over odd.weight",
  )
  assert "but that of" not in message


def test_another_architecture_that_would_fit_is_named(tmp_path, monkeypatch):
  file = small_file(tmp_path, monkeypatch)
  stand_in(monkeypatch, ARCHITECTURES[ARCH], "RN101-quickgelu")
  refused(
    file,
    "does not have the form of model.arch=ViT-B-16, but that of ViT-B-32 and "
    "RN101-quickgelu: ",
    "visual.conv1.weight gives (192, 32) for vision/patch/kernel, but the "
    "config wants (768, 768)",
    arch="ViT-B-16",
  )


def test_known_extras_are_passed_over_and_said(tmp_path, monkeypatch, capsys):
  def change(own):
    own["logit_bias"] = np.float32(-10).reshape(())
    own["visual.head.weight"] = np.ones((5, 16), np.float32)

  file = small_file(tmp_path, monkeypatch, change)
  weights.load_pretrained(str(file), arch=ARCH, tokenizer=TOKENIZER)
  said = capsys.readouterr().out
  assert said == f"{file.name}: not read: logit_bias, visual.head.weight\n"


class FakeTensor:
  dtype = "float32"

  def numpy(self):
    return np.zeros(2, np.float32)


def fake_torch(monkeypatch, state):
  fake = types.SimpleNamespace(load=lambda *_, **__: state, bfloat16="bfloat16")
  monkeypatch.setitem(sys.modules, "torch", fake)


@pytest.mark.parametrize(
  "wrap",
  [
    lambda state: state,
    lambda state: {"epoch": 3, "state_dict": state, "optimizer": {}},
    lambda state: {"model": state, "args": None},
    lambda state: {"model_state_dict": state},
    lambda state: {f"module.{name}": x for name, x in state.items()},
    lambda state: {f"module._orig_mod.{name}": x for name, x in state.items()},
  ],
)
@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.pth"])
def test_what_training_scripts_put_around_tensors(
  tmp_path, monkeypatch, wrap, name
):
  fake_torch(monkeypatch, wrap({"x.y": FakeTensor(), "z": FakeTensor()}))
  (tmp_path / name).write_bytes(b"pickle")
  assert list(tensors.read_tensors(tmp_path / name)) == ["x.y", "z"]


@pytest.mark.parametrize(
  ("state", "words"),
  [
    ([FakeTensor()], "holds a list; it must hold tensors by name"),
    ({"a": FakeTensor(), "epoch": 3}, "among its tensors, such as epoch"),
    ({"state_dict": {"a": 1}}, "among its tensors, such as a"),
  ],
)
def test_what_is_no_table_of_tensors(tmp_path, monkeypatch, state, words):
  fake_torch(monkeypatch, state)
  (tmp_path / "a.pt").write_bytes(b"pickle")
  with pytest.raises(InputError, match=words):
    tensors.read_tensors(tmp_path / "a.pt")


def test_a_prefix_of_some_names_is_a_part_of_them(tmp_path):
  save_file(
    {"module.a": np.ones(1), "b": np.ones(1)}, tmp_path / "m.safetensors"
  )
  assert set(tensors.read_tensors(tmp_path / "m.safetensors")) == {
    "module.a",
    "b",
  }


# ---- where the file is


def test_the_only_file_of_a_directory_or_the_one_of_its_name(tmp_path):
  (tmp_path / "readme.md").touch()
  with pytest.raises(InputError, match=r"has no file of weights, whose name"):
    single_files.weights_file(str(tmp_path))
  (tmp_path / "a.pt").touch()
  assert single_files.weights_file(str(tmp_path)).name == "a.pt"
  (tmp_path / "b.bin").touch()
  with pytest.raises(
    InputError, match=r"a\.pt, b\.bin: name one of them, .*/a\.pt\.$"
  ):
    single_files.weights_file(str(tmp_path))
  (tmp_path / "open_clip_pytorch_model.bin").touch()
  found = single_files.weights_file(str(tmp_path))
  assert found.name == "open_clip_pytorch_model.bin"
  for source in ("/no/file.pt", "file.pt", "./a/b.pt"):
    with pytest.raises(InputError, match="there is no file or directory"):
      single_files.weights_file(source)


class OneRepository:
  """A hub with one repository, in a folder; what is fetched is counted."""

  def __init__(self, folder, monkeypatch):
    self.folder, self.fetched = folder, []
    monkeypatch.setattr(single_files, "_offline", lambda: "")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
    for name in ("hf_hub_download", "snapshot_download"):
      monkeypatch.setattr(huggingface_hub, name, getattr(self, name))

  def list_repo_files(self, source):
    files = (path for path in self.folder.rglob("*") if path.is_file())
    return [path.relative_to(self.folder).as_posix() for path in files]

  def hf_hub_download(self, source, name, *, local_files_only):
    assert source == "some/clips"
    assert not local_files_only
    if not (self.folder / name).is_file():
      raise FileNotFoundError(f"404 {name}")
    self.fetched.append(name)
    return str(self.folder / name)

  def snapshot_download(self, source, *, allow_patterns, local_files_only):
    assert not local_files_only
    assert "vocab.json" in allow_patterns
    return TOKENIZER


def test_a_file_of_the_hub(tmp_path, monkeypatch):
  (tmp_path / "ckpt").mkdir()
  (tmp_path / "ckpt" / "a.pt").touch()
  own = OneRepository(tmp_path, monkeypatch)
  for source in ("some/clips", "some/clips/ckpt/a.pt"):
    assert single_files.weights_file(source) == tmp_path / "ckpt" / "a.pt"
  assert own.fetched == ["ckpt/a.pt"] * 2
  with pytest.raises(InputError, match=r"some/clips/b\.pt is no .*404 b\.pt"):
    single_files.weights_file("some/clips/b.pt")
  (tmp_path / "b.pt").touch()
  with pytest.raises(InputError, match=r"name one of them, .*some/clips/b"):
    single_files.weights_file("some/clips")
  table = {"weight_map": {"x": "model-1.safetensors"}}
  (tmp_path / INDEX).write_text(json.dumps(table))
  (tmp_path / "model-1.safetensors").touch()
  assert single_files.weights_file("some/clips").name == INDEX
  assert own.fetched[-1] == "model-1.safetensors"


def test_offline_the_hubs_cache_is_used(tmp_path, monkeypatch):
  """The test suite is offline: what the hub raises then is the real error."""
  from huggingface_hub import constants

  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  home = tmp_path / "models--some--clips"
  for source in ("some/clips", "some/clips/a.pt"):
    with pytest.raises(
      InputError, match=r"HF_HUB_OFFLINE is set.*weights=FILE"
    ):
      single_files.weights_file(source)
  with pytest.raises(InputError, match=r"model\.tokenizer='some/clips' is no"):
    single_files.tokenizer_directory("some/clips")
  for folder in (home / "refs", home / "snapshots" / REVISION):
    folder.mkdir(parents=True)
  (home / "refs" / "main").write_text(REVISION)
  file = home / "snapshots" / REVISION / "a.pt"
  file.touch()
  for source in ("some/clips", "some/clips/a.pt"):
    assert single_files.weights_file(source) == file


def test_the_hint_where_the_architecture_is_missing(tmp_path):
  (tmp_path / "RemoteCLIP-ViT-B-32.pt").touch()
  hint = "--config.model.arch=ViT-B-32."
  for source in (tmp_path, tmp_path / "RemoteCLIP-ViT-B-32.pt"):
    refused(source, hint, arch="")
  refused("owner/name/RS5M_ViT-B-32.pt", "there is no directory", hint, arch="")
  with pytest.raises(InputError) as error:
    hub.locate(str(tmp_path), "DINOv2")
  assert hint not in str(error.value)


def test_open_clips_pickle_is_read_with_its_own_config(tmp_path):
  names = ("open_clip_config.json", "open_clip_pytorch_model.bin")
  for name in names:
    (tmp_path / name).touch()
  assert hub.locate(str(tmp_path))[1] is hub.OPEN_CLIP_PICKLED
  # timm's image tower beside it is not taken for the CLIP.
  for name in ("config.json", "preprocessor_config.json"):
    (tmp_path / name).write_text("{}")
  (tmp_path / "pytorch_model.bin").touch()
  assert hub.locate(str(tmp_path))[1] is hub.OPEN_CLIP_PICKLED
  (tmp_path / "open_clip_model.safetensors").touch()
  assert hub.locate(str(tmp_path))[1] is hub.OPEN_CLIP


# ---- tokenizer and images


def test_a_missing_tokenizer_is_said_before_weights_are_read(tmp_path):
  (tmp_path / "a.pt").write_bytes(b"nothing")
  refused(
    tmp_path / "a.pt",
    "a.pt has no tokenizer beside it, and needs CLIP's",
    "--config.model.tokenizer=openai/clip-vit-base-patch32",
    tokenizer="",
  )
  refused(tmp_path / "a.pt", "no directory, and the hub", tokenizer="/absent")


def test_any_clip_may_have_its_tokenizer_elsewhere(tmp_path):
  for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
    (tmp_path / name).write_bytes((embedded.CLIP / name).read_bytes())
  refused(tmp_path, "model.tokenizer=DIR", arch="", tokenizer="")
  read = weights.load_pretrained(str(tmp_path), tokenizer=TOKENIZER)
  text = "a photo of the digit two."
  own = weights.load_pretrained(TOKENIZER).tokenizer
  assert read.tokenizer(text)["input_ids"] == own(text)["input_ids"]


def test_images_are_prepared_as_openai_does_or_as_a_file_says(
  tmp_path, monkeypatch
):
  file = small_file(tmp_path, monkeypatch)

  def spec():
    clip = cpeal.load_clip(file, arch=ARCH, tokenizer=TOKENIZER)
    assert clip.encode_images(np.zeros((40, 50, 3), np.uint8)).shape == (1, 16)
    return clip.pretrained.preprocessor

  assert spec() == ImageSpec(size=32, resize=32)
  settings = tmp_path / "preprocessor_config.json"
  settings.write_text(json.dumps({"size": 32, "crop_size": 32}))
  assert spec() == settings
  settings.write_text(json.dumps({"size": 64, "crop_size": 64}))
  config = quickstart(
    str(tmp_path),
    **{
      "model.weights": str(file),
      "model.arch": ARCH,
      "model.tokenizer": TOKENIZER,
    },
  )
  with pytest.raises(InputError, match=r"crops to 64 pixels, .* for 32 pixels"):
    make_plan(config)


# ---- a run


@pytest.mark.parametrize("variant", ["anchored", "cpeal_lora", "cpeal_prompt"])
def test_a_bare_file_runs_on_the_digits(tmp_path, monkeypatch, variant):
  file = small_file(tmp_path, monkeypatch)
  cache, run = str(tmp_path / "cache"), tmp_path / "run"
  rows = run_digits(file, cache, run, variant)
  assert [row["labeled"] for row in rows] == [0, 10, 20]
  trained = cpeal.load_run(run)
  images = np.zeros((2, 8, 8, 3), np.uint8)
  probabilities = trained.predict(list(images))
  np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
  quick = {"model.arch": f"{ARCH}-quickgelu"}
  stand_in(monkeypatch, SMALL, quick["model.arch"])
  with pytest.raises(InputError, match=r"model\.arch: workdir has .*you gave"):
    run_digits(file, cache, run, variant, **quick)


def test_an_export_is_whole_without_the_bare_file(tmp_path, monkeypatch):
  file = small_file(tmp_path, monkeypatch)
  # A config of another model beside it is not taken for the file's.
  (tmp_path / "config.json").write_text('{"model_type": "clip"}')
  run_digits(file, str(tmp_path / "cache"), tmp_path / "run", "cpeal_lora")
  with pytest.raises(InputError, match="choose from: transformers, head"):
    export(tmp_path / "run", tmp_path / "peft", format="peft")
  export(tmp_path / "run", tmp_path / "out", format="transformers")
  again = cpeal.load_clip(tmp_path / "out")
  images = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), np.uint8)
  np.testing.assert_allclose(
    again.encode_images(list(images)),
    cpeal.load_run(tmp_path / "run").encode_images(list(images)),
    atol=1e-5,
  )
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["text_config"]["hidden_act"] == "gelu"
  assert load_file(tmp_path / "out" / "model.safetensors")
  assert again.encode_texts(["one", "two"]).shape == (2, 16)
