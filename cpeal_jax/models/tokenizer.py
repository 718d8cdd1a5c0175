"""Reads a checkpoint's tokenizer through transformers.

transformers makes up an empty tokenizer where there are no files, to which all
words are one unknown word. So the files are checked before and the tokenizer is
tried after.
"""

import tempfile
from pathlib import Path

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


def read_tokenizer(directory: Path) -> transformers.PreTrainedTokenizerBase:
  """Reads the tokenizer of a CLIP.

  Args:
    directory: the directory with the checkpoint's files.

  Raises:
    InputError: if there are no files, if one of them is unreadable or
      malformed, or if the vocabulary is empty.
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
    special = set(tokenizer.all_special_tokens)
    words = set(tokenizer.get_vocab()) - special
    ids = tokenizer("a photo")["input_ids"]
    tokenizer("a photo", add_special_tokens=False)
  if not words:
    raise InputError(refusal("its vocabulary is empty"))
  if not all(type(number) is int for number in ids):
    raise InputError(refusal("it gives no token ids"))
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
