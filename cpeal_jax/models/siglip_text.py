"""Makes token ids of prompts for SigLIP, in the form that it was trained with.

The text tower has no mask and returns the state of the last token, so its
output depends on what stands behind a text. Every prompt is therefore padded on
the right to the length of training, which is 64 tokens in all published models,
and all of that length is computed. CLIP's prompts are cut after the longest one
instead; that is exact for CLIP's causal tower, and would not be here.

Texts are in lower case, as in training. SigLIP's own tokenizer makes them so;
that of SigLIP 2, which is Gemma's, does not in all versions of transformers.
"""

from collections.abc import Sequence

import numpy as np

from cpeal_jax.errors import InputError
from cpeal_jax.models import text, text_context
from cpeal_jax.models.text import Frame, Tokens
from cpeal_jax.models.text_context import Context


def frame_of(tokenizer, *, positions: int) -> Frame:
  """Returns what stands around and behind a prompt, as the tokenizer says.

  Args:
    tokenizer: a tokenizer of transformers.
    positions: the length that prompts are padded to, in tokens.

  Raises:
    InputError: if the tokenizer names no padding token.
  """
  pad = tokenizer.pad_token_id
  if pad is None:
    raise InputError(
      "the tokenizer names no padding token, but SigLIP's prompts are padded "
      f"to {positions} tokens: set pad_token in tokenizer_config.json."
    )
  # A tokenizer may add tokens before a text, after it, or both.
  whole = tokenizer("a")["input_ids"]
  words = tokenizer("a", add_special_tokens=False)["input_ids"]
  before = next(
    (
      i
      for i in range(len(whole) - len(words) + 1)
      if whole[i : i + len(words)] == words
    ),
    0,
  )
  after = whole[before + len(words) :]
  return Frame(whole[:before], after, pad, positions, whole=True)


def tokenize(texts: Sequence[str], tokenizer, *, positions: int = 64) -> Tokens:
  """Tokenizes fixed prompts, which have no learnable tokens.

  Args:
    texts: the prompts; those of the result are in lower case.
    tokenizer: a tokenizer of transformers, which adds the end token.
    positions: the length that prompts are padded to, in tokens.

  Raises:
    InputError: if prompts are longer than `positions`, or if the tokenizer
      names no padding token.
  """
  frame = frame_of(tokenizer, positions=positions)
  texts = tuple(line.lower() for line in texts)
  rows = [tokenizer(line)["input_ids"] for line in texts]
  text.refuse_long(texts, rows, positions=positions)
  ids = text.padded(rows, frame)
  return Tokens(texts, ids, np.full_like(ids, -1))


def tokenize_with_context(
  classes: Sequence[str],
  tokenizer,
  context: Context,
  *,
  positions: int = 64,
  joint_period: bool = False,
) -> Tokens:
  """Tokenizes class names with learnable tokens around them, as in CoOp.

  Args:
    classes, tokenizer, context, joint_period: as for CLIP, see
      `text_context.tokenize_with_context`. Names are put into lower case.
    positions: the length that prompts are padded to, in tokens.

  Raises:
    InputError: if the longest prompt has more than `positions` tokens, or if
      the tokenizer names no padding token.
  """
  return text_context.framed(
    tuple(name.lower() for name in classes),
    tokenizer,
    context,
    frame=frame_of(tokenizer, positions=positions),
    joint_period=joint_period,
  )
