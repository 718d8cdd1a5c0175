"""Tables that say which tensor of a checkpoint becomes which leaf of `params`.

Three kinds of names are known: those of Hugging Face's PyTorch models (`hf`),
those of its Flax models (`flax`, where kernels are [in, out] already), and
OpenAI's, which OpenCLIP also uses (`openai`).

In this module `ours` is a path in `params`, and `theirs` is a name in the file.
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
  """Converts a patch convolution [p, p, 3, W] to a matrix [p * p * 3, W]."""
  return x.reshape(-1, x.shape[-1])


def _third(x: np.ndarray, part: int, turn: Turn) -> np.ndarray:
  """Converts one of q, k, v, which are stacked along the tensor's axis 0.

  Args:
    x: the stacked tensor, [3 * W, W] or [3 * W].
    part: 0 for q, 1 for k, 2 for v.
    turn: the conversion of that part.
  """
  return turn(np.array_split(x, 3)[part])


# Hugging Face's names of all leaves outside the transformer blocks.
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
# (module in our block, module in Hugging Face's block).
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
# OpenAI's names of all leaves outside the transformer blocks: those of the text
# tower, and those of an image tower that is a vision transformer.
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
# (module in our block, module in OpenAI's block). The tensor that holds q, k
# and v together is not listed.
OPENAI_BLOCK: tuple[tuple[str, str], ...] = (
  ("attention/out", "attn.out_proj"),
  ("mlp1", "mlp.c_fc"),
  ("mlp2", "mlp.c_proj"),
  ("norm1", "ln_1"),
  ("norm2", "ln_2"),
)


def _towers(config: ClipConfig) -> Iterator[tuple[str, int]]:
  """Yields (tower, number of blocks) for each tower that is a transformer."""
  if not isinstance(config.vision, ResNetConfig):
    yield "vision", config.vision.layers
  yield "text", config.text.layers


def pairs(ours: str, theirs: str, turn: Turn = transpose) -> Iterator[Row]:
  """Yields the rows of weight and bias of a dense layer or a layer norm.

  Args:
    ours: the module's path. The module is a layer norm if the path's last part
      begins with "norm".
    theirs: the module's name in the file.
    turn: the conversion of a dense layer's weight.
  """
  norm = ours.rsplit("/", 1)[-1].startswith("norm")
  weight, turn = ("scale", same) if norm else ("kernel", turn)
  yield f"{ours}/{weight}", f"{theirs}.weight", turn
  yield f"{ours}/bias", f"{theirs}.bias", same


def stacked(ours: str, theirs: str) -> Iterator[Row]:
  """Yields the rows of q, k and v of an attention that has them in one tensor.

  Args:
    ours: the path of our attention.
    theirs: the name of PyTorch's `MultiheadAttention` in the file.
  """
  for part, name in enumerate("qkv"):
    for leaf, kind, turn in (
      ("kernel", "weight", transpose),
      ("bias", "bias", same),
    ):
      yield (
        f"{ours}/{name}/{leaf}",
        f"{theirs}.in_proj_{kind}",
        partial(_third, part=part, turn=turn),
      )


def hf_blocks(tower: str, layers: int) -> Iterator[Row]:
  """Yields the rows of a transformer's blocks for Hugging Face's names.

  Args:
    tower: `vision` or `text`.
    layers: the number of blocks.
  """
  for i in range(layers):
    for ours, theirs in HF_BLOCK:
      yield from pairs(
        f"{tower}/blocks/block{i}/{ours}",
        f"{tower}_model.encoder.layers.{i}.{theirs}",
      )


def _hf(config: ClipConfig) -> Iterator[Row]:
  """Yields the rows for the names of Hugging Face's PyTorch models."""
  yield from HF
  for tower, layers in _towers(config):
    yield from hf_blocks(tower, layers)


def _flax(config: ClipConfig) -> Iterator[Row]:
  """Yields the rows for the names of Hugging Face's Flax models."""
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
  """Yields the rows for OpenAI's names."""
  yield from OPENAI_TEXT
  if isinstance(config.vision, ResNetConfig):
    yield from _openai_resnet(config.vision)
  else:
    yield from OPENAI_VIT
  for tower, layers in _towers(config):
    prefix = "visual." if tower == "vision" else ""
    for i in range(layers):
      our_block = f"{tower}/blocks/block{i}"
      their_block = f"{prefix}transformer.resblocks.{i}"
      for ours, theirs in OPENAI_BLOCK:
        yield from pairs(f"{our_block}/{ours}", f"{their_block}.{theirs}")
      yield from stacked(f"{our_block}/attention", f"{their_block}.attn")


def _openai_resnet(config: ResNetConfig) -> Iterator[Row]:
  """Yields the rows of a ResNet image tower for OpenAI's names."""

  def conv_norm(
    our_conv: str, parent: str, conv: str, norm: str
  ) -> Iterator[Row]:
    """Yields the rows of a convolution and of the batch norm after it.

    Args:
      our_conv: the path of our convolution. The path of our norm has "norm" in
        the place of "conv".
      parent: the file's name, with a period, for the module that contains the
        convolution and the norm; "" if they are in the tower itself.
      conv, norm: the file's names for the convolution and the norm in `parent`.
    """
    our_norm = our_conv.replace("conv", "norm")
    yield (
      f"vision/{our_conv}/kernel",
      f"visual.{parent}{conv}.weight",
      convolution,
    )
    for leaf, theirs in (
      ("scale", "weight"),
      ("bias", "bias"),
      ("mean", "running_mean"),
      ("var", "running_var"),
    ):
      yield (
        f"vision/{our_norm}/{leaf}",
        f"visual.{parent}{norm}.{theirs}",
        same,
      )

  for i in "123":
    yield from conv_norm(f"conv{i}", "", f"conv{i}", f"bn{i}")
  for stage, block, _, _, projects in config.blocks():
    our_conv = f"stage{stage}_block{block}/conv"
    parent = f"layer{stage + 1}.{block}."
    for i in "123":
      yield from conv_norm(our_conv + i, parent, f"conv{i}", f"bn{i}")
    if projects:
      yield from conv_norm(
        our_conv + "_shortcut", parent, "downsample.0", "downsample.1"
      )
  pool = "visual.attnpool"
  yield "vision/pool/positions", f"{pool}.positional_embedding", same
  for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "c")):
    yield from pairs(f"vision/pool/{ours}", f"{pool}.{theirs}_proj")


NAMINGS: dict[str, Callable[[ClipConfig], Iterator[Row]]] = {
  "hf": _hf,
  "flax": _flax,
  "openai": _openai,
}


def key_table(config: ClipConfig, naming: str = "hf") -> tuple[Row, ...]:
  """Returns one row per leaf of `params`, with its tensor's name in a file.

  A tensor that holds q, k and v together is in three rows.

  Args:
    config: the sizes.
    naming: a key of `NAMINGS`.
  """
  return tuple(NAMINGS[naming](config))


def naming_of(names: Iterable[str]) -> str:
  """Returns the kind of names that a file has, a key of `NAMINGS`.

  It is `hf` if the names fit none of the other kinds.

  Args:
    names: the names of all tensors of the file.
  """
  names = set(names)
  if any(name.startswith("visual.") for name in names):
    return "openai"
  return "flax" if "visual_projection.kernel" in names else "hf"
