"""Makes class names for prompts from folder names, or reads them from a file.

A prompt needs a phrase: CLIP's accuracy on EuroSAT is 23 % with "AnnualCrop" in
the prompt and 54 % with "Annual Crop Land".
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from cpeal_jax.errors import InputError, nearest

# The places between two words: before "Crop" in "AnnualCrop", and before "Scan"
# in "CTScan".
WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def display_name(label: str) -> str:
  """Returns a folder's name as a phrase: "AnnualCrop" as "Annual Crop".

  Underscores become spaces too. A name that then has spaces is not split any
  further.
  """
  phrase = " ".join(label.replace("_", " ").split())
  return phrase if " " in phrase else WORD_STARTS.sub(" ", phrase)


def display_names(labels: Iterable[str], *, source: str = "") -> dict[str, str]:
  """Returns the phrase for each label, in the order of the labels.

  Args:
    labels: the labels, spelled as the folders are.
    source: the path of a file with display names, see `read_class_names`, or
      the empty string. Labels that the file does not name are turned into
      phrases by `display_name`.

  Raises:
    InputError: two labels have the same phrase, or the file cannot be used or
      names a label that does not exist.
  """
  labels = list(labels)
  from_file = read_class_names(source) if source else {}
  names = {label: from_file.get(label, display_name(label)) for label in labels}
  if unknown := [label for label in from_file if label not in names]:
    raise InputError(
      f"{source} names {unknown[0]!r}, which is no class here."
      f"{nearest(unknown[0], labels)} Its lines are LABEL,NAME for these "
      f"labels: {', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''}."
    )
  seen: dict[str, str] = {}
  for label, name in names.items():
    other = seen.setdefault(name.casefold(), label)
    if other != label:
      raise InputError(
        f"the classes {other!r} and {label!r} would both be called {name!r}; "
        "give them different names with dataset.class_names=FILE."
      )
  return names


def read_class_names(path: Path | str) -> dict[str, str]:
  """Reads display names by label, from `label,name` lines or from JSON.

  A text file has one class per line: either `label,name`, or only a name, which
  is then the label as well. JSON is an object from labels to names, or a list
  of names. A byte order mark and Windows line ends are accepted.

  Raises:
    InputError: the file cannot be read, is malformed, empty, or names a label
      twice.
  """
  path = Path(path)
  if os.path.exists(path) and not os.path.isfile(path):
    raise InputError(
      f"dataset.class_names={path} is not a file; give a text file"
    )
  try:
    text = path.read_bytes().decode("utf-8-sig")
  except OSError as error:
    raise InputError(
      f"dataset.class_names={path} cannot be read: {error.strerror}; give a "
      "text file with one class a line."
    ) from error
  except UnicodeDecodeError as error:
    raise InputError(
      f"dataset.class_names={path} is not UTF-8 text: {error.reason} at byte "
      f"{error.start}; save it as UTF-8."
    ) from error
  is_json = text.lstrip()[:1] in ("{", "[")
  pairs = _from_json(path, text) if is_json else _from_lines(path, text)
  names: dict[str, str] = {}
  for where, label, name in pairs:
    if not label or not name or not (label + name).isprintable():
      raise InputError(
        f"{path}, {where}: a class needs a label and a name without control "
        "characters."
      )
    if label in names:
      raise InputError(f"{path}, {where}: {label!r} is named twice.")
    names[label] = name
  if not names:
    raise InputError(f"{path} names no class; write one class a line.")
  return names


def _from_lines(path: Path, text: str) -> list[tuple[str, str, str]]:
  """The (place, label, name) of each line."""
  rows = []
  reader = csv.reader(io.StringIO(text), skipinitialspace=True)
  try:
    for number, cells in enumerate(reader):
      cells = [cell.strip() for cell in cells]
      is_header = number == 0 and cells == ["label", "name"]
      if not any(cells) or is_header:
        continue
      if len(cells) > 2:
        raise InputError(
          f"{path}, line {reader.line_num} has {len(cells)} columns; write "
          'LABEL,NAME, with "quotes" around a name that contains a comma.'
        )
      rows.append((f"line {reader.line_num}", cells[0], cells[-1]))
  except csv.Error as error:
    raise InputError(f"{path} is not a CSV table: {error}.") from error
  return rows


def _from_json(path: Path, text: str) -> list[tuple[str, str, str]]:
  """The (place, label, name) of each entry of an object or a list."""
  try:
    content = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise InputError(f"{path} is not JSON: {error}.") from error
  if isinstance(content, list):
    different = len({str(name) for name in content}) == len(content)
    content = {str(name): name for name in content} if different else None
  if not isinstance(content, Mapping) or not all(
    isinstance(name, str) for name in content.values()
  ):
    raise InputError(
      f"{path} must hold an object from labels to names, or a list of "
      "different names."
    )
  return [
    (f"entry {number}", label.strip(), name.strip())
    for number, (label, name) in enumerate(content.items(), start=1)
  ]
