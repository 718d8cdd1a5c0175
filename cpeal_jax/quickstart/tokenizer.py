"""Builds a tokenizer of 177 tokens and saves it in files for transformers.

A word of the vocabulary is one token. Any other word is spelled letter by
letter, so a class may have any name. The pretrained CLIP does not know what a
spelled word means; it can only learn that in training.
"""

import json
import re
import string
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from cpeal_jax.quickstart import glyphs

START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"
POSITIONS = 48  # the length of the longest text, in tokens
# Words that users' prompt templates are likely to have, but captions do not.
TEMPLATE_WORDS = (
  "an in on it its my with some black white grey hand written handwritten"
)


def vocabulary() -> dict[str, int]:
  """Returns the id of each token.

  The end token has the highest id, as CLIP's pooling expects.
  """
  text = " ".join(
    [
      *glyphs.NOUNS,
      *glyphs.ADJECTIVES,
      *(template for template in glyphs.TEMPLATES),
      *(word for g in glyphs.GLYPHS for word in (*g.kinds, g.name)),
      "capital",
      TEMPLATE_WORDS,
    ]
  )
  words = sorted(set(re.findall(r"[a-z]+", re.sub(r"{\w+}", " ", text))))
  letters = string.ascii_lowercase + string.digits
  marks = [mark for mark in string.punctuation]
  single = [c for c in letters if c not in words] + marks
  # In WordPiece, a token that continues a word begins with "##".
  continuing = ["##" + c for c in letters]
  tokens = [UNKNOWN, *words, *single, *continuing, START, END]
  return {token: i for i, token in enumerate(tokens)}


def build() -> tokenizers.Tokenizer:
  """Builds the tokenizer.

  It lowercases a text, splits it at spaces and punctuation, and adds the start
  and end tokens.
  """
  ids = vocabulary()
  tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN))
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.post_processor = processors.TemplateProcessing(
    single=f"{START} $A {END}",
    special_tokens=[(START, ids[START]), (END, ids[END])],
  )
  tokenizer.decoder = decoders.WordPiece()
  tokenizer.add_special_tokens([UNKNOWN, START, END])
  return tokenizer


def save(directory: Path) -> None:
  """Writes tokenizer.json and tokenizer_config.json into `directory`."""
  build().save(str(directory / "tokenizer.json"))
  settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": START,
    "eos_token": END,
    "pad_token": END,
    "unk_token": UNKNOWN,
    "model_max_length": POSITIONS,
  }
  text = json.dumps(settings, indent=2) + "\n"
  (directory / "tokenizer_config.json").write_text(text)
