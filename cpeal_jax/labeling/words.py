"""Says what a person means by the word in a label's cell."""

import collections
import dataclasses
import functools
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from cpeal_jax.data.reading import shown
from cpeal_jax.errors import counted, nearest
from cpeal_jax.labeling.cells import restored
from cpeal_jax.labeling.events import ANSWER, CANNOT_TELL, UNUSABLE

# The two answers that are no class, as they are offered to a person.
OFFERED = {CANNOT_TELL: "cannot tell", UNUSABLE: "unusable"}
# Other words for them, in the form of `folded`.
SPELLINGS = {
  "cannot tell": CANNOT_TELL,
  "cannot_tell": CANNOT_TELL,
  "can't tell": CANNOT_TELL,
  "can\N{RIGHT SINGLE QUOTATION MARK}t tell": CANNOT_TELL,
  "?": CANNOT_TELL,
  "unusable": UNUSABLE,
}
# Longer words are no misspelled class, and would take long to compare.
LONGEST_COMPARED = 100
CLASSES_LISTED = 10


class Meaning(NamedTuple):
  """What a word means.

  Attributes:
    kind: `ANSWER`, `CANNOT_TELL` or `UNUSABLE`; empty if it means nothing.
    label: the class, if the kind is `ANSWER`.
    exact: whether the word is spelled as it was offered.
    why: why it means nothing, if it does.
    remedy: what to do then.
  """

  kind: str
  label: str = ""
  exact: bool = True
  why: str = ""
  remedy: str = ""


def offered(classes: Sequence[str]) -> tuple[str, ...]:
  """Returns the words that a person may choose from: the classes come first.

  A class that is called "unusable" stands for itself, and the answer of this
  name is not offered.
  """
  taken = {folded(name) for name in classes}
  return (*classes, *(w for w in OFFERED.values() if w not in taken))


def folded(text: str) -> str:
  """Returns a text without differences of case, spaces and normal form."""
  return unicodedata.normalize("NFC", " ".join(text.split()).casefold())


@dataclasses.dataclass(frozen=True)
class Words:
  """The classes, and what other words mean.

  Attributes:
    classes: the names of the classes.
  """

  classes: tuple[str, ...]

  @functools.cached_property
  def _classes(self) -> frozenset[str]:
    return frozenset(self.classes)

  @functools.cached_property
  def _by_folded(self) -> dict[str, list[str]]:
    found = collections.defaultdict(list)
    for name in self.classes:
      found[folded(name)].append(name)
    return found

  def meaning(self, cell: str) -> Meaning:
    """Returns what the text of a cell means.

    A class is meant if the cell holds its name, or the name in another case or
    with other spaces, provided that no other class differs from it only in
    these.
    """
    for text in (restored(cell), cell):
      if text in self._classes:
        return Meaning(ANSWER, text)
    stripped = restored(cell).strip()
    if stripped in self._classes:
      return Meaning(ANSWER, stripped, exact=False)
    same = self._by_folded.get(folded(stripped), [])
    if len(same) == 1:
      return Meaning(ANSWER, same[0], exact=False)
    if same:
      names = " or ".join(map(repr, same))
      why = f"the label {shown(stripped)} could be {names}"
      return Meaning("", why=why, remedy="write it as the class is written")
    kind = SPELLINGS.get(folded(stripped), "")
    if kind:
      return Meaning(kind, exact=stripped == OFFERED[kind])
    why = f"the label {shown(stripped)} is no class"
    return Meaning("", why=why, remedy=self._choose)

  @functools.cached_property
  def _choose(self) -> str:
    names = list(self.classes[:CLASSES_LISTED])
    if len(self.classes) > CLASSES_LISTED:
      more = len(self.classes) - CLASSES_LISTED
      names.append(counted(more, "more class", "more classes"))
    names += offered(self.classes)[len(self.classes) :]
    return f"write one of: {', '.join(names)}"

  def suggestion(self, cell: str) -> str:
    """Returns " Did you mean 'x'?" for a cell that is no class, or "".

    It compares the cell with every class, which takes a while if these are
    many.
    """
    word = restored(cell).strip()
    if len(word) > LONGEST_COMPARED or folded(word) in self._by_folded:
      return ""
    return nearest(word, offered(self.classes))
