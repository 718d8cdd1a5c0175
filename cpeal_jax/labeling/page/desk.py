"""What the page's server knows beside the workdir."""

import dataclasses
import time
from typing import Any

from cpeal_jax.labeling.page.board import Board

# After the run has ended, an open page has so long to hear of it.
LAST_WORDS_SECONDS = 3.0


@dataclasses.dataclass
class Desk:
  """What the server knows beside the workdir.

  Attributes:
    board: the workdir; None until the run has opened it.
    phase: what the run is doing: `starting`, `asking`, `working` or `ended`.
    progress: the stage of the run that is under way, and how far it is.
    trained: whether the run has trained since it started. The first time takes
      longer, since programs are compiled.
    certified: how much is certified so far; empty outside of a certificate.
    ended: how the run ended, for the person; empty while it runs.
    heading: the same in a word or two.
    heard: when each tab asked last, in seconds of the monotonic clock.
    told: the tabs that have learned how the run ended.
    done: the number of the last operation of each tab, so that a request that
      is sent again does nothing twice.
  """

  board: Board | None = None
  phase: str = "starting"
  progress: dict[str, Any] = dataclasses.field(default_factory=dict)
  trained: bool = False
  certified: str = ""
  ended: str = ""
  heading: str = ""
  heard: dict[str, float] = dataclasses.field(default_factory=dict)
  told: set[str] = dataclasses.field(default_factory=set)
  done: dict[str, int] = dataclasses.field(default_factory=dict)

  def hears(self, tab: str) -> None:
    """Notes that a tab asks what is new."""
    self.heard[tab] = time.monotonic()
    if self.ended:
      self.told.add(tab)

  def waits(self) -> bool:
    """Returns whether a tab that is open has not learned how the run ended."""
    since = time.monotonic() - LAST_WORDS_SECONDS
    tabs = {tab for tab, time_ in list(self.heard.items()) if time_ > since}
    return bool(self.ended) and not tabs <= self.told

  def hear(self, message: dict[str, Any]) -> None:
    """Takes a message of the run."""
    match message:
      case {"workdir": workdir, "range": value_range}:
        black_white = tuple(value_range) if value_range else None
        self.board = Board(workdir, black_white, message.get("saved", ""))
      case {"apart": path}:
        if self.board is not None:
          self.board.ask_apart(path)
      case {"phase": phase}:
        self.phase, self.progress = phase, {}
      case {"stage": name, "done": done, "total": total}:
        self.progress = message if total != done else {}
        self.trained |= name.startswith("fit round") and total == done
      case {"certified": text}:
        self.certified = text
      case {"ended": text, "heading": heading}:
        self.phase, self.ended, self.heading = "ended", text, heading
