"""How a round is trained: hyperparameters, schedule and optimizer."""

import dataclasses
import math

import optax

from cpeal_jax.models import loss_head

# Names of the losses that can be added to cross entropy; `objective.make_loss`
# shows which function each name stands for.
# What `Recipe.anchor` is a multiple of.
ANCHOR_UNITS = ("one", "fitted")
CALIBRATIONS = (
  *("none", "balanced", "unbalanced", "effective_number"),
  *("avuc", "margin_statistics"),
)
# The beta of `effective_number`, which weights classes by the effective number
# of their rows. The value is that of C-PEAL's released code.
EFFECTIVE_BETA = 0.999
OPTIMIZERS = ("sgd", "adamw")
# The recipe of Learning Loss for its head: the weight of the ranking loss, the
# learning rate, the epoch from which a tenth of that rate applies, and the
# factor of the L2 penalty.
HEAD_WEIGHT, HEAD_RATE, HEAD_DROP, HEAD_DECAY = 0.01, 0.1, 160, 5e-4


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Hyperparameters of one round of training.

  The defaults are those of the released C-PEAL script.

  Attributes:
    epochs: passes over the labeled set.
    batch: rows of one step, over all devices together.
    optimizer: `sgd` with momentum, or `adamw`.
    learning_rate: the peak rate, reached after the warm-up; from there the rate
      falls along half a cosine, epoch by epoch.
    warmup_epochs: how many epochs at the start have the rate `warmup_rate`.
    warmup_rate: the constant learning rate of the warm-up.
    momentum: momentum of SGD (AdamW uses betas 0.9 and 0.999).
    weight_decay: the factor of the weights that SGD adds to the gradient, and
      that AdamW adds to its update.
    calibration: the calibration loss: `none`; `balanced`, `unbalanced` or
      `effective_number`, all three C-PEAL's; `avuc`; or `margin_statistics`.
    calibration_weight: the calibration loss's weight, or, if it is annealed,
      the weight that it grows towards.
    anneal: whether the weight grows over the epochs.
    avuc_threshold: the entropy in nats up to which `avuc` counts a prediction
      as certain; None means ln(C) / 2.
    anchor: tau, how strongly the answers for the pool are held at those of the
      anchor; see `objective.divergence_from_anchor`. 0 is without it.
    anchor_unit: what `anchor` is a multiple of, one of `ANCHOR_UNITS`: 1, or
      the tau that `held_out.choose_tau` chooses from the labels.
    loss_head: whether Learning Loss's head is trained beside the adapter.
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
  anchor: float = 0.0
  anchor_unit: str = "one"
  loss_head: bool = False


def learning_rate(epoch: int, recipe: Recipe) -> float:
  """Returns an epoch's rate: constant warm-up, then `lr (1 + cos(pi e/E)) / 2`.

  As in CoOp's schedule, e counts epochs from the end of the warm-up while E is
  the number of all epochs, so the rate does not reach 0.
  """
  if epoch < recipe.warmup_epochs:
    return recipe.warmup_rate
  progress = (epoch - recipe.warmup_epochs) / recipe.epochs
  return 0.5 * recipe.learning_rate * (1 + math.cos(math.pi * progress))


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
  """Returns an optimizer whose updates lack the learning rate and the sign.

  The training step multiplies an update by the learning rate and subtracts it.
  The rate is an argument of the step, so that one compiled program serves all
  epochs. Momentum therefore accumulates gradients before the rate is applied,
  as in PyTorch.
  """
  if recipe.loss_head:
    sgd = optax.chain(
      optax.add_decayed_weights(HEAD_DECAY), optax.trace(decay=0.9)
    )
    rest = make_optimizer(dataclasses.replace(recipe, loss_head=False))
    return optax.partition(
      {"head": sgd, "adapter": rest},
      # One label per top-level entry: it covers the whole branch below it.
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
