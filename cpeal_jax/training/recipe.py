"""How a round is trained: its numbers, their schedule and the optimizer."""

import dataclasses
import math

import optax

from cpeal_jax.models import loss_head

# What stands beside cross entropy, by `Recipe.calibration`. AvUC's threshold
# is bound in `objective.make_loss`.
CALIBRATIONS = ("none", "balanced", "unbalanced", "effective_number", "avuc")
# The base of the effective number of rows, as in the released code of C-PEAL.
EFFECTIVE_BETA = 0.999
OPTIMIZERS = ("sgd", "adamw")
# Learning Loss's own recipe: weight of its loss; rate, and from which epoch a
# tenth of it; L2.
HEAD_WEIGHT, HEAD_RATE, HEAD_DROP, HEAD_DECAY = 0.01, 0.1, 160, 5e-4


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How one round is trained; the defaults are the released C-PEAL script's.

  Attributes:
    epochs: passes over the labeled set.
    batch: rows of a step over all devices.
    optimizer: `sgd` with momentum, or `adamw`.
    learning_rate: peak; after the warm-up it follows half a cosine by epoch.
    warmup_epochs, warmup_rate: constant rate of the first epochs.
    momentum: of SGD (AdamW uses 0.9, 0.999).
    weight_decay: added to the gradient (SGD) or decoupled (AdamW).
    calibration: `none`, `balanced`, `unbalanced` or `effective_number` (all
      three C-PEAL's), or `avuc`.
    calibration_weight: its final weight W.
    anneal: whether the weight grows over the epochs.
    avuc_threshold: entropy in nats that splits certain from uncertain;
      None takes ln(C) / 2.
    loss_head: train Learning Loss's head beside the adapter.
  """

  epochs: int = 10
  batch: int = 32
  optimizer: str = "sgd"
  learning_rate: float = 2e-3
  warmup_epochs: int = 1
  warmup_rate: float = 1e-5
  momentum: float = 0.9
  weight_decay: float = 5e-4
  calibration: str = "balanced"
  calibration_weight: float = 1.0
  anneal: bool = True
  avuc_threshold: float | None = None
  loss_head: bool = False


def learning_rate(epoch: int, recipe: Recipe) -> float:
  """Rate of an epoch: constant warm-up, then `lr (1 + cos(pi e / E)) / 2`.

  As in CoOp's schedule, e counts from the warm-up's end and E is all epochs,
  so the rate does not reach 0.
  """
  if epoch < recipe.warmup_epochs:
    return recipe.warmup_rate
  done = (epoch - recipe.warmup_epochs) / recipe.epochs
  return 0.5 * recipe.learning_rate * (1 + math.cos(math.pi * done))


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
  """The descent direction for a unit learning rate (PyTorch's order)."""
  if recipe.loss_head:
    sgd = optax.chain(
      optax.add_decayed_weights(HEAD_DECAY), optax.trace(decay=0.9)
    )
    own = make_optimizer(dataclasses.replace(recipe, loss_head=False))
    return optax.partition(
      {"head": sgd, "adapter": own},
      # Labels may cover whole branches.
      lambda tree: {
        name: "head" if name == loss_head.NAME else "adapter" for name in tree
      },
    )
  if recipe.optimizer == "adamw":
    return optax.chain(
      optax.scale_by_adam(),
      optax.add_decayed_weights(recipe.weight_decay),
    )
  return optax.chain(
    optax.add_decayed_weights(recipe.weight_decay),
    optax.trace(decay=recipe.momentum),
  )
