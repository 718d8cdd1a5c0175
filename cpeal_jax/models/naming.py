"""Which tensor of a checkpoint becomes which leaf of `params`.

Three namings: Hugging Face's (`hf`), its Flax one (`flax`, kernels already
turned) and OpenAI's, which OpenCLIP kept (`openai`).
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np

from cpeal_jax.models.clip import ClipConfig
from cpeal_jax.models.resnet import ResNetConfig
from cpeal_jax.models.tensors import (
  Row,
  Turn,
  convolution,
  patches,
  same,
  transpose,
)


def _flat(x: np.ndarray) -> np.ndarray:
  """Convolution [p, p, 3, W] to a matrix over flattened patches."""
  return x.reshape(-1, x.shape[-1])


def _third(x: np.ndarray, part: int, turn: Turn) -> np.ndarray:
  """q, k or v out of the rows that hold them one after the other."""
  return turn(np.array_split(x, 3)[part])


# Patches and positions in front of the blocks, norms around them.
HF: tuple[Row, ...] = (
  ("logit_scale", "logit_scale", same),
  ("vision/class_token", "vision_model.embeddings.class_embedding", same),
  (
    "vision/patch/kernel",
    "vision_model.embeddings.patch_embedding.weight",
    patches,
  ),
  (
    "vision/positions",
    "vision_model.embeddings.position_embedding.weight",
    same,
  ),
  ("vision/norm_in/scale", "vision_model.pre_layrnorm.weight", same),
  ("vision/norm_in/bias", "vision_model.pre_layrnorm.bias", same),
  ("vision/norm_out/scale", "vision_model.post_layernorm.weight", same),
  ("vision/norm_out/bias", "vision_model.post_layernorm.bias", same),
  ("vision/projection/kernel", "visual_projection.weight", transpose),
  ("text/tokens", "text_model.embeddings.token_embedding.weight", same),
  ("text/positions", "text_model.embeddings.position_embedding.weight", same),
  ("text/norm_out/scale", "text_model.final_layer_norm.weight", same),
  ("text/norm_out/bias", "text_model.final_layer_norm.bias", same),
  ("text/projection/kernel", "text_projection.weight", transpose),
)
HF_BLOCK: tuple[tuple[str, str], ...] = (
  ("attention/q", "self_attn.q_proj"),
  ("attention/k", "self_attn.k_proj"),
  ("attention/v", "self_attn.v_proj"),
  ("attention/out", "self_attn.out_proj"),
  ("mlp1", "mlp.fc1"),
  ("mlp2", "mlp.fc2"),
  ("norm1", "layer_norm1"),
  ("norm2", "layer_norm2"),
)
OPENAI_TEXT: tuple[Row, ...] = (
  ("logit_scale", "logit_scale", same),
  ("text/tokens", "token_embedding.weight", same),
  ("text/positions", "positional_embedding", same),
  ("text/norm_out/scale", "ln_final.weight", same),
  ("text/norm_out/bias", "ln_final.bias", same),
  ("text/projection/kernel", "text_projection", same),
)
OPENAI_VIT: tuple[Row, ...] = (
  ("vision/class_token", "visual.class_embedding", same),
  ("vision/patch/kernel", "visual.conv1.weight", patches),
  ("vision/positions", "visual.positional_embedding", same),
  ("vision/norm_in/scale", "visual.ln_pre.weight", same),
  ("vision/norm_in/bias", "visual.ln_pre.bias", same),
  ("vision/norm_out/scale", "visual.ln_post.weight", same),
  ("vision/norm_out/bias", "visual.ln_post.bias", same),
  ("vision/projection/kernel", "visual.proj", same),
)
OPENAI_BLOCK: tuple[tuple[str, str], ...] = (
  ("attention/out", "attn.out_proj"),
  ("mlp1", "mlp.c_fc"),
  ("mlp2", "mlp.c_proj"),
  ("norm1", "ln_1"),
  ("norm2", "ln_2"),
)


def _towers(config: ClipConfig) -> Iterator[tuple[str, int]]:
  """The transformers and their depths."""
  if not isinstance(config.vision, ResNetConfig):
    yield "vision", config.vision.layers
  yield "text", config.text.layers


def _pairs(here: str, there: str, turn: Turn = transpose) -> Iterator[Row]:
  """Weight and bias of a product or a norm."""
  norm = here.rsplit("/", 1)[-1].startswith("norm")
  weight, turn = ("scale", same) if norm else ("kernel", turn)
  yield f"{here}/{weight}", f"{there}.weight", turn
  yield f"{here}/bias", f"{there}.bias", same


def _hf(config: ClipConfig) -> Iterator[Row]:
  yield from HF
  for tower, layers in _towers(config):
    for i in range(layers):
      for ours, theirs in HF_BLOCK:
        yield from _pairs(
          f"{tower}/blocks/block{i}/{ours}",
          f"{tower}_model.encoder.layers.{i}.{theirs}",
        )


def _flax(config: ClipConfig) -> Iterator[Row]:
  """Hugging Face's names as its Flax classes had them."""
  for ours, theirs, turn in _hf(config):
    stem = theirs.removesuffix(".weight")
    if stem == theirs:
      yield ours, theirs, turn
    elif ours.endswith("/kernel"):
      yield ours, f"{stem}.kernel", _flat if turn is patches else same
    else:
      norm = ours.endswith("/scale")
      yield ours, f"{stem}.{'scale' if norm else 'embedding'}", same


