"""The oracle that asks on the page, and waits there for the answers."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from cpeal_jax.data.formats import Range
from cpeal_jax.errors import counted
from cpeal_jax.labeling import (
  answers,
  asked,
  events,
  folding,
)
from cpeal_jax.labeling.oracle import Reply, Waiting, reply
from cpeal_jax.labeling.page.handle import Page
from cpeal_jax.labeling.questions import Question
from cpeal_jax.storage.record import GIVEN

# How often the record of answers is looked at.
POLL_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class OnPage:
  """Waits until a person has answered on the page.

  The page reads the questions from the workdir, and adds the answers to the
  record there.

  Attributes:
    workdir: of the run.
    given: class names by id that the data set has already.
    page: the page, which is open already.
    stop: asked again and again while it waits, whether to stop waiting.
    value_range: black and white of deep images.
    apart: a file with the ids of questions that no round asks, see
      `asked.write_apart`; empty for those of rounds.
    saved: the folder of images that are no files, see `oracles.saved_at`.
  """

  workdir: str
  given: Mapping[str, str]
  page: Page
  stop: Callable[[], bool] = lambda: False
  value_range: Range = None
  apart: str = ""
  saved: str = ""
  source: ClassVar[str] = "page"

  def ask(self, questions: Sequence[Question]) -> Mapping[str, Reply]:
    """Returns what is known when the last round is answered, or at a stop."""
    round_ = max((question.round_ for question in questions), default=-1)
    now = [question for question in questions if question.round_ == round_]
    self.page.tell(
      workdir=self.workdir, range=self.value_range, saved=self.saved
    )
    if self.apart:
      self.page.tell(apart=self.apart)
    self.page.tell(phase="asking")
    seen: list[events.Event] = []
    offset, state = -1, folding.fold([])
    while True:
      new, end = answers.read_on(self.workdir, max(offset, 0))
      if end != offset:
        seen = new if end < offset else seen + new
        offset, state = end, folding.fold(seen)
        if not asked.still_open(now, state.standing):
          break
      if self.stop() or not self.page.is_served():
        break
      time.sleep(POLL_SECONDS)
    self.page.tell(phase="working")
    return self._replies(questions, state.standing)

  def _replies(
    self, questions: Sequence[Question], standing: Mapping[str, events.Event]
  ) -> dict[str, Reply]:
    """Returns what the record says, as labels.csv takes it.

    A label of an image that was not asked about counts as given: the person
    confirmed it beside the model's prediction. An image that was an audit of an
    earlier run is not trained on.
    """
    by_id = {question.id: question for question in questions}
    replies = {}
    for id_, event in standing.items():
      question = by_id.get(id_)
      if question is not None:
        if not asked.is_open(question, standing):
          replies[id_] = reply(event, self.source)
      elif event.purpose == events.TRAIN:
        replies[id_] = reply(event, GIVEN)
    return replies

  def waiting(self, questions: Sequence[Question]) -> Waiting:
    images = counted(len(questions), "image waits", "images wait")
    why = "" if self.page.is_served() else "The page's process has ended. "
    return Waiting(
      [
        f"{why}All answers are saved; {images} for a label. To go on, run the "
        "same command again."
      ]
    )
