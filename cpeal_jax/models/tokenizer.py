"""Reads a checkpoint's tokenizer through transformers.

transformers makes up an empty tokenizer where there are no files, to which all
words are one unknown word. So the files are checked before and the tokenizer is
tried after.
"""

import tempfile
from pathlib import Path

import tokenizers
import transformers

from cpeal_jax.data.reading import (
  BYTE_ORDER_MARK,
  explained,
  read_bytes,
  read_object,
  without_mark,
)
from cpeal_jax.errors import InputError

TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "vocab.json",
  "merges.txt",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.txt",
)
# Each holds a vocabulary by itself.
VOCABULARIES = (
  ("tokenizer.json",),
  ("vocab.json", "merges.txt"),
  ("vocab.txt",),
)
# A text on which the tokenizer is tried, and the share of token ids without a
# word above which words were lost.
PROBE = "a photo of 7 dogs, it's."
MOST_UNUSED = 0.1


def read_tokenizer(directory: Path) -> transformers.PreTrainedTokenizerBase:
  """Reads the tokenizer of a CLIP.

  Args:
    directory: the directory with the checkpoint's files.

  Raises:
    InputError: if there are no files, if one of them is unreadable or
      malformed, if the vocabulary is empty or has holes, or if transformers
      takes it for a tokenizer of another class.
  """
  names = [name for name in TOKENIZER_FILES if _is_there(directory / name)]
  if not any(set(names).issuperset(files) for files in VOCABULARIES):
    choices = ", or ".join(" and ".join(files) for files in VOCABULARIES)
    raise InputError(
      f"{directory} has no tokenizer: it needs {choices}. Copy the files from "
      "where the weights are from."
    )
  contents = {name: read_bytes(directory / name) for name in names}
  for name in names:
    if name.endswith(".json"):
      read_object(directory / name)
  if _is_there(directory / "config.json"):  # It may name the tokenizer's class.
    contents["config.json"] = read_bytes(directory / "config.json")

  def refusal(why: str) -> str:
    return (
      f"{directory} has no usable tokenizer: {why}. Its files are "
      f"{', '.join(names)}."
    )

  with explained(refusal):
    if any(data.startswith(BYTE_ORDER_MARK) for data in contents.values()):
      # transformers refuses the mark, so it reads copies without it.
      with tempfile.TemporaryDirectory() as copies:
        for name, data in contents.items():
          (Path(copies) / name).write_bytes(without_mark(data))
        tokenizer = _from_files(copies)
    else:
      tokenizer = _from_files(str(directory))
    vocabulary = tokenizer.get_vocab()
    words = set(vocabulary) - set(tokenizer.all_special_tokens)
    tokenizer(PROBE)
    got = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    own = got
    if "tokenizer.json" in contents:
      data = without_mark(contents["tokenizer.json"])
      whole = tokenizers.Tokenizer.from_str(data.decode())
      own = whole.encode(PROBE, add_special_tokens=False).ids
  if not words:
    raise InputError(refusal("its vocabulary is empty"))
  unused = max(vocabulary.values()) + 1 - len(set(vocabulary.values()))
  if unused > len(vocabulary) * MOST_UNUSED:
    raise InputError(
      refusal(f"{unused} of its token ids have no word, so it is not whole")
    )
  if got != own:
    raise InputError(
      refusal(
        f"transformers reads it as a {type(tokenizer).__name__}, which gives "
        "other tokens than tokenizer.json says; tokenizer_config.json must "
        "name its class"
      )
    )
  return tokenizer


def _from_files(directory: str) -> transformers.PreTrainedTokenizerBase:
  # A tokenizer that is code of its own would be run, after a question on the
  # terminal, if this were not forbidden.
  return transformers.AutoTokenizer.from_pretrained(
    directory, trust_remote_code=False, local_files_only=True
  )


def _is_there(path: Path) -> bool:
  """Whether there is anything, also a link to nothing or a named pipe."""
  return path.is_symlink() or path.exists()
