"""One row of metrics: the test split's, with a temperature of validation."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from cpeal_jax import metrics

HELD_OUT = ("accuracy", "nll", "ece")
_summary = jax.jit(metrics.summary)
_temperature = jax.jit(metrics.fit_temperature)


@jax.jit
def _held_out(logits, labels, *, where):
  """Of the validation split: what isn't asked for isn't compiled."""
  found = metrics.summary(logits, labels, temperature=1.0, where=where)
  return {name: found[name] for name in HELD_OUT}


def compile_metrics(test: int, validation: int, classes: int) -> None:
  """Compiles `evaluate` for so many images and classes; runs nothing."""

  def shapes(count: int) -> tuple[Any, Any, Any]:
    logits = jax.ShapeDtypeStruct((count, classes), np.float32)
    labels = jax.ShapeDtypeStruct((count,), np.int32)
    return logits, labels, jax.ShapeDtypeStruct((count,), bool)

  logits, labels, where = shapes(validation)
  _temperature.lower(logits, labels, where=where).compile()
  _held_out.lower(logits, labels, where=where).compile()
  logits, labels, where = shapes(test)
  one = jax.ShapeDtypeStruct((), np.float32)
  _summary.lower(logits, labels, temperature=one, where=where).compile()


def evaluate(
  logits: Float[np.ndarray, "N C"],
  labels: Int[np.ndarray, " N"],
  *,
  where: Bool[np.ndarray, " N"],
  validation_logits: Float[np.ndarray, "M C"],
  validation_labels: Int[np.ndarray, " M"],
  validation_where: Bool[np.ndarray, " M"],
) -> dict[str, np.float32]:
  """The test split's metrics, with a temperature fitted on validation.

  Returns:
    `metrics.summary` of the test split, and accuracy, NLL and ECE of the
    validation split as `val_accuracy`, `val_nll` and `val_ece`.
  """
  temperature = _temperature(
    validation_logits, validation_labels, where=validation_where
  )
  test = _summary(logits, labels, temperature=temperature, where=where)
  held = _held_out(validation_logits, validation_labels, where=validation_where)
  row = {name: np.float32(value) for name, value in test.items()}
  row |= {f"val_{name}": np.float32(value) for name, value in held.items()}
  return row
