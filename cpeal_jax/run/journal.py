"""The rounds' record as the loop sees it, on one process or on many.

Process 0 alone reads and writes a run's plain files. Each method here calls a
function of `storage` on process 0 and sends the answer to all processes, so the
code of the loop is the same for any number of them.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from cpeal_jax.labeling import (
  asked,
  folding,
)
from cpeal_jax.labeling.questions import AUDIT, Question
from cpeal_jax.parallel.processes import first
from cpeal_jax.storage import record, results


@dataclasses.dataclass(frozen=True)
class Journal:
  """Reads and writes the rounds of one workdir.

  Every process calls the same methods in the same order. Each may raise the
  InputError of a file that was edited, truncated or cannot be written.
  """

  workdir: epath.Path

  def _first(self, call: Callable, *args: Any, **kwargs: Any) -> Any:
    return first(call, self.workdir, *args, **kwargs)

  def restore_markers(self) -> list[int]:
    """Writes lost SELECTED markers again; returns their rounds."""
    return self._first(record.restore_selected)

  def finished_rounds(self) -> int:
    """How many rounds are finished, counted from round 0."""
    return self._first(record.finished_rounds)

  def rows(self) -> list[dict[str, Any]]:
    """The rows of metrics, ordered by round; round -1 is zero-shot."""
    return self._first(results.read_metrics)

  def rebuild_results(self) -> None:
    """Writes results.csv again, in case it was edited or removed."""
    self._first(results.write_results)

  def write_row(self, row: Mapping[str, Any]) -> None:
    """Adds a row of metrics, or replaces that of the same round."""
    self._first(results.write_metrics, [row])

  def selected(self, round_: int) -> list[str] | None:
    """The ids of a round's picks, best first; None if it has no picks yet."""
    return self._first(record.selected, round_)

  def commit_selection(
    self,
    round_: int,
    *,
    selection: Mapping[str, Collection[Any]],
    scores: Mapping[str, Any],
  ) -> None:
    """Commits a round's picks and the scores of the whole pool."""
    self._first(
      record.write_selection, round_, selection=selection, scores=scores
    )

  def questions(self, round_: int) -> list[Question]:
    """What a person would be asked about a round's picks, best first."""
    # Several processes send them as JSON, which makes tuples of them.
    return [Question(*q) for q in self._first(asked.of_round, round_)]

  def pseudo_labels(self, round_: int) -> dict[str, str]:
    """Class names by id, of a round's picks that the model labels itself."""
    return self._first(record.pseudo_labels, round_)

  def write_labels(
    self,
    round_: int,
    ids: Sequence[str],
    labels: Sequence[str],
    *,
    sources: Sequence[str],
  ) -> None:
    """Records a round's labels (class names) and who gave each."""
    self._first(record.write_labels, round_, ids, labels, sources=sources)

  def answers(self, rounds: int) -> dict[str, tuple[str, str]]:
    """Class name and source by id, of what the first rounds recorded.

    The name is empty where nobody could label the image.
    """
    labels = self._first(record.read_labels, range(rounds))
    return {id_: (label, source) for id_, (label, source) in labels.items()}

  def purposes(self, rounds: int) -> dict[str, list[str]]:
    """The ids of the first rounds' selections by their purpose."""
    return self._first(record.purposes, range(rounds))

  def predictions(self, round_: int) -> tuple[list[str], list[int]]:
    """Ids of the pool, and the predictions with which a round chose."""
    return self._first(record.predictions, round_)

  def reserved(self) -> list[str]:
    """The ids that a certificate asked about; nothing is trained on them."""
    return self._first(_reserved)

  def write_predictions(
    self,
    round_: int,
    splits: Mapping[str, tuple[Sequence[str], np.ndarray]],
  ) -> None:
    """Writes the logits of a round's model for each split, for reports."""
    self._first(record.write_predictions, round_, splits)

  def write_calibration(self, round_: int, content: Mapping[str, Any]) -> None:
    """Records the temperature of a round's model."""
    self._first(record.write_about, round_, record.CALIBRATION, content)

  def write_estimate(self, round_: int, content: Mapping[str, Any]) -> None:
    """Records what the audits say about a round's model."""
    self._first(record.write_about, round_, record.ESTIMATE, content)

  def finish(self, round_: int) -> None:
    """Marks a round as finished; its labels and metrics must be written."""
    self._first(record.mark_done, round_)


def _reserved(workdir: epath.Path) -> list[str]:
  # Only a certificate asks about images that no round has drawn.
  if not (workdir / record.CERTIFICATE).exists():
    return []
  standing = folding.known_in(workdir).standing
  return [id_ for id_, event in standing.items() if event.purpose == AUDIT]
