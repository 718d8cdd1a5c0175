"""A round's row of metrics, for the test split and the validation split."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from cpeal_jax import metrics

# The metrics that are reported for the validation split.
HELD_OUT = ("accuracy", "nll", "ece")
# The metrics that are left out if there is no validation split to fit the
# temperature on.
WITH_TEMPERATURE = ("temperature", "nll_ts", "ece_ts")
_summary = jax.jit(metrics.summary)
_temperature = jax.jit(metrics.fit_temperature)


@jax.jit
def _unscaled(logits, labels, *, where):
  """Returns the test split's metrics but those that need a temperature."""
  row = metrics.summary(logits, labels, temperature=1.0, where=where)
  return {name: row[name] for name in row if name not in WITH_TEMPERATURE}


@jax.jit
def _held_out(logits, labels, *, where):
  """Returns the validation split's metrics.

  `jit` removes the computation of all other metrics of the summary.
  """
  row = metrics.summary(logits, labels, temperature=1.0, where=where)
  return {name: row[name] for name in HELD_OUT}


def compile_metrics(test: int, validation: int, classes: int) -> None:
  """Compiles what `evaluate` calls, ahead of its first call.

  Args:
    test, validation: how many images the two splits have; 0 for no split.
    classes: how many classes there are.
  """

  def shapes(count: int) -> tuple[Any, Any, Any]:
    logits = jax.ShapeDtypeStruct((count, classes), np.float32)
    labels = jax.ShapeDtypeStruct((count,), np.int32)
    return logits, labels, jax.ShapeDtypeStruct((count,), bool)

  if validation:
    logits, labels, where = shapes(validation)
    _temperature.lower(logits, labels, where=where).compile()
    _held_out.lower(logits, labels, where=where).compile()
  logits, labels, where = shapes(test)
  scalar = jax.ShapeDtypeStruct((), np.float32)
  if test and validation:
    _summary.lower(logits, labels, temperature=scalar, where=where).compile()
  elif test:
    _unscaled.lower(logits, labels, where=where).compile()


def evaluate(
  logits: Float[np.ndarray, "N C"],
  labels: Int[np.ndarray, " N"],
  *,
  where: Bool[np.ndarray, " N"],
  validation_logits: Float[np.ndarray, "M C"],
  validation_labels: Int[np.ndarray, " M"],
  validation_where: Bool[np.ndarray, " M"],
) -> dict[str, np.float32]:
  """Computes a round's metrics, with a temperature fitted on validation.

  Either split may be empty. What cannot be measured is not in the row.

  Args:
    logits, labels, where: the test split's N images; only those where `where`
      is True count.
    validation_logits, validation_labels, validation_where: the same for the
      validation split's M images.

  Returns:
    `metrics.summary` of the test split, and of the validation split the fitted
    temperature, and accuracy, NLL and ECE as `val_accuracy`, `val_nll` and
    `val_ece`. Without a validation split, the metrics `WITH_TEMPERATURE` are
    left out.
  """
  held_out = (validation_logits, validation_labels)
  test, held = {}, {}
  if len(validation_logits):
    temperature = _temperature(*held_out, where=validation_where)
    held = _held_out(*held_out, where=validation_where)
    test = {"temperature": temperature}
    if len(logits):
      test = _summary(logits, labels, temperature=temperature, where=where)
  elif len(logits):
    test = _unscaled(logits, labels, where=where)
  row = {name: np.float32(value) for name, value in test.items()}
  row |= {f"val_{name}": np.float32(value) for name, value in held.items()}
  return row
