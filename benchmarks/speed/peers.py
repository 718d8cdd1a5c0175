"""The PyTorch peer: transformers' CLIPModel with LoRA or CoOp's prompts.

A `Peer` has the weights, prompts and adapter of one of our classifiers and
performs the same work in the way usual in PyTorch: scaled-dot-product
attention, no gradients for frozen parameters, and LoRA in modules that wrap the
projections. Frozen weights have the type that our model computes in; the
trained parameters and the losses are float32. The caller decides whether to use
`torch.compile`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import timing
import torch
import transformers
from torch.nn import functional as F
from workload import Work

from cpeal_jax.models import weights_out
from cpeal_jax.models.naming import key_table
from cpeal_jax.training.recipe import Recipe

GPU = torch.cuda.is_available() and jax.default_backend() == "gpu"
DEVICE = "cuda" if GPU else "cpu"
if GPU:
  # XLA computes float32 products this way by default.
  torch.set_float32_matmul_precision("high")


def working(listed: str) -> list[str]:
  """Returns the kinds of `eager,compiled` that work here.

  If `torch.compile` fails, prints why in one line and leaves it out.
  """
  kinds = listed.split(",")
  if "compiled" in kinds:
    try:
      torch.compile(lambda x: torch.sin(x) + 1)(torch.ones(3, device=DEVICE))
    except Exception as error:
      why = str(error).strip().splitlines()[0]
      timing.say(f"torch.compile fails here: left out: {why}")
      kinds.remove("compiled")
  return kinds


def tensor(x: Any) -> torch.Tensor:
  return torch.from_numpy(np.array(x)).to(DEVICE)


class LoraLinear(torch.nn.Module):
  """A frozen linear map plus `scale * dropout(x) A B`."""

  def __init__(self, base: Any, a: Any, b: Any, scale: float, dropout: float):
    super().__init__()
    self.base, self.scale = base, scale
    self.a = torch.nn.Parameter(tensor(np.asarray(a).T))
    self.b = torch.nn.Parameter(tensor(np.asarray(b).T))
    self.dropout = torch.nn.Dropout(dropout)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    a, b = self.a.to(x.dtype), self.b.to(x.dtype)
    branch = F.linear(F.linear(self.dropout(x), a), b)
    return self.base(x) + self.scale * branch


class Peer(torch.nn.Module):
  """One of our classifiers in PyTorch."""

  def __init__(self, work: Work):
    super().__init__()
    classifier = work.classifier
    config, lora = classifier.model.config, classifier.model.lora
    raw = weights_out.hf_config(config, dtype="float32")
    self.clip: Any = transformers.CLIPModel(
      transformers.CLIPConfig.from_dict(raw)
    )
    tensors = weights_out.to_hf(work.host, config)
    self.clip.load_state_dict({k: tensor(x) for k, x in tensors.items()})
    self.dtype = getattr(torch, str(np.dtype(classifier.model.dtype)))
    self.clip.requires_grad_(False).to(DEVICE, self.dtype)
    self.context: Any = None
    if classifier.model.prompts:
      own = tensor(work.adapter["text"]["context"])
      self.context = torch.nn.Parameter(own)
    if lora:
      rows = key_table(config, "hf")
      for ours, theirs in weights_out.modules(work.adapter, rows).items():
        leaves: Any = work.adapter
        for part in ours.split("/"):
          leaves = leaves[part]
        parent, _, name = theirs.rpartition(".")
        parent = self.clip.get_submodule(parent)
        factors = leaves["lora_a"], leaves["lora_b"]
        wrapped = (getattr(parent, name), *factors, lora.scale, lora.dropout)
        setattr(parent, name, LoraLinear(*wrapped))
    ids, slots = (tensor(x) for x in _tokens(classifier.tokens))
    self.ids, self.slots = ids, slots
    self.end = (ids == config.end_token).int().argmax(1)
    stats = np.array([classifier.mean, classifier.std], np.float32)
    mean, std = tensor(stats)
    self.mean, self.std = mean[:, None, None], std[:, None, None]

  def image_features(self, images: torch.Tensor) -> torch.Tensor:
    """Encodes uint8 images [B, S, S, 3] to unit features [B, D]."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    pixels = ((pixels - self.mean) / self.std).to(self.dtype)
    out = self.clip.get_image_features(pixels)
    return F.normalize(out.pooler_output.float(), dim=-1)

  def class_embeddings(self) -> torch.Tensor:
    """Encodes the prompts to unit embeddings [C, D].

    This is CLIPTextModel's computation, with learned tokens at their slots.
    """
    text = self.clip.text_model
    x = text.embeddings.token_embedding(self.ids)
    if self.context is not None:
      index = self.slots.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
      learned = self.context.gather(1, index)
      x = torch.where((self.slots >= 0)[..., None], learned.to(x.dtype), x)
    x = text.embeddings(inputs_embeds=x)
    out = text.encoder(inputs_embeds=x, attention_mask=None, is_causal=True)
    rows = torch.arange(len(x), device=x.device)
    pooled = text.final_layer_norm(out.last_hidden_state[rows, self.end])
    return F.normalize(self.clip.text_projection(pooled).float(), dim=-1)

  def logits(self, features: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    return self.clip.logit_scale.float().exp() * features @ texts.T

  def loss(
    self, images: torch.Tensor, labels: torch.Tensor, weight: float
  ) -> torch.Tensor:
    """Cross entropy and C-PEAL's balanced calibration loss."""
    logits = self.logits(self.image_features(images), self.class_embeddings())
    return F.cross_entropy(logits, labels) + weight * calibration(
      logits, labels
    )


def _tokens(tokens: Any) -> tuple[np.ndarray, np.ndarray]:
  return tokens.ids.astype(np.int64), tokens.slots.astype(np.int64)


def calibration(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
  """Computes the balanced `losses.uncertainty_calibration_loss`."""
  probs = logits.softmax(-1)
  u = torch.clamp(-(probs * (probs + 1e-6).log()).sum(-1), min=0)
  right = (logits.argmax(-1) == labels).float()
  n, good = len(labels), right.sum()
  certain = -(2 * torch.sigmoid(-2 * u) + 1e-6).log()
  unsure = -(u.tanh() + 1e-6).log()
  a = (certain * right).sum() / good.clamp(min=1)
  i = (unsure * (1 - right)).sum() / (n - good).clamp(min=1)
  return (((n - good) * a + good * i) / n).clamp(max=5)


def make_encode(
  peer: Peer, texts: np.ndarray, batch: int, *, compiled: bool
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
  """Returns a function from uint8 images to features and logits on the host."""
  peer.eval()
  own = tensor(texts)

  def one(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = peer.image_features(images)
    return features, peer.logits(features, own)

  run = torch.compile(one, dynamic=False) if compiled else one

  @torch.inference_mode()
  def encode(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    whole = torch.from_numpy(images)
    parts = [run(x.to(DEVICE)) for x in whole.split(batch)]
    features, logits = (
      torch.cat([part[k] for part in parts]).cpu().numpy() for k in (0, 1)
    )
    return features, logits

  return encode


def make_step(
  peer: Peer, recipe: Recipe, *, compiled: bool
) -> Callable[..., dict[str, float]]:
  """Returns a step of SGD as in `training.make_step`.

  The step takes images, labels, the learning rate and the weight of the
  calibration loss, and returns the loss terms.
  """
  peer.train()
  trained = [x for x in peer.parameters() if x.requires_grad]
  optimizer = torch.optim.SGD(
    trained, 1.0, recipe.momentum, weight_decay=recipe.weight_decay
  )
  loss = torch.compile(peer.loss, dynamic=False) if compiled else peer.loss

  def step(images, labels, rate, weight) -> dict[str, float]:
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad()
    pixels = torch.from_numpy(images).to(DEVICE)
    value = loss(pixels, tensor(labels).long(), weight)
    value.backward()
    norm = torch.nn.utils.get_total_norm(
      [x.grad for x in trained if x.grad is not None]
    )
    optimizer.step()
    return {"loss": value.item(), "gradient_norm": norm.item()}

  return step


def product(size: int, times: int, dtype: str) -> Callable[[], Any]:
  """Returns the call of `workload.product` in PyTorch."""
  own = getattr(torch, dtype)
  x = torch.full((size, size), 1 / math.sqrt(size), device=DEVICE, dtype=own)

  @torch.inference_mode()
  def run() -> None:
    for _ in range(times):
      y = x @ x
    y.ravel()[0].item()

  return run
