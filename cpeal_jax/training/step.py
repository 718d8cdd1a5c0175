"""The compiled training step and the loop that calls it.

One compilation serves a whole run: a batch always has `Recipe.batch` rows,
padded and masked if there are fewer labels, and the learning rate and the
weight of the calibration loss are arguments of the step.
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
from cpeal_jax.errors import Failure, InputError
from cpeal_jax.models import loss_head
from cpeal_jax.models.classifier import Classifier
from cpeal_jax.parallel import sharding, spmd
from cpeal_jax.training.anchored import Anchor
from cpeal_jax.training.objective import make_loss
from cpeal_jax.training.recipe import (
  HEAD_DROP,
  HEAD_RATE,
  Recipe,
  learning_rate,
  make_optimizer,
)


class TrainingError(Failure):
  """Training cannot go on; the message says in which round and why."""


@flax.struct.dataclass
class TrainState:
  """All that training changes. The pretrained weights are not part of it.

  Attributes:
    step: number of finished steps of the round, an int32 scalar.
    adapter: the variable collection that is trained.
    optimizer: optax's state for `adapter`.
  """

  # The annotations have no shapes, since jaxtyping would check them, and tree
  # maps also put shardings and other objects that are not arrays into these
  # fields.
  step: Any
  adapter: dict
  optimizer: Any


def make_init(classifier: Classifier, recipe: Recipe) -> Callable:
  """Returns the function (params, key) -> initial adapter.

  The adapter contains the weights of the loss head if the recipe has one.
  """

  def init(params, key):
    adapter = classifier.init(params, key)
    if recipe.loss_head:
      logits = jnp.zeros((1, classifier.classes))
      head_key = jax.random.fold_in(key, 1)
      adapter[loss_head.NAME] = loss_head.HEAD.init(head_key, logits)["params"]
    return adapter

  return init


def init_state(adapter: dict, recipe: Recipe) -> TrainState:
  """Returns the state of a round at step 0."""
  optimizer = make_optimizer(recipe).init(adapter)
  return TrainState(jnp.zeros((), jnp.int32), adapter, optimizer)


def place(state: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
  """Copies the state to every device, as the training step requires."""
  return sharding.replicate(state, mesh)


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
  """A compiled training step; call it to advance a `TrainState`.

  Attributes:
    program: the jitted function that it calls, whose arguments are all arrays.
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
    anchor: Anchor | None = None,
  ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Takes one step.

    Args:
      state: the current state; it is donated and cannot be used afterwards.
      params: pretrained weights.
      texts: class embeddings of a frozen text tower, or None.
      batch: the step's images and labels.
      key: the round's key; the step folds its own number into it.
      rate: the adapter's learning rate.
      weight: weight of the calibration loss.
      head_rate: the loss head's learning rate.
      anchor: what holds the logits of the pool, if the recipe wants it.

    Returns:
      The new state, and scalars by name: the loss, its terms and the global
      norm of the gradient.
    """
    rows = sharding.split(vars(batch), self.mesh)
    rates = map(np.float32, (rate, weight, head_rate))
    out = self.program(state, params, texts, rows, key, *rates, anchor)
    return spmd.settle(out, self.mesh)

  def compile(
    self,
    state: TrainState,
    params: dict,
    texts: Any,
    batch: Batch,
    anchor: Any = None,
  ) -> None:
    """Compiles the step before its first call.

    Args:
      state, params, texts, batch, anchor: the arguments of that call, or
        `jax.ShapeDtypeStruct`s with their shapes and shardings.
    """
    rows = sharding.split(vars(batch), self.mesh)
    key, rate = jax.random.key(0), np.float32(0)
    self.program.lower(
      state, params, texts, rows, key, rate, rate, rate, anchor
    ).compile()


def refuse_batch(recipe: Recipe, mesh: jax.sharding.Mesh) -> None:
  """Checks that a batch divides evenly over the devices.

  Raises:
    InputError: its rows are not a multiple of the number of devices.
  """
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
  """Returns the training step, which is compiled at its first call.

  Losses are masked sums over the global batch, so padding and the number of
  devices change nothing but the order of additions.

  Args:
    classifier: the model whose adapter is trained.
    recipe: losses and optimizer.
    mesh: the devices that share a batch.

  Raises:
    InputError: the batch is not a multiple of the number of devices.
  """
  refuse_batch(recipe, mesh)
  optimizer = make_optimizer(recipe)
  loss = make_loss(classifier, recipe)

  def step(state, params, texts, batch, key, rate, weight, head_rate, anchor):
    key = jax.random.fold_in(key, state.step)
    gradient, terms = jax.grad(loss, has_aux=True)(
      state.adapter, params, texts, batch, key, weight, anchor
    )
    terms["gradient_norm"] = optax.tree.norm(gradient)
    direction, moments = optimizer.update(
      gradient, state.optimizer, state.adapter
    )
    rates = {
      name: head_rate if name == loss_head.NAME else rate
      for name in state.adapter
    }
    updates: Any = direction
    adapter = {
      name: jax.tree.map(
        lambda x, d, r=rates[name]: x - r * d, branch, updates[name]
      )
      for name, branch in state.adapter.items()
    }
    return TrainState(state.step + 1, adapter, moments), terms

  replicated, rows = sharding.replicated(mesh), sharding.split_rows(mesh)
  compiled = jax.jit(
    step,
    in_shardings=(
      replicated,  # state
      replicated,  # params
      replicated,  # texts
      rows,  # batch
      *5 * (replicated,),  # key, rates and weights, anchor
    ),
    out_shardings=replicated,
    donate_argnums=0,
  )

  return Step(compiled, mesh)


def check_finite(
  terms: dict[str, Float[Array, ""]], *, round_: int, epoch: int, step: int
) -> dict[str, float]:
  """Returns a step's terms as Python numbers.

  Args:
    terms: scalars by name, from `Step`.
    round_, epoch, step: numbers from 0, for the message.

  Raises:
    TrainingError: a term is not finite.
  """
  # One transfer for all terms, since each transfer waits for the device.
  values = {name: float(x) for name, x in jax.device_get(terms).items()}
  bad = [name for name, value in values.items() if not math.isfinite(value)]
  if bad:
    raise TrainingError(
      f"non-finite {', '.join(bad)} in round {round_}, epoch {epoch}, step "
      f"{step}: lower train.learning_rate or loss.weight."
    )
  return values


def check_adapter(state: TrainState, *, round_: int) -> None:
  """Refuses an adapter that is not finite after the last update.

  The loss of a step is computed before its update, so no term of a loss shows
  the effect of the last update.

  Raises:
    TrainingError: variables are not finite; the message names the first three.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(state.adapter)
  bad = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in leaves
    # The adapter is the same on every device.
    if not np.isfinite(np.asarray(leaf.addressable_data(0))).all()
  ]
  if bad:
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    raise TrainingError(
      f"the last update of round {round_} made the adapter non-finite "
      f"({', '.join(bad[:3])}{more}): lower train.learning_rate."
    )


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
  anchor: Anchor | None = None,
  after_step: Callable[[int, TrainState, dict], None] | None = None,
) -> tuple[TrainState, dict[str, float]]:
  """Trains from the state's step to the end of the last epoch.

  Args:
    step: the step, from `make_step`.
    state: a fresh state, or one restored in the middle of the round. It is
      consumed.
    params: pretrained weights.
    texts: class embeddings of a frozen text tower, or None for a text tower
      that is trained.
    batches: the batches of all remaining steps, from the state's step on.
    key: the round's key; each step folds its own number into it.
    recipe: number of epochs, learning rates and weights of losses.
    steps_per_epoch: how many batches an epoch has.
    anchor: what holds the logits of the pool, if the recipe wants it.
    round_: the round's number, for messages.
    after_step: called with the number of finished steps, the state and the
      step's terms, once these are known to be finite.

  Returns:
    The last state and the last step's terms, which are empty if no step was
    left to do.

  Raises:
    TrainingError: a term of the loss, or the gradient, is not finite.
  """
  values: dict[str, float] = {}
  for number, batch in enumerate(batches, start=int(state.step)):
    epoch, step_of_epoch = divmod(number, steps_per_epoch)
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
      anchor,
    )
    values = check_finite(terms, round_=round_, epoch=epoch, step=step_of_epoch)
    if after_step:
      after_step(number + 1, state, values)
  return state, values
