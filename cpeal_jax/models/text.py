"""Makes prompts of class names, and token ids of prompts."""

import dataclasses
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cpeal_jax.errors import InputError, counted
from cpeal_jax.models.adapters import Prompts


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Tokenized prompts. A class has one row, or several (see `owners`).

  In the shapes, C is the number of rows and L the number of tokens of a row.

  Attributes:
    texts: the prompts as strings, with `X` for each learnable token.
    ids: token ids. All rows are padded with end tokens to the length of the
      longest prompt, rounded up to a multiple of 8 but at most the tower's
      limit. Features do not depend on the padding, since the tower is causal
      and its output is the state of a token before the padding.
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
  too_long = [
    text for text, row in zip(texts, rows, strict=True) if len(row) > positions
  ]
  if too_long:
    raise InputError(
      f"{counted(len(too_long), 'prompt is', 'prompts are')} longer than the "
      f"text tower's {positions} tokens; the first is {too_long[0]!r}. "
      "Shorten the class name or the template."
    )
  length = min(positions, -(-max(map(len, rows)) // 8) * 8)
  ids = np.full((len(rows), length), end, np.int32)
  for padded, row in zip(ids, rows, strict=True):
    padded[: len(row)] = row
  return Tokens(tuple(texts), ids, np.full_like(ids, -1))


class Context(NamedTuple):
  """The tokens around a class name that learnable vectors replace.

  Attributes:
    before, after: the ids of the tokens on both sides of the name.
    period: whether a prompt ends with a period, which is not learnable.
  """

  before: list[int]
  after: list[int]
  period: bool = True


def context_of(prompts: Prompts, template: str, tokenizer) -> Context:
  """Returns the learnable tokens of a prompt.

  If `prompts.initial` is `template`, they are the words of the template. If
  not, they are placeholders: the class name stands after all of them if
  `prompts.position` is `end`, before them if it is `front`, and between their
  two halves if it is `middle`.

  Args:
    prompts: the number of learnable tokens and the class name's position.
    template: the zero-shot prompt; `{}` stands for the class name.
    tokenizer: a tokenizer of transformers.

  Raises:
    InputError: the words of the template are wanted and it has none.
  """
  if prompts.initial == "template":
    before, _, after = template.partition("{}")
    period = after.endswith(".")
    sides = (before, after.removesuffix("."))
    first, second = (
      tokenizer(side, add_special_tokens=False)["input_ids"] for side in sides
    )
    if not first and not second:
      raise InputError(
        "adapter.prompts.initial=template, but model.template="
        f"{template!r} has no word around the class name: use initial=random."
      )
    return Context(first, second, period)
  # A placeholder: a learnable vector replaces the embedding of this token.
  filler = tokenizer("X", add_special_tokens=False)["input_ids"][:1]
  shares = {"end": 1.0, "middle": 0.5, "front": 0.0}
  count = int(prompts.tokens * shares[prompts.position])
  return Context(filler * count, filler * (prompts.tokens - count))


def tokenize_with_context(
  classes: Sequence[str],
  tokenizer,
  context: Context,
  *,
  positions: int = 77,
  joint_period: bool = False,
) -> Tokens:
  """Tokenizes class names with learnable tokens around them, as in CoOp.

  Args:
    classes: class names.
    tokenizer: a tokenizer of transformers.
    context: the result of `context_of`.
    positions: the longest prompt that the text tower takes, in tokens.
    joint_period: whether a name and the period are tokenized together, as in
      CoOp's code. It matters for names that end in punctuation, which may form
      one token with the period.

  Raises:
    InputError: if the longest prompt has more than `positions` tokens, or if
      the tokenizer has no start or end token.
  """
  before, after = len(context.before), len(context.after)
  stop = "." if context.period else ""
  texts = tuple(
    " ".join([*["X"] * before, readable(name), *["X"] * after]) + stop
    for name in classes
  )
  names = [
    tokenizer(readable(name), add_special_tokens=False)["input_ids"]
    for name in classes
  ]
  period = tokenizer(stop, add_special_tokens=False)["input_ids"]
  start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
  if start is None or end is None:
    raise InputError(
      "the tokenizer names no start or end token, but learnable tokens must "
      "stand between them: set bos_token and eos_token in "
      "tokenizer_config.json."
    )
  endings = [period] * len(names)
  if joint_period and context.period:
    name_periods = [
      tokenizer(f"{readable(name)}.", add_special_tokens=False)["input_ids"]
      for name in classes
    ]
    endings = [
      both[len(name) :] for both, name in zip(name_periods, names, strict=True)
    ]
    names = [
      both[: len(name)] for both, name in zip(name_periods, names, strict=True)
    ]
  rows = [
    [start, *context.before, *name, *context.after, *ending, end]
    for name, ending in zip(names, endings, strict=True)
  ]
  longest = max(map(len, rows))
  if longest > positions:
    raise InputError(
      f"class {classes[[len(r) for r in rows].index(longest)]!r} with "
      f"{before + after} learnable tokens needs {longest} of {positions} "
      "positions: lower adapter.prompts.tokens."
    )
  length = min(positions, -(-longest // 8) * 8)
  ids = np.full((len(rows), length), end, np.int32)
  slots = np.full_like(ids, -1)
  for i, (row, name) in enumerate(zip(rows, names, strict=True)):
    ids[i, : len(row)] = row
    # Place 0 is the start token.
    slots[i, 1 : 1 + before] = np.arange(before)
    tail = 1 + before + len(name)
    slots[i, tail : tail + after] = np.arange(before, before + after)
  return Tokens(texts, ids, slots)


def refuse_unknown(
  tokens: Tokens, *, vocabulary: int, end_token: int | None
) -> None:
  """Refuses prompts with token ids that do not fit the text tower.

  Args:
    tokens: the prompts.
    vocabulary: the number of rows of the tower's token table.
    end_token: the id of the token whose state is the tower's output; None if
      that is the token with the largest id.

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
