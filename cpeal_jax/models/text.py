"""Class names to token ids: templates, learnable slots, truncation."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from cpeal_jax.errors import InputError
from cpeal_jax.models.adapters import Prompts


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Tokenised prompts, one row a class (or P rows, see `owners`).

  Attributes:
    texts: the exact strings, `X` standing for a learnable token.
    ids: token ids, cut to the longest prompt, rounded up to a multiple of 8.
      Exact: the tower is causal and pooled at the first end token.
    slots: index of the learnable token at this place, -1 where there is none.
    owners: the class of each row; by default each row is a class.
  """

  texts: tuple[str, ...]
  ids: Int[np.ndarray, "C L"]
  slots: Int[np.ndarray, "C L"]
  owners: tuple[int, ...] = ()

  def __post_init__(self):
    if not self.owners:
      object.__setattr__(self, "owners", tuple(range(len(self.texts))))


def readable(name: str) -> str:
  """A class name as CLIP should read it: `_` is a space."""
  return name.replace("_", " ").strip()


def from_template(classes: Sequence[str], template: str) -> tuple[str, ...]:
  """`"a photo of a {}."` filled with each class name."""
  if "{}" not in template:
    raise InputError(f"model.template {template!r} has no {{}} for the class.")
  return tuple(template.replace("{}", readable(name)) for name in classes)


def tokenize(texts: Sequence[str], tokenizer, *, positions: int = 77) -> Tokens:
  """Fixed texts, no learnable tokens.

  Args:
    texts: one prompt per class.
    tokenizer: transformers' tokenizer, which adds start and end.
    positions: the text tower's limit.

  Raises:
    InputError: naming the prompts that are longer than `positions`.
  """
  rows = [tokenizer(text)["input_ids"] for text in texts]
  long = [
    text for text, row in zip(texts, rows, strict=True) if len(row) > positions
  ]
  if long:
    raise InputError(
      f"{len(long)} prompts are longer than the text tower's {positions} "
      f"tokens, the first: {long[0]!r}. Shorten the class name or template."
    )
  length = min(positions, -(-max(map(len, rows)) // 8) * 8)
  end = rows[0][-1]
  ids = np.full((len(rows), length), end, np.int32)
  for row, own in zip(ids, rows, strict=True):
    row[: len(own)] = own
  return Tokens(tuple(texts), ids, np.full_like(ids, -1))


def tokenize_with_context(
  classes: Sequence[str], tokenizer, prompts: Prompts, *, positions: int = 77
) -> Tokens:
  """Learnable tokens laid out around the class name, as CoOp does.

  `end`: context, name; `front`: name, context; `middle`: half, name, half.
  A full stop closes each prompt.
  """
  before = {
    "end": prompts.tokens,
    "middle": prompts.tokens // 2,
    "front": 0,
  }[prompts.position]
  after = prompts.tokens - before
  texts = tuple(
    " ".join([*["X"] * before, readable(name), *["X"] * after]) + "."
    for name in classes
  )
  names = [
    tokenizer(readable(name), add_special_tokens=False)["input_ids"]
    for name in classes
  ]
  stop = tokenizer(".", add_special_tokens=False)["input_ids"]
  filler = tokenizer("X", add_special_tokens=False)["input_ids"][:1]
  start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
  rows = [
    [start, *filler * before, *name, *filler * after, *stop, end]
    for name in names
  ]
  longest = max(map(len, rows))
  if longest > positions:
    raise InputError(
      f"class {classes[[len(r) for r in rows].index(longest)]!r} with "
      f"{prompts.tokens} learnable tokens needs {longest} of {positions} "
      "positions: lower adapter.prompts.tokens."
    )
  length = min(positions, -(-longest // 8) * 8)
  ids = np.full((len(rows), length), end, np.int32)
  slots = np.full_like(ids, -1)
  for i, (row, name) in enumerate(zip(rows, names, strict=True)):
    ids[i, : len(row)] = row
    slots[i, 1 : 1 + before] = np.arange(before)
    tail = 1 + before + len(name)
    slots[i, tail : tail + after] = np.arange(before, prompts.tokens)
  return Tokens(texts, ids, slots)


def refuse_alike(tokens: Tokens, classes: Sequence[str]) -> None:
  """Raises InputError if two classes have one and the same prompt.

  The tokenizer folds case and may not know a script, so names that differ on
  the page need not differ in tokens.
  """
  seen: dict[bytes, int] = {}
  for row, owner in zip(tokens.ids, tokens.owners, strict=True):
    other = seen.setdefault(row.tobytes(), owner)
    if other != owner:
      raise InputError(
        f"classes {classes[other]!r} and {classes[owner]!r} are the same to "
        "this tokenizer: rename one."
      )
