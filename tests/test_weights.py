"""Every naming and file format of a CLIP gives the same model as PyTorch."""

import hashlib
import json
import shutil
import socket
import sys
import threading
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util
from flax_naming import in_flax_naming
from model_files import save_tokenizer
from parity import assert_parity, expected, outputs
from safetensors.numpy import load_file, save_file

from cpeal_jax import api
from cpeal_jax import config as config_lib
from cpeal_jax.data.images import ImageSpec, image_spec
from cpeal_jax.errors import InputError
from cpeal_jax.models import connection, hub, tensors, weights
from cpeal_jax.models.adapters import Lora
from cpeal_jax.models.clip import Clip
from cpeal_jax.models.open_clip import config_from_open_clip
from cpeal_jax.models.resnet import ResNetConfig
from cpeal_jax.run.plan import classifiers

GOLDEN = Path(__file__).parent / "golden"
RESNETS = ("openai_rn_deep", "openai_rn_rim")
OPENAI = (*RESNETS, "laion_vit")
OPEN_CLIP = hub.LAYOUTS[1]


def read(folder, layout=OPEN_CLIP):
  """(sizes, params) without the tokenizer, which the goldens have none of."""
  config = weights.read_config(folder / layout.config)
  return config, weights.convert(
    tensors.read_tensors(folder / layout.weights), config
  )


@pytest.mark.parametrize("name", OPENAI)
def test_openai_naming_agrees_with_pytorch(name):
  """float32, float16 and bfloat16 files; ResNets, and a ViT with gelu."""
  config, params = read(GOLDEN / name)
  want = expected(GOLDEN / name, config.image_size)
  assert_parity(outputs(config, params, want), want)
  # Else the tolerance would pass a tower that hardly looks at its pictures.
  assert np.std(want["image_features"], axis=0).max() > 0.01
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OPENAI, "clip_gelu", "clip_small_patches"])
def test_bfloat16_stays_close(name):
  folder = GOLDEN / name
  layout = OPEN_CLIP if name in OPENAI else hub.LAYOUTS[0]
  config, params = read(folder, layout)
  want = expected(folder, config.image_size)
  got = outputs(config, params, want, jnp.bfloat16)
  for kind in ("image_embeds", "text_embeds"):
    assert np.sum(got[kind] * want[kind], axis=1).min() > 0.999
  np.testing.assert_array_equal(
    np.argmax(got["logits"], axis=1), np.argmax(want["logits"], axis=1)
  )


def variants(folder, kind, dtype):
  """One golden, rewritten as another format and type; its layout."""
  own = load_file(GOLDEN / "clip_gelu" / "model.safetensors")
  own = {name: x.astype(dtype) for name, x in own.items()}
  shutil.copy(GOLDEN / "clip_gelu" / "config.json", folder)
  if kind == "msgpack":
    tree = in_flax_naming(own)
    (folder / "flax_model.msgpack").write_bytes(
      serialization.msgpack_serialize(tree)
    )
    return hub.LAYOUTS[2]
  save_file(own, folder / "model.safetensors")
  return hub.LAYOUTS[0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["safetensors", "msgpack"])
def test_formats_and_types_hold_the_same_tensors(tmp_path, kind, dtype):
  config, want = read(GOLDEN / "clip_gelu", hub.LAYOUTS[0])
  layout = variants(tmp_path, kind, jnp.dtype(dtype))
  same, params = read(tmp_path, layout)
  assert same == config
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(
      a, b.astype(jnp.dtype(dtype)).astype(np.float32)
    ),
    params,
    want,
  )


class FakeTensor:
  """As much of a torch tensor as the reader touches."""

  def __init__(self, x, dtype):
    self.x, self.dtype = x, dtype

  def float(self):
    return FakeTensor(self.x, "float32")

  def numpy(self):
    assert self.dtype != "bfloat16"
    return self.x


