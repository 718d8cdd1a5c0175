"""A tokenizer of some 200 words, in the files that transformers reads.

Words it knows are one token; any other is spelled, letter by letter, so a
class may have any name. What a spelled word means, only training tells.
"""

import json
import re
import string
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from cpeal_jax.quickstart import glyphs

START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"
POSITIONS = 48
# Beyond what the captions say: words that people's templates are made of.
MORE = "an in on it its my with some black white grey hand written handwritten"


def vocabulary() -> dict[str, int]:
  """Token ids; the end token is the last, as CLIP's pooling expects."""
  text = " ".join(
    [
      *glyphs.NOUNS,
      *glyphs.ADJECTIVES,
      *(template for template in glyphs.TEMPLATES),
      *(word for g in glyphs.GLYPHS for word in (*g.kinds, g.name)),
      "capital",
      MORE,
    ]
  )
  words = sorted(set(re.findall(r"[a-z]+", re.sub(r"{\w+}", " ", text))))
  letters = string.ascii_lowercase + string.digits
  marks = [mark for mark in string.punctuation]
  rest = [c for c in letters if c not in words] + marks
  inside = ["##" + c for c in letters]
  tokens = [UNKNOWN, *words, *rest, *inside, START, END]
  return {token: i for i, token in enumerate(tokens)}


def build() -> tokenizers.Tokenizer:
  """Lower case, split at spaces and marks, start and end added."""
  ids = vocabulary()
  made = tokenizers.Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN))
  made.normalizer = normalizers.BertNormalizer(lowercase=True)
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  made.post_processor = processors.TemplateProcessing(
    single=f"{START} $A {END}",
    special_tokens=[(START, ids[START]), (END, ids[END])],
  )
  made.decoder = decoders.WordPiece()
  made.add_special_tokens([UNKNOWN, START, END])
  return made


def save(directory: Path) -> None:
  """Writes tokenizer.json and tokenizer_config.json."""
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
