"""A CLIP with prompts or LoRA in PyTorch, trained by the peers of `round.py`.

It is transformers' CLIPModel in float32 with fused attention. The prompts are
CoOp's class-specific context before the class name. LoRA adds a branch to q, k
and v of both towers, computed as a low-rank product, which is the cheapest way.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel
from transformers.utils import logging

logging.disable_progress_bar()

CONTEXT, RANK, ALPHA, DROPOUT = 16, 4, 4.0, 0.25


class LoraLinear(nn.Module):
  """Computes `x W + b + scale dropout(x) A B`; `merge` adds A B to W."""

  def __init__(self, base: nn.Linear):
    super().__init__()
    bound = 1 / math.sqrt(base.in_features)
    self.base, self.scale = base, ALPHA / math.sqrt(RANK)
    self.a = nn.Parameter(torch.empty(base.in_features, RANK))
    nn.init.uniform_(self.a, -bound, bound)
    self.b = nn.Parameter(torch.zeros(RANK, base.out_features))
    self.dropout = nn.Dropout(DROPOUT)
    self.merged = False

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = self.base(x)
    if self.merged:
      return y
    return y + self.scale * (self.dropout(x) @ self.a @ self.b)

  @torch.no_grad()
  def merge(self, yes: bool) -> None:
    if yes != self.merged:
      change = self.scale * (self.a @ self.b).T
      self.base.weight.add_(change if yes else -change)
    self.merged = yes


class TorchClip(nn.Module):
  """Maps pixels and the prompts of the classes to scaled cosines.

  Args:
    weights: a Hugging Face directory.
    kind: `prompts` or `lora`.
    classes: the class names.
    template: the text of a prompt with LoRA, with {} for the class.
    whole: True to pad prompts to the tower's 77 tokens; False to pad them to
      the longest prompt.
  """

  def __init__(
    self,
    weights: str,
    kind: str,
    classes: tuple[str, ...],
    *,
    template: str,
    whole: bool,
  ):
    super().__init__()
    model: Any = CLIPModel.from_pretrained(weights, dtype=torch.float32)
    self.clip = model.requires_grad_(False)
    self.kind, names = kind, [name.replace("_", " ") for name in classes]
    if kind == "prompts":
      texts = [" ".join(["X"] * CONTEXT) + f" {name}." for name in names]
    else:
      texts = [template.format(name) for name in names]
    tokenizer: Any = AutoTokenizer.from_pretrained(weights)
    padding = "max_length" if whole else "longest"
    self.ids = tokenizer(
      texts, padding=padding, max_length=77, return_tensors="pt"
    ).input_ids
    # The feature is taken at the first end token; the others are padding.
    end = self.ids == model.config.text_config.eos_token_id
    self.end = end.int().argmax(dim=1)
    self.context = None
    if kind == "prompts":
      width = model.config.text_config.hidden_size
      shape = len(names), CONTEXT, width
      self.context = nn.Parameter(0.02 * torch.randn(shape))
    else:
      towers = (model.text_model, model.vision_model)
      for layer in (block for own in towers for block in own.encoder.layers):
        for name in ("q_proj", "k_proj", "v_proj"):
          attention = layer.self_attn
          setattr(attention, name, LoraLinear(getattr(attention, name)))

  def trained(self) -> list[nn.Parameter]:
    return [x for x in self.parameters() if x.requires_grad]

  def merge(self, yes: bool) -> None:
    """Adds the LoRA branches to the weights, or removes them again."""
    for module in self.modules():
      if isinstance(module, LoraLinear):
        module.merge(yes)

  def texts(self) -> torch.Tensor:
    """Returns the unit features of the classes, [C, D]."""
    own = self.clip.text_model
    x = own.embeddings.token_embedding(self.ids)
    if self.context is not None:
      x = torch.cat([x[:, :1], self.context, x[:, 1 + CONTEXT :]], dim=1)
    x = own.embeddings(inputs_embeds=x)
    x = own.encoder(x, is_causal=True).last_hidden_state
    x = own.final_layer_norm(x)[torch.arange(len(x)), self.end]
    return functional.normalize(self.clip.text_projection(x), dim=-1)

  def images(self, pixels: torch.Tensor) -> torch.Tensor:
    """Returns the unit features of preprocessed images, [B, D]."""
    found = self.clip.vision_model(pixels).pooler_output
    return functional.normalize(self.clip.visual_projection(found), dim=-1)

  def compare(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    return self.clip.logit_scale.exp() * images @ texts.T

  def forward(self, pixels: torch.Tensor) -> torch.Tensor:
    """Runs both towers, even though the text features may not have changed."""
    return self.compare(self.images(pixels), self.texts())


def entropy(logits: torch.Tensor) -> torch.Tensor:
  p = logits.softmax(dim=1)
  return -(p * (p + 1e-6).log()).sum(dim=1)


def loss(
  logits: torch.Tensor, labels: torch.Tensor, weight: float
) -> torch.Tensor:
  """Returns cross entropy plus C-PEAL's balanced calibration loss."""
  right = logits.argmax(dim=1) == labels
  u = torch.tanh(entropy(logits).clamp(min=0))
  parts = -(1 - u[right] + 1e-6).log(), -(u[~right] + 1e-6).log()
  means = [x.mean() if len(x) else x.sum() for x in parts]
  n_right, n_wrong = len(parts[0]), len(parts[1])
  balanced = (n_wrong * means[0] + n_right * means[1]) / len(labels)
  own = functional.cross_entropy(logits, labels)
  return own + weight * balanced.clamp(max=5)


def to_floats(pixels: np.ndarray, spec: Any) -> torch.Tensor:
  """Converts uint8 pixels [B, S, S, 3] to the tower's input [B, 3, S, S]."""
  x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
  mean, std = (torch.tensor(v)[:, None, None] for v in (spec.mean, spec.std))
  return (x - mean) / std