def test_pickles_go_through_the_restricted_loader_alone(tmp_path, monkeypatch):
  path = tmp_path / "pytorch_model.bin"
  path.write_bytes(b"pickle")

  def load(where, *, map_location, weights_only):
    assert (where, map_location, weights_only) == (path, "cpu", True)
    x = np.ones(2, np.float32)
    return {"a": FakeTensor(x, "float32"), "b": FakeTensor(x, "bfloat16")}

  fake = types.SimpleNamespace(load=load, bfloat16="bfloat16")
  monkeypatch.setitem(sys.modules, "torch", fake)
  assert list(tensors.read_tensors(path)) == ["a", "b"]
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(InputError, match=r"install torch, or give .*msgpack\.$"):
    tensors.read_tensors(path)


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "x.msgpack"])
def test_a_cut_off_file_is_named(tmp_path, name):
  source = GOLDEN / "laion_vit" / "open_clip_model.safetensors"
  whole = source.read_bytes()
  if name.endswith("msgpack"):
    whole = serialization.msgpack_serialize({"a": np.ones(100)})
  for size in (0, len(whole) // 2):
    (tmp_path / name).write_bytes(whole[:size])
    with pytest.raises(InputError, match=f"{name}: unreadable .*{size} bytes"):
      tensors.read_tensors(tmp_path / name)


def test_all_mismatches_of_a_resnet_are_in_one_message():
  config = weights.read_config(GOLDEN / RESNETS[0] / OPEN_CLIP.config)
  own = load_file(GOLDEN / RESNETS[0] / OPEN_CLIP.weights)
  del own["visual.layer1.0.bn2.running_var"]
  del own["transformer.resblocks.1.attn.in_proj_bias"]
  own["visual.conv2.weight"] = np.zeros((3, 3), np.float32)
  own["visual.proj"] = np.zeros(2, np.float32)
  with pytest.raises(InputError) as error:
    weights.convert(own, config)
  message = str(error.value)
  for words in (
    "4 problems",
    "missing visual.layer1.0.bn2.running_var",
    "missing transformer.resblocks.1.attn.in_proj_bias",
    "visual.conv2.weight gives (3, 3)",
    "left over visual.proj",
  ):
    assert words in message
  assert "\n" not in message


def test_batch_norm_is_four_frozen_leaves():
  _, params = read(GOLDEN / RESNETS[0])
  own = load_file(GOLDEN / RESNETS[0] / OPEN_CLIP.weights)
  norm = params["vision"]["stage0_block0"]["norm_shortcut"]
  for ours, theirs in (("mean", "running_mean"), ("scale", "weight")):
    np.testing.assert_array_equal(
      norm[ours], own[f"visual.layer1.0.downsample.1.{theirs}"]
    )
  assert set(norm) == {"scale", "bias", "mean", "var"}


def test_lora_goes_on_a_resnets_text_tower_alone():
  config, params = read(GOLDEN / RESNETS[0])
  want = expected(GOLDEN / RESNETS[0], config.image_size)
  slots = np.full_like(want["ids"], -1)
  inputs = ({"params": params}, want["pixels"], want["ids"], slots)

  def adapter(lora):
    _, state = Clip(config, lora=lora).apply(
      *inputs, rngs={"adapter": jax.random.key(0)}, mutable=["adapter"]
    )
    return state["adapter"]

  assert set(adapter(Lora(towers=("text",)))) == {"text"}
  with pytest.raises(InputError, match=r"adapter\.lora\.towers=text"):
    adapter(Lora())


def test_a_resnet_directory_end_to_end(tmp_path):
  """Its own preprocessing and tokenizer; images in, unit features out."""
  for file in (GOLDEN / RESNETS[1]).iterdir():
    shutil.copy(file, tmp_path)
  save_tokenizer(tmp_path)
  clip = api.load_clip(str(tmp_path))
  pixels = np.random.default_rng(0).integers(0, 256, (2, 120, 110, 3), np.uint8)
  features = clip.encode_images(list(pixels))
  np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
  assert np.abs(features[0] - features[1]).max() >= 1e-3
  own, config = clip.pretrained, config_lib.base()
  assert (
    own.sha256
    == hashlib.sha256((tmp_path / OPEN_CLIP.weights).read_bytes()).hexdigest()
  )
  spec = image_spec(own.preprocessor)
  with pytest.raises(InputError, match="image tower is a ResNet"):
    classifiers(config, own, spec, ("one", "two"))
  config.adapter.lora.towers = "text"
  trained, _ = classifiers(config, own, spec, ("one", "two"))
  assert trained.trains_texts
  assert not trained.trains_images


def open_clip(vision, text=(), **model):
  """An open_clip_config.json's content."""
  base = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
  words = {"context_length": 77, "vocab_size": 49408}
  words |= {"width": 512, "heads": 8, "layers": 12}
  return {
    "model_cfg": {
      "embed_dim": 512,
      "vision_cfg": base | vision,
      "text_cfg": words | dict(text),
      **model,
    }
  }


# open_clip's docs/model_profile.csv, in millions; batch norm's statistics are
# no parameters there.
@pytest.mark.parametrize(
  ("millions", "raw"),
  [
    (102.01, open_clip({"layers": [3, 4, 6, 3], "width": 64}, embed_dim=1024)),
    (119.69, open_clip({"layers": [3, 4, 23, 3], "width": 64})),
    (151.28, open_clip({})),
    (149.62, open_clip({"patch_size": 16})),
    (
      427.62,
      open_clip(
        {"layers": 24, "width": 1024, "patch_size": 14},
        {"width": 768, "heads": 12},
        embed_dim=768,
      ),
    ),
    (
      427.94,
      open_clip(
        {"layers": 24, "width": 1024, "patch_size": 14, "image_size": 336},
        {"width": 768, "heads": 12},
        embed_dim=768,
      ),
    ),
  ],
)
def test_full_sizes_have_the_published_parameter_counts(millions, raw):
  flat = traverse_util.flatten_dict(weights.shapes(config_from_open_clip(raw)))
  count = sum(
    int(np.prod(x.shape))
    for path, x in flat.items()
    if path[-1] not in ("mean", "var")
  )
  assert round(count / 1e6, 2) == millions


def test_sizes_and_activation_come_from_the_config():
  config = config_from_open_clip(
    open_clip(
      {"layers": 2, "width": 96, "head_width": 32, "mlp_ratio": 2.5},
      quick_gelu=True,
    )
  )
  assert not isinstance(config.vision, ResNetConfig)
  assert (config.vision.heads, config.vision.mlp) == (3, 240)
  assert {config.vision.activation, config.text.activation} == {"quick_gelu"}
  plain = config_from_open_clip(open_clip({}))
  assert {plain.vision.activation, plain.text.activation} == {"gelu"}
  assert plain.end_token == 49407


@pytest.mark.parametrize(
  ("raw", "words"),
  [
    ({}, "no model_cfg"),
    ({"model_cfg": {"vision_cfg": {}}}, "causal text tower is needed"),
    (open_clip({}, {"no_causal_mask": True}), "text_cfg.no_causal_mask"),
    (open_clip({}, {"hf_model_name": "xlm"}), "text_cfg.hf_model_name"),
    (open_clip({}, {"pool_type": "last"}), "text_cfg.pool_type is 'last'"),
    (open_clip({"timm_model_name": "vit"}), "vision_cfg.timm_model_name"),
    (open_clip({}, multimodal_cfg={"a": 1}), "model_cfg.multimodal_cfg"),
    (open_clip({"act_kwargs": {"approximate": "tanh"}}), "act_kwargs"),
    (open_clip({"image_size": [224, 256]}), "image_size (not [224, 256])"),
    (open_clip({}, embed_dim="512"), "embed_dim (not '512')"),
    (open_clip({"width": 200}), "heads do not divide"),
  ],
)
def test_what_is_no_causal_clip_is_refused(raw, words):
  with pytest.raises(InputError, match=r"open_clip_config\.json") as error:
    config_from_open_clip(raw)
  assert words in str(error.value)


@pytest.mark.parametrize(
  ("raw", "words"),
  [
    ({"model_type": "siglip"}, "model_type 'siglip'"),
    ({"model_type": "clip", "vision_config": {"a": 1}}, "no text_config"),
    ([], "one JSON object"),
  ],
)
def test_a_foreign_hugging_face_config_is_refused(tmp_path, raw, words):
  (tmp_path / "config.json").write_text(json.dumps(raw))
  with pytest.raises(InputError, match=words):
    weights.read_config(tmp_path / "config.json")


def test_preprocessing_comes_from_the_same_file(tmp_path):
  assert image_spec(GOLDEN / "laion_vit" / OPEN_CLIP.config) == ImageSpec(
    size=30, resize=30, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
  )
  path = tmp_path / OPEN_CLIP.config
  for own, want in (
    ({}, ImageSpec()),
    (
      {"size": [64, 64], "resize_mode": "squash", "interpolation": "bilinear"},
      ImageSpec(size=64, resize=64, stretch=True, resample=2),
    ),
  ):
    path.write_text(json.dumps(open_clip({}) | {"preprocess_cfg": own}))
    assert image_spec(path) == want
  for own in ({"resize_mode": "longest"}, {"size": [2, 3]}, {"mode": "L"}):
    path.write_text(json.dumps(open_clip({}) | {"preprocess_cfg": own}))
    with pytest.raises(InputError, match="preprocess_cfg is not supported"):
      image_spec(path)


class FakeHub:
  """A hub with one repository: a folder a revision, and its discussions."""

  def __init__(self, revisions, discussions=()):
    self.revisions, self.discussions = revisions, discussions
    self.fetched = []

  def list_repo_files(self, source):
    return [file.name for file in self.revisions[None].iterdir()]

  def get_repo_discussions(self, source):
    return iter(self.discussions)

  def snapshot_download(self, source, *, revision=None, allow_patterns):
    folder = self.revisions[revision]
    self.fetched += [
      (revision, file.name)
      for file in folder.iterdir()
      if file.name in allow_patterns
    ]
    return str(folder)

  def install(self, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
    monkeypatch.setattr(
      huggingface_hub, "snapshot_download", self.snapshot_download
    )
    return self


def repository(folder, *names, model_type="clip"):
  folder.mkdir()
  for name in ("config.json", "preprocessor_config.json", *names):
    (folder / name).write_text(json.dumps({"model_type": model_type}))
  return folder


CHOICES = [
  (("pytorch_model.bin",), "pytorch_model.bin"),
  (("pytorch_model.bin", "flax_model.msgpack"), "flax_model.msgpack"),
  (("flax_model.msgpack", *set(OPEN_CLIP.files)), OPEN_CLIP.weights),
  (("model.safetensors", *set(OPEN_CLIP.files)), "model.safetensors"),
]


@pytest.mark.parametrize(("names", "want"), CHOICES)
def test_the_order_of_preference(tmp_path, monkeypatch, names, want):
  folder = repository(tmp_path / "main", *names)
  assert hub.locate(str(folder))[1].weights == want
  own = FakeHub({None: folder}).install(monkeypatch)
  assert hub.locate("some/clip")[1].weights == want
  weighty = {layout.weights for layout in hub.LAYOUTS}
  assert {name for _, name in own.fetched} & weighty == {want}


def test_timms_image_tower_gives_way_to_open_clips_files(tmp_path):
  names = ("model.safetensors", *set(OPEN_CLIP.files))
  folder = repository(tmp_path / "timm", *names, model_type=None)
  assert hub.locate(str(folder))[1] == OPEN_CLIP


def test_the_hubs_own_conversion_goes_before_a_pickle(tmp_path, monkeypatch):
  def discussion(number, author, pull=True):
    return types.SimpleNamespace(
      title=hub.CONVERTER[1],
      author=author,
      is_pull_request=pull,
      git_reference=f"refs/pr/{number}",
    )

  bot = hub.CONVERTER[0]
  revisions = {
    None: repository(tmp_path / "main", "pytorch_model.bin"),
    "refs/pr/7": repository(tmp_path / "pr", "model.safetensors"),
  }
  strangers = [discussion(5, "anyone"), discussion(6, bot, pull=False)]
  own = FakeHub(revisions, [*strangers, discussion(7, bot)])
  own.install(monkeypatch)
  directory, layout = hub.locate("some/clip")
  assert (directory.name, layout) == ("pr", hub.LAYOUTS[0])
  assert (None, "pytorch_model.bin") not in own.fetched
  own.discussions = strangers
  assert hub.locate("some/clip")[1] is hub.PICKLED


def test_a_broken_download_says_to_go_on(tmp_path, monkeypatch):
  folder = repository(tmp_path / "main", "model.safetensors")
  own = FakeHub({None: folder})

  def broken(*args, **kwargs):
    raise ConnectionError("peer closed the connection")

  own.snapshot_download = broken
  own.install(monkeypatch)
  with pytest.raises(InputError, match=r"peer closed .* goes on where it"):
    hub.locate("some/clip")


def test_offline_the_cache_is_used_and_named(tmp_path, monkeypatch):
  """The test suite is offline: what the hub raises then is the real error."""
  from huggingface_hub import constants

  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  home = tmp_path / "models--some--clip"
  with pytest.raises(InputError, match=f"{home} has no whole copy"):
    hub.locate("some/clip")
  (home / "snapshots").mkdir(parents=True)
  for ref, revision, weight in (
    ("main", "aa", "pytorch_model.bin"),
    ("refs/pr/7", "bb", "model.safetensors"),
  ):
    (home / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    (home / "refs" / ref).write_text(revision)
    repository(home / "snapshots" / revision, weight)
  directory, layout = hub.locate("some/clip")
  assert (directory.name, layout) == ("bb", hub.LAYOUTS[0])


@pytest.fixture
def listening():
  """The address of a port of this machine that takes connections."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed():
  """The address of a port that nothing listens on."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
  return f"http://127.0.0.1:{port}"


def test_without_a_network_a_hub_id_is_refused_at_once(
  closed, tmp_path, monkeypatch, capfd
):
  from huggingface_hub import constants

  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setattr(constants, "ENDPOINT", closed)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  began = time.monotonic()
  with pytest.raises(InputError) as caught:
    hub.locate("some/clip")
  assert time.monotonic() - began < 3
  assert "no connection to 127.0.0.1: Connection refused" in str(caught.value)
  assert str(caught.value).endswith("--config.model.weights=DIR.")
  assert capfd.readouterr() == ("", "")


def test_a_connection_is_looked_for_where_requests_go(
  listening, closed, monkeypatch
):
  for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
    monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(name.upper(), raising=False)
  assert connection.problem(listening) == ""
  assert connection.problem(closed)
  monkeypatch.setenv("https_proxy", listening)
  assert connection.problem("https://hub.invalid") == ""
  assert connection.problem(closed)  # No proxy for http.
  monkeypatch.setenv("no_proxy", "hub.invalid")
  assert connection.problem("https://hub.invalid")


def test_a_name_server_that_never_answers_is_not_waited_for(monkeypatch):
  answered = threading.Event()

  def never(address, patience):
    answered.wait(10)
    raise TimeoutError("timed out")

  monkeypatch.setattr(connection, "PATIENCE_SECONDS", 0.1)
  monkeypatch.setattr(socket, "create_connection", never)
  began = time.monotonic()
  assert "does not answer within 0.1 s" in connection.problem("https://a.b")
  assert time.monotonic() - began < 5
  answered.set()


def test_the_hubs_library_is_quiet_only_meanwhile(capfd):
  import logging

  logger = logging.getLogger("huggingface_hub.utils._http")
  with connection.quiet():
    logger.warning("Retrying in 1s")
  assert "Retrying" not in capfd.readouterr().err
  assert logger.isEnabledFor(logging.WARNING)
