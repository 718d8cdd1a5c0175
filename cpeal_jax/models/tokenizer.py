"""Reads a checkpoint's tokenizer through transformers.

If the files are missing, transformers returns an empty tokenizer, which turns
all words into the same unknown word. So the files are checked before it reads
them, and the tokenizer is tried afterwards.
"""

import importlib.util
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
  "spiece.model",  # `SENTENCES`
)
# The sets of files that suffice for a vocabulary; one of them must exist.
VOCABULARIES = (
  ("tokenizer.json",),
  ("vocab.json", "merges.txt"),
  ("vocab.txt",),
  ("spiece.model",),
)
# SigLIP's first models come with this file, which transformers reads through
# these packages.
SENTENCES = "spiece.model"
SENTENCE_PACKAGES = {
  "sentencepiece": "sentencepiece",
  "google.protobuf": "protobuf",
}
# A text on which the tokenizer is tried.
PROBE = "a photo of 7 dogs, it's."
# If a larger fraction of the token ids has no word, words have been lost from
# the vocabulary, and it is refused.
MOST_UNUSED = 0.1


def has_tokenizer(directory: Path) -> bool:
  """Tells whether the files of a tokenizer are in a directory."""
  return any(
    all(_is_there(directory / name) for name in files) for files in VOCABULARIES
  )


# The classes of transformers are in quotes, since to import one of them takes
# two seconds.
def read_tokenizer(
  directory: Path, config: "transformers.PretrainedConfig"
) -> "transformers.PreTrainedTokenizerBase":
  """Reads a checkpoint's tokenizer.

  Args:
    directory: the directory with the checkpoint's files.
    config: a config of transformers for the model's type. Where the files name
      no class of tokenizer, transformers takes that of the type.

  Raises:
    InputError: if there are no files, if one of them is unreadable or
      malformed, if the vocabulary is empty or lacks many token ids, or if
      transformers reads the files as a tokenizer of another class.
  """
  names = [name for name in TOKENIZER_FILES if _is_there(directory / name)]
  if not has_tokenizer(directory):
    choices = ", or ".join(" and ".join(files) for files in VOCABULARIES)
    raise InputError(
      f"{directory} has no tokenizer: it needs {choices}. Copy the files from "
      "where the weights are from, or give their directory: "
      "--config.model.tokenizer=DIR."
    )
  if SENTENCES in names:
    _refuse_without_sentencepiece(directory / SENTENCES)
  contents = {name: read_bytes(directory / name) for name in names}
  for name in names:
    if name.endswith(".json"):
      read_object(directory / name)
  # Without `config`, transformers would read config.json again, and would
  # report problems with its other fields as problems of the tokenizer. It needs
  # only the tokenizer's class.
  if _is_there(directory / "config.json"):
    raw = read_object(directory / "config.json")
    if isinstance(raw.get("tokenizer_class"), str):
      config.tokenizer_class = raw["tokenizer_class"]

  def refusal(why: str) -> str:
    return (
      f"{directory} has no usable tokenizer: {why}. Its files are "
      f"{', '.join(names)}."
    )

  with explained(refusal):
    if any(data.startswith(BYTE_ORDER_MARK) for data in contents.values()):
      # transformers does not accept byte order marks, so it reads copies of the
      # files without them.
      with tempfile.TemporaryDirectory() as copies:
        for name, data in contents.items():
          (Path(copies) / name).write_bytes(without_mark(data))
        tokenizer = _from_files(copies, config)
    else:
      tokenizer = _from_files(str(directory), config)
    vocabulary = tokenizer.get_vocab()
    words = set(vocabulary) - set(tokenizer.all_special_tokens)
    tokenizer(PROBE)
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    ids_by_file = ids
    # A tokenizer in Python reads spiece.model, and no tokenizer.json beside it.
    if "tokenizer.json" in contents and tokenizer.is_fast:
      data = without_mark(contents["tokenizer.json"])
      by_file = tokenizers.Tokenizer.from_str(data.decode())
      ids_by_file = by_file.encode(PROBE, add_special_tokens=False).ids
  if not words:
    raise InputError(refusal("its vocabulary is empty"))
  unused = max(vocabulary.values()) + 1 - len(set(vocabulary.values()))
  if unused > len(vocabulary) * MOST_UNUSED:
    raise InputError(
      refusal(f"{unused} of its token ids have no word, so it is not whole")
    )
  if ids != ids_by_file:
    raise InputError(
      refusal(
        f"transformers reads it as a {type(tokenizer).__name__}, which gives "
        "other tokens than tokenizer.json says; tokenizer_config.json must "
        "name the right class"
      )
    )
  return tokenizer


def _refuse_without_sentencepiece(path: Path) -> None:
  absent = [
    package
    for module, package in SENTENCE_PACKAGES.items()
    if not _is_installed(module)
  ]
  if absent:
    raise InputError(
      f"{path} is a sentencepiece model, and transformers cannot read it "
      f"without {' and '.join(absent)}: pip install 'cpeal_jax[siglip]'."
    )


def _is_installed(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # The package that would contain it is absent.
    return False


def _from_files(
  directory: str, config: "transformers.PretrainedConfig"
) -> "transformers.PreTrainedTokenizerBase":
  # Without trust_remote_code=False, transformers would ask on the terminal
  # whether to run code that comes with a tokenizer.
  return transformers.AutoTokenizer.from_pretrained(
    directory, config=config, trust_remote_code=False, local_files_only=True
  )


def _is_there(path: Path) -> bool:
  """Tells whether `path` exists, even as a broken link or a named pipe."""
  return path.is_symlink() or path.exists()
