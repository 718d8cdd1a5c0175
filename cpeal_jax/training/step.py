"""Training an adapter on the labels bought so far: one compiled step.

The step's shapes never change while the labeled set grows: a batch always
has `Recipe.batch` rows, padded and masked, and the learning rate and the
weight of the calibration loss arrive as numbers.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from cpeal_jax import losses
from cpeal_jax.data.batches import Batch
from cpeal_jax.errors import InputError
from cpeal_jax.models import loss_head
from cpeal_jax.models.classifier import Classifier
from cpeal_jax.parallel import sharding
from cpeal_jax.training.objective import make_loss
from cpeal_jax.training.recipe import (
  HEAD_DROP,
  HEAD_RATE,
  Recipe,
  learning_rate,
  make_optimizer,
)


class TrainingError(RuntimeError):
  """Training cannot go on; the message names round, epoch, step and term."""


@flax.struct.dataclass
class TrainState:
  """What changes while training; the pretrained weights are not in it.

  Attributes:
    step: finished steps of the round, an int32 scalar.
    adapter: the variable collection that is trained.
    optimizer: optax's state for it.
  """

  # No shapes here: tree maps fill records with what is no array.
  step: Any
  adapter: dict
  optimizer: Any


def make_init(classifier: Classifier, recipe: Recipe) -> Callable:
  """(params, key) -> what is trained: a fresh adapter, and the loss head."""

  def init(params, key):
    adapter = classifier.init(params, key)
    if recipe.loss_head:
      logits = jnp.zeros((1, classifier.classes))
      own = jax.random.fold_in(key, 1)
      adapter[loss_head.NAME] = loss_head.HEAD.init(own, logits)["params"]
    return adapter

  return init


def init_state(adapter: dict, recipe: Recipe) -> TrainState:
  """Step 0 of a round."""
  optimizer = make_optimizer(recipe).init(adapter)
  return TrainState(jnp.zeros((), jnp.int32), adapter, optimizer)


def place(state: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
  """The state on every device; what a checkpoint is restored into."""
  return sharding.replicate(state, mesh)


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
  """A training step: (state, params, texts, batch, key, rate, weight).

  It returns (state, terms), consuming the old state; `terms` are scalars by
  name, the gradient's global norm among them.

  Attributes:
    program: the jitted function of arrays alone.
    mesh: the devices that it runs on.
  """

  program: Callable
  mesh: jax.sharding.Mesh

  def __call__(
    self,
    state: TrainState,
    params: dict,
    texts: Float[Array, "C D"] | None,
    batch: Batch,
    key: PRNGKeyArray,
    rate: float,
    weight: float,
    head_rate: float = HEAD_RATE,
  ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    rows = sharding.split(vars(batch), self.mesh)
    rates = map(np.float32, (rate, weight, head_rate))
    out = self.program(state, params, texts, rows, key, *rates)
    return sharding.settle(out, self.mesh)

  def compile(
    self, state: TrainState, params: dict, texts: Any, batch: Batch
  ) -> None:
    """Compiles for arrays, or their shapes and shardings, of a later call."""
    rows = sharding.split(vars(batch), self.mesh)
    key, rate = jax.random.key(0), np.float32(0)
    self.program.lower(
      state, params, texts, rows, key, rate, rate, rate
    ).compile()


def refuse_batch(recipe: Recipe, mesh: jax.sharding.Mesh) -> None:
  """InputError for a batch that is not a multiple of the devices."""
  devices = mesh.devices.size
  if recipe.batch % devices:
    raise InputError(
      f"train.batch={recipe.batch} is not a multiple of {devices} devices."
    )


def make_step(
  classifier: Classifier,
  recipe: Recipe,
  mesh: jax.sharding.Mesh,
) -> Step:
  """The step of a classifier under a recipe; it compiles at its first call.

  Losses are masked sums over the global batch, so padding and the number of
  devices change nothing but the order of additions.

  Raises:
    InputError: the batch is not a multiple of the devices.
  """
  refuse_batch(recipe, mesh)
  optimizer = make_optimizer(recipe)
  loss = make_loss(classifier, recipe)

  def step(state, params, texts, batch, key, rate, weight, head_rate):
    key = jax.random.fold_in(key, state.step)
    gradient, terms = jax.grad(loss, has_aux=True)(
      state.adapter, params, texts, batch, key, weight
    )
    terms["gradient_norm"] = optax.tree.norm(gradient)
    direction, moments = optimizer.update(
      gradient, state.optimizer, state.adapter
    )
    rates = {
      name: head_rate if name == loss_head.NAME else rate
      for name in state.adapter
    }
    moves: Any = direction
    adapter = {
      name: jax.tree.map(lambda x, d, r=rates[name]: x - r * d, x, moves[name])
      for name, x in state.adapter.items()
    }
    return TrainState(state.step + 1, adapter, moments), terms

  whole, rows = sharding.replicated(mesh), sharding.split_rows(mesh)
  compiled = jax.jit(
    step,
    in_shardings=(whole, whole, whole, rows, *4 * (whole,)),
    out_shardings=whole,
    donate_argnums=0,
  )

  return Step(compiled, mesh)


def check_finite(
  terms: dict[str, Float[Array, ""]], *, round_: int, epoch: int, step: int
) -> dict[str, float]:
  """The terms as numbers.

  Raises:
    TrainingError: one of them is not finite.
  """
  # All in one transfer: each waits for the device.
  values = {name: float(x) for name, x in jax.device_get(terms).items()}
  bad = [name for name, value in values.items() if not math.isfinite(value)]
  if bad:
    raise TrainingError(
      f"non-finite {', '.join(bad)} in round {round_}, epoch {epoch}, step "
      f"{step}: lower train.learning_rate or loss.weight."
    )
  return values


def fit(
  step: Step,
  state: TrainState,
  params: dict,
  texts: Float[Array, "C D"] | None,
  batches: Iterable[Batch],
  key: PRNGKeyArray,
  recipe: Recipe,
  *,
  steps_per_epoch: int,
  round_: int = 0,
  after_step: Callable[[int, TrainState, dict], None] | None = None,
) -> tuple[TrainState, dict[str, float]]:
  """Trains from wherever `state` is to the end of the last epoch.

  Args:
    step: of `make_step`.
    state: a fresh one, or one restored in the middle of the round.
    params: pretrained weights.
    texts: class embeddings where the text tower is frozen, else None.
    batches: of all epochs, from the state's step on.
    key: of the round; each step folds its number in.
    recipe: epochs, rates and weights.
    steps_per_epoch: batches of an epoch.
    round_: for messages.
    after_step: called with the number of finished steps, the state and the
      step's terms, once these are known to be finite.

  Returns:
    The last state and the last step's terms.

  Raises:
    TrainingError: a term of the loss is not finite.
  """
  values: dict[str, float] = {}
  for at, batch in enumerate(batches, start=int(state.step)):
    epoch, own = divmod(at, steps_per_epoch)
    weight = losses.calibration_weight(
      epoch, recipe.epochs, recipe.calibration_weight, recipe.anneal
    )
    state, terms = step(
      state,
      params,
      texts,
      batch,
      key,
      learning_rate(epoch, recipe),
      weight,
      HEAD_RATE if epoch < HEAD_DROP else HEAD_RATE / 10,
    )
    values = check_finite(terms, round_=round_, epoch=epoch, step=own)
    if after_step:
      after_step(at + 1, state, values)
  return state, values
