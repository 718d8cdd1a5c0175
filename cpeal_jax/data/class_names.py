"""Makes class names for prompts from folder names, or reads them from a file.

A prompt needs a phrase: CLIP's accuracy on EuroSAT is 23 % with "AnnualCrop" in
the prompt and 54 % with "Annual Crop Land".
"""

import collections
import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
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
  matched = match(labels, from_file)
  names = {
    label: from_file[matched[label]]
    if label in matched
    else display_name(label)
    for label in labels
  }
  used = set(matched.values())
  if unknown := [label for label in from_file if label not in used]:
    raise InputError(
      f"{source} names {unknown[0]!r}, which is no class here."
      f"{nearest(unknown[0], labels)} Its lines are LABEL,NAME for these "
      f"labels: {_listed(labels)}."
    )
  _refuse_equal_names(names)
  return names


def every_class(
  labels: Iterable[str],
  *,
  source: str = "",
  where: Callable[[str], str] = "the label {!r}".format,
) -> dict[str, str]:
  """Returns the name of every class of data that need not be labeled.

  With a file, the file names all classes, and each label must be one of them.
  Without one, the labels are the classes, in alphabetical order.

  Args:
    labels: the labels that images have, in any order; there may be none.
    source: the path of a file with all class names, see `read_class_names`, or
      the empty string.
    where: says for a message which label is meant and where it stands.

  Returns:
    The class name of each label. The order of the names is that of the classes.
    A class that no image has is there too, under its label in the file.

  Raises:
    InputError: there is neither a label nor a file, a label is not in the file,
      or two classes have the same name.
  """
  labels = sorted(set(labels))
  if not source and not labels:
    raise InputError(
      "no image has a label, and dataset.class_names is not set: write the "
      "names of the classes into a text file, one a line, and give it with "
      "--config.dataset.class_names=FILE."
    )
  if not source:
    return display_names(labels)
  from_file = read_class_names(source, has_labels=bool(labels))
  _refuse_equal_names(from_file)
  matched = match(labels, from_file)
  for label in labels:
    if label not in matched:
      known = [*from_file, *from_file.values()]
      raise InputError(
        f"{where(label)} is not among the class names in {source}."
        f"{nearest(label, known)} They are: {_listed([*from_file.values()])}."
      )
  spelled: dict[str, list[str]] = {label: [] for label in from_file}
  for label, key in matched.items():
    spelled[key].append(label)
  return {
    label: from_file[key]
    for key, found in spelled.items()
    for label in found or [key]
  }


def match(labels: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
  """Returns for each label the key of the class that it means.

  A label means a class if it is the class's key, or if it is spelled like the
  key or the name apart from letter case and from how words are joined. Labels
  that mean no class, or that could mean several, are left out.

  Args:
    labels: labels of images, or names of folders.
    names: class names by key, as `read_class_names` returns them.
  """
  keys: dict[str, set[str]] = {}
  for key, name in names.items():
    for form in (key, name, display_name(key)):
      keys.setdefault(form.casefold(), set()).add(key)
  matched = {}
  for label in labels:
    meant = keys.get(label.casefold()) or keys.get(
      display_name(label).casefold(), set()
    )
    if label in names:
      matched[label] = label
    elif len(meant) == 1:
      matched[label] = min(meant)
  return matched


def _refuse_equal_names(names: Mapping[str, str]) -> None:
  """Refuses names that differ only in letter case; `names` is by label."""
  seen: dict[str, str] = {}
  for label, name in names.items():
    other = seen.setdefault(name.casefold(), label)
    if other != label:
      raise InputError(
        f"the classes {other!r} and {label!r} would both be called {name!r}; "
        "give them different names with dataset.class_names=FILE."
      )


def _listed(words: list[str]) -> str:
  """The first five words, and dots where there are more."""
  return ", ".join(words[:5]) + (", ..." if len(words) > 5 else "")


def read_class_names(
  path: Path | str, *, has_labels: bool = True
) -> dict[str, str]:
  """Reads display names by label, from `label,name` lines or from JSON.

  A text file has one class per line: either `label,name`, or only a name, which
  is then the label as well. JSON is an object from labels to names, or a list
  of names. A byte order mark and Windows line ends are accepted.

  Args:
    path: of the file.
    has_labels: whether any image has a label. Without labels, a line `a, b` is
      as likely a name with a comma, or two classes, as it is `label,name`, so
      it is refused unless the first line is `label,name`.

  Raises:
    InputError: the file cannot be read, is malformed, empty, or names a label
      twice, or its commas could mean several things.
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
  pairs = (
    _from_json(path, text)
    if is_json
    else _from_lines(path, text, has_labels=has_labels)
  )
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


def _from_lines(
  path: Path, text: str, *, has_labels: bool
) -> list[tuple[str, str, str]]:
  """The (place, label, name) of each line."""
  rows = []
  may_have_labels = has_labels
  reader = csv.reader(io.StringIO(text), skipinitialspace=True)
  try:
    for number, cells in enumerate(reader):
      cells = [cell.strip() for cell in cells]
      is_header = number == 0 and cells == ["label", "name"]
      may_have_labels |= is_header
      if not any(cells) or is_header:
        continue
      if len(cells) > 2:
        raise InputError(
          f"{path}, line {reader.line_num} has {len(cells)} columns; write "
          'LABEL,NAME, with "quotes" around a name that contains a comma.'
        )
      if len(cells) == 2 and not may_have_labels:
        label, name = cells
        raise InputError(
          f"{path}, line {reader.line_num} would be read as the label "
          f"{label!r} with the name {name!r}, but no image has a label. Write "
          "one name a line, and a name with a comma in quotes, as in "
          f'"{label}, {name}"; or put label,name into the first line if it is '
          "meant so."
        )
      rows.append((f"line {reader.line_num}", cells[0], cells[-1]))
  except csv.Error as error:
    raise InputError(f"{path} is not a CSV table: {error}.") from error
  return rows


def _from_json(path: Path, text: str) -> list[tuple[str, str, str]]:
  """The (place, label, name) of each entry of an object or a list."""
  twice: list[str] = []

  def as_dict(pairs: list[tuple[str, object]]) -> dict[str, object]:
    counts = collections.Counter(key for key, _ in pairs)
    twice.extend(key for key, count in counts.items() if count > 1)
    return dict(pairs)

  try:
    # Without the hook, the last of two equal keys would win.
    content = json.loads(text, object_pairs_hook=as_dict)
  except (ValueError, RecursionError) as error:
    raise InputError(f"{path} is not JSON: {error}.") from error
  if isinstance(content, list):
    counts = collections.Counter(map(str, content))
    twice += [name for name, count in counts.items() if count > 1]
    content = {str(name): name for name in content}
  named_twice = f"{twice[0]!r} is named twice, and it" if twice else "it"
  fits = isinstance(content, Mapping) and all(
    isinstance(name, str) for name in content.values()
  )
  if twice or not fits:
    raise InputError(
      f"{path}: {named_twice} must hold an object from labels to names, or a "
      "list of different names."
    )
  return [
    (f"entry {number}", label.strip(), name.strip())
    for number, (label, name) in enumerate(content.items(), start=1)
  ]