def _openai(config: ClipConfig) -> Iterator[Row]:
  yield from OPENAI_TEXT
  if isinstance(config.vision, ResNetConfig):
    yield from _openai_resnet(config.vision)
  else:
    yield from OPENAI_VIT
  for tower, layers in _towers(config):
    prefix = "visual." if tower == "vision" else ""
    for i in range(layers):
      here = f"{tower}/blocks/block{i}"
      there = f"{prefix}transformer.resblocks.{i}"
      for ours, theirs in OPENAI_BLOCK:
        yield from _pairs(f"{here}/{ours}", f"{there}.{theirs}")
      for part, name in enumerate("qkv"):
        for leaf, theirs, turn in (
          ("kernel", "weight", transpose),
          ("bias", "bias", same),
        ):
          yield (
            f"{here}/attention/{name}/{leaf}",
            f"{there}.attn.in_proj_{theirs}",
            partial(_third, part=part, turn=turn),
          )


def _openai_resnet(config: ResNetConfig) -> Iterator[Row]:
  def normed(here: str, there: str, conv: str, norm: str) -> Iterator[Row]:
    ours = here.replace("conv", "norm")
    yield f"vision/{here}/kernel", f"visual.{there}{conv}.weight", convolution
    for leaf, theirs in (
      ("scale", "weight"),
      ("bias", "bias"),
      ("mean", "running_mean"),
      ("var", "running_var"),
    ):
      yield f"vision/{ours}/{leaf}", f"visual.{there}{norm}.{theirs}", same

  for i in "123":
    yield from normed(f"conv{i}", "", f"conv{i}", f"bn{i}")
  for stage, block, _, _, projects in config.blocks():
    here = f"stage{stage}_block{block}/conv"
    there = f"layer{stage + 1}.{block}."
    for i in "123":
      yield from normed(here + i, there, f"conv{i}", f"bn{i}")
    if projects:
      yield from normed(
        here + "_shortcut", there, "downsample.0", "downsample.1"
      )
  there = "visual.attnpool"
  yield "vision/pool/positions", f"{there}.positional_embedding", same
  for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "c")):
    yield from _pairs(f"vision/pool/{ours}", f"{there}.{theirs}_proj")


NAMINGS: dict[str, Callable[[ClipConfig], Iterator[Row]]] = {
  "hf": _hf,
  "flax": _flax,
  "openai": _openai,
}


def key_table(config: ClipConfig, naming: str = "hf") -> tuple[Row, ...]:
  """Every leaf of `params` beside its name in the file.

  A fused q, k, v tensor is named in three rows.
  """
  return tuple(NAMINGS[naming](config))


def naming_of(names: Iterable[str]) -> str:
  """The naming that a file's tensors follow; `hf` where it is none."""
  names = set(names)
  if any(name.startswith("visual.") for name in names):
    return "openai"
  return "flax" if "visual_projection.kernel" in names else "hf"
