"""From class names to token ids: templates, learnable tokens, padding."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from cpeal_jax.errors import InputError
from cpeal_jax.models.adapters import Prompts


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Tokenized prompts: one row per class, or several (see `owners`).

  Attributes:
    texts: the prompts as strings, with `X` for each learnable token.
    ids: token ids. All rows are padded to the longest prompt, rounded up to a
      multiple of 8 but at most the tower's limit. Features do not depend on
      padding: the tower is causal and pooled at the first end token.
    slots: for each token, the index of the learnable token that replaces it,
      or -1.
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
  """Returns a class name as it stands in a prompt: with spaces for `_`."""
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
    texts: one prompt per class.
    tokenizer: a tokenizer of transformers, which adds the start and end tokens.
    positions: the longest prompt that the text tower takes, in tokens.

  Raises:
    InputError: if prompts are longer than `positions`; it names the first.
  """
  rows = [tokenizer(text)["input_ids"] for text in texts]
  too_long = [
    text for text, row in zip(texts, rows, strict=True) if len(row) > positions
  ]
  if too_long:
    raise InputError(
      f"{len(too_long)} prompts are longer than the text tower's {positions} "
      f"tokens; the first is {too_long[0]!r}. Shorten the class name or the "
      "template."
    )
  length = min(positions, -(-max(map(len, rows)) // 8) * 8)
  end = rows[0][-1]
  ids = np.full((len(rows), length), end, np.int32)
  for padded, row in zip(ids, rows, strict=True):
    padded[: len(row)] = row
  return Tokens(tuple(texts), ids, np.full_like(ids, -1))


def tokenize_with_context(
  classes: Sequence[str], tokenizer, prompts: Prompts, *, positions: int = 77
) -> Tokens:
  """Tokenizes class names with learnable tokens around them, as in CoOp.

  `prompts.position` says where the class name stands: `end` after all
  learnable tokens, `front` before them, `middle` between their two halves.
  Each prompt ends with a period.

  Args:
    classes: class names.
    tokenizer: a tokenizer of transformers.
    prompts: the number of learnable tokens and the class name's position.
    positions: the longest prompt that the text tower takes, in tokens.

  Raises:
    InputError: if the longest prompt has more than `positions` tokens.
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
  period = tokenizer(".", add_special_tokens=False)["input_ids"]
  # A placeholder: a learnable vector replaces the embedding of this token.
  filler = tokenizer("X", add_special_tokens=False)["input_ids"][:1]
  start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
  rows = [
    [start, *filler * before, *name, *filler * after, *period, end]
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
    # Place 0 is the start token.
    slots[i, 1 : 1 + before] = np.arange(before)
    tail = 1 + before + len(name)
    slots[i, tail : tail + after] = np.arange(before, prompts.tokens)
  return Tokens(texts, ids, slots)


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
