"""Makes prompts of class names, and token ids of prompts.

`text_context` does so for prompts with learnable tokens.
"""

import dataclasses
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cpeal_jax.errors import InputError, counted


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Tokenized prompts. A class has one row, or several (see `owners`).

  In the shapes, C is the number of rows and L the number of tokens of a row.

  Attributes:
    texts: the prompts as strings, with `X` for each learnable token.
    ids: token ids. All rows are padded to the same length, see `padded`.
    slots: for each token, the index of the learnable token that replaces it,
      or -1 if none does.
    owners: the class index of each row; by default row i is class i.
  """

  texts: tuple[str, ...]
  ids: Int[np.ndarray, "C L"]
  slots: Int[np.ndarray, "C L"]
  owners: tuple[int, ...] = ()

  def __post_init__(self):
    if not self.owners:
      object.__setattr__(self, "owners", tuple(range(len(self.texts))))


def readable(name: str) -> str:
  """Returns a class name as prompts show it, with a space for each `_`."""
  return name.replace("_", " ").strip()


def from_template(classes: Sequence[str], template: str) -> tuple[str, ...]:
  """Fills a template such as "a photo of a {}." with each class name.

  Raises:
    InputError: if the template has no `{}`.
  """
  if "{}" not in template:
    raise InputError(
      f"model.template {template!r} has no {{}} for the class name."
    )
  return tuple(template.replace("{}", readable(name)) for name in classes)


def tokenize(texts: Sequence[str], tokenizer, *, positions: int = 77) -> Tokens:
  """Tokenizes fixed prompts, which have no learnable tokens.

  Args:
    texts: the prompts.
    tokenizer: a tokenizer of transformers, which adds the start and end tokens.
    positions: the longest prompt that the text tower takes, in tokens.

  Raises:
    InputError: if prompts are longer than `positions`, or if the tokenizer
      adds no end token; the message names the first such prompt.
  """
  rows = [tokenizer(text)["input_ids"] for text in texts]
  end = tokenizer.eos_token_id
  if end is None:  # Some tokenizers add an end token without naming it.
    end = rows[0][-1] if rows[0] else None
  for text, row in zip(texts, rows, strict=True):
    if end not in row:
      raise InputError(
        f"the tokenizer gives no end token ({tokenizer.eos_token!r}) to the "
        f"prompt {text!r}, but the text tower's output is the state of that "
        "token. Use the tokenizer files that belong to the weights."
      )
  refuse_long(texts, rows, positions=positions)
  assert end is not None  # else the first prompt has been refused
  ids = padded(rows, Frame([], [end], end, positions))
  return Tokens(tuple(texts), ids, np.full_like(ids, -1))


def refuse_long(
  texts: Sequence[str], rows: Sequence[Sequence[int]], *, positions: int
) -> None:
  """Refuses prompts with more than `positions` tokens.

  Raises:
    InputError: if there are any; the message names the first of them.
  """
  too_long = [
    text for text, row in zip(texts, rows, strict=True) if len(row) > positions
  ]
  if too_long:
    raise InputError(
      f"{counted(len(too_long), 'prompt is', 'prompts are')} longer than the "
      f"text tower's {positions} tokens; the first is {too_long[0]!r}. "
      "Shorten the class name or the template."
    )


class Frame(NamedTuple):
  """What a text tower wants around a prompt.

  Attributes:
    start, end: the ids of the tokens before and after the words.
    pad: the id of the tokens behind `end`.
    positions: the longest prompt that the tower takes, in tokens.
    whole: whether every prompt is padded to `positions` tokens. If not, all are
      padded to the longest prompt's length, rounded up to a multiple of 8. That
      is exact only for a causal tower whose output is the state of a token
      before the padding.
  """

  start: list[int]
  end: list[int]
  pad: int
  positions: int
  whole: bool = False


def padded(
  rows: Sequence[Sequence[int]], frame: Frame
) -> Int[np.ndarray, "C L"]:
  """Pads rows of at most `frame.positions` token ids on the right."""
  length = frame.positions
  if not frame.whole:
    length = min(length, -(-max(map(len, rows)) // 8) * 8)
  ids = np.full((len(rows), length), frame.pad, np.int32)
  for own, row in zip(ids, rows, strict=True):
    own[: len(row)] = row
  return ids


def refuse_unknown(
  tokens: Tokens, *, vocabulary: int, end_token: int | None
) -> None:
  """Refuses prompts with token ids that do not fit the text tower.

  Args:
    tokens: the prompts.
    vocabulary: the number of rows of the tower's token table.
    end_token: the id of the token whose state is the tower's output; None if
      that token may be any, such as the one with the largest id.

  Raises:
    InputError: if a prompt has an id beyond the table, or if it lacks the end
      token. Without an end token, the tower's output would be the state of the
      start token, which is the same for all prompts.
  """
  for text, row in zip(tokens.texts, tokens.ids, strict=True):
    unknown = row[(row < 0) | (row >= vocabulary)]
    if len(unknown):
      raise InputError(
        f"the prompt {text!r} has the token id {unknown[0]}, and the text "
        f"tower has {vocabulary} tokens, counted from 0: tokenizer and weights "
        "do not belong together."
      )
    if end_token is not None and end_token not in row:
      raise InputError(
        f"the prompt {text!r} lacks the end token, id {end_token}, whose state "
        "is the text tower's output: the eos_token_id of its config and its "
        "tokenizer do not belong together."
      )


def refuse_equal(
  names: Sequence[str], embeddings: Float[np.ndarray, "C D"]
) -> None:
  """Refuses different prompts, or different classes, with equal embeddings.

  Names that differ only in case, spaces or Unicode form may have equal
  embeddings, since tokenizers drop these differences.

  Args:
    names: the prompts, or the classes.
    embeddings: the text embedding of each name, or anything computed from it
      alone, such as its similarities with some images.

  Raises:
    InputError: if two embeddings are equal; the message gives both names.
  """
  seen: dict[bytes, str] = {}
  for name, row in zip(names, embeddings, strict=True):
    other = seen.setdefault(row.tobytes(), name)
    if _folded(other) != _folded(name):
      raise InputError(
        f"{other!r} and {name!r} have the same text embedding, so they cannot "
        "be told apart: the tokenizer may not know their words, or may not "
        "belong to the weights."
      )


def _folded(text: str) -> str:
  """Returns a text without what tokenizers drop: case, spaces, Unicode form."""
  return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def refuse_alike(tokens: Tokens, classes: Sequence[str]) -> None:
  """Refuses class names that the tokenizer cannot tell apart.

  The tokenizer ignores case and may not know a script, so different names can
  have the same token ids.

  Raises:
    InputError: if two classes have the same token ids.
  """
  seen: dict[bytes, int] = {}
  for row, owner in zip(tokens.ids, tokens.owners, strict=True):
    other = seen.setdefault(row.tobytes(), owner)
    if other != owner:
      raise InputError(
        f"classes {classes[other]!r} and {classes[owner]!r} are the same to "
        "this tokenizer: rename one of them."
      )
