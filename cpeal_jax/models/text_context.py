"""Makes token ids of prompts with learnable tokens around the class name."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cpeal_jax.errors import InputError
from cpeal_jax.models.adapters import Prompts
from cpeal_jax.models.text import Frame, Tokens, padded, readable

# A word that is a token of its own in every tokenizer.
WORD = "X"


def _ids(text: str, tokenizer, *, after_word: bool = False) -> list[int]:
  """Returns the token ids of a text without those of start and end.

  Args:
    text: the text.
    tokenizer: a tokenizer of transformers.
    after_word: whether a word stands before the text. Some tokenizers make a
      space between them a part of the text's first token, and some add a space
      to a text that begins with none.
  """

  def ids(text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]

  if not after_word or not text:
    return ids(text)
  word, both = ids(WORD), ids(WORD + text)
  # If word and text have become one token, the text is on its own.
  return both[len(word) :] if both[: len(word)] == word else ids(text)


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
    first = _ids(before.strip(), tokenizer)
    second = _ids(after.removesuffix(".").rstrip(), tokenizer, after_word=True)
    if not first and not second:
      raise InputError(
        "adapter.prompts.initial=template, but model.template="
        f"{template!r} has no word around the class name: use initial=random."
      )
    return Context(first, second, period)
  # A placeholder: a learnable vector replaces the embedding of this token.
  filler = _ids(WORD, tokenizer)[:1]
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
  start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
  if start is None or end is None:
    raise InputError(
      "the tokenizer names no start or end token, but learnable tokens must "
      "stand between them: set bos_token and eos_token in "
      "tokenizer_config.json."
    )
  frame = Frame([start], [end], end, positions)
  return framed(
    classes, tokenizer, context, frame=frame, joint_period=joint_period
  )


def framed(
  classes: Sequence[str],
  tokenizer,
  context: Context,
  *,
  frame: Frame,
  joint_period: bool = False,
) -> Tokens:
  """Tokenizes class names with learnable tokens, for any text tower.

  Args:
    classes, tokenizer, context, joint_period: as in `tokenize_with_context`.
    frame: what the text tower wants around a prompt.

  Raises:
    InputError: if the longest prompt has more than `frame.positions` tokens.
  """
  before, after = len(context.before), len(context.after)
  stop = "." if context.period else ""
  texts = tuple(
    " ".join([*["X"] * before, readable(name), *["X"] * after]) + stop
    for name in classes
  )

  def named(name: str) -> list[int]:
    space = " " if before else ""
    return _ids(space + name, tokenizer, after_word=before > 0)

  names = [named(readable(name)) for name in classes]
  period = _ids(stop, tokenizer)
  endings = [period] * len(names)
  if joint_period and context.period:
    name_periods = [named(f"{readable(name)}.") for name in classes]
    endings = [
      both[len(name) :] for both, name in zip(name_periods, names, strict=True)
    ]
    names = [
      both[: len(name)] for both, name in zip(name_periods, names, strict=True)
    ]
  rows = [
    [
      *frame.start,
      *context.before,
      *name,
      *context.after,
      *ending,
      *frame.end,
    ]
    for name, ending in zip(names, endings, strict=True)
  ]
  longest = max(map(len, rows))
  if longest > frame.positions:
    raise InputError(
      f"class {classes[[len(r) for r in rows].index(longest)]!r} with "
      f"{before + after} learnable tokens needs {longest} of "
      f"{frame.positions} positions: lower adapter.prompts.tokens."
    )
  ids = padded(rows, frame)
  slots = np.full_like(ids, -1)
  head = len(frame.start)
  for own, name in zip(slots, names, strict=True):
    own[head : head + before] = np.arange(before)
    tail = head + before + len(name)
    own[tail : tail + after] = np.arange(before, before + after)
  return Tokens(texts, ids, slots)
