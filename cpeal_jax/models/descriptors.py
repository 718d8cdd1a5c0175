"""Descriptor augmentation: several prompts per class, one for each trait.

For example, "river, which has winding water." and "river, which is a band of
blue." are two prompts of the class "river". `TextClassifier.class_embeddings`
averages over the prompts of a class. These are the options AS (average
similarity) and AE (average embedding) of PCB (Bang et al. 2024, arXiv
2311.11178).
"""

import collections
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cpeal_jax.data.reading import read_json, shown
from cpeal_jax.errors import InputError, nearest
from cpeal_jax.models.text import readable

# How a trait follows the class name: as a grammatical relative clause, or
# always after the words "which is/has", as in PCB's released code.
WORDINGS = ("grammatical", "faithful")
# A trait that begins with one of these words has a verb already.
VERBS = ("is", "are", "has", "have", "can", "may", "often", "usually", "which")
ARTICLES = ("a", "an", "the")


def read_descriptors(path: Path | str) -> dict[str, list[str]]:
  """Reads the traits of each class from a JSON file.

  Returns:
    `{"class name": ["a trait", ...], ...}`, as in the file.

  Raises:
    InputError: if the file is missing, is not JSON or has another form.
  """
  descriptors = read_json(path, "descriptors")
  form = f'{path} is not of the form {{"class name": ["a trait", ...], ...}}'
  if not isinstance(descriptors, dict):
    raise InputError(f"{form}: it holds {shown(descriptors)}.")
  for name, traits in descriptors.items():
    if not isinstance(traits, list):
      raise InputError(f"{form}: {name!r} has {shown(traits)}.")
    for trait in traits:
      if not isinstance(trait, str) or not trait.strip():
        raise InputError(f"{form}: {name!r} has the trait {shown(trait)}.")
  return descriptors


def with_descriptors(
  classes: Sequence[str],
  descriptors: Mapping[str, Sequence[str]],
  wording: str = "grammatical",
) -> tuple[tuple[str, ...], tuple[int, ...]]:
  """Makes one phrase per class and trait, such as "river, which has banks".

  Args:
    classes: class names.
    descriptors: traits by class name; `matched` says how names are compared.
    wording: one of `WORDINGS`. `faithful` is PCB's literal sentence, "river,
      which is/has banks", with the class name in lower case.

  Returns:
    The phrases, ordered by class, and the class index of each phrase.

  Raises:
    InputError: if classes have no descriptor; the message names the first five.
  """
  keys = matched(classes, list(descriptors))
  traits = [() if key is None else descriptors[key] for key in keys]
  missing = [n for n, t in zip(classes, traits, strict=True) if not t]
  if missing:
    unused = [key for key in descriptors if key not in keys]
    similar = "; ".join(
      f"{name!r}{nearest(name, unused)}" for name in missing[:5]
    )
    raise InputError(
      f"no descriptor for {len(missing)} of {len(classes)} classes, such as "
      f"{similar.removesuffix('?')}. In the file that model.descriptors "
      "names, rename the keys to these class names, or add them."
    )
  pairs = [
    (i, trait)
    for i, class_traits in enumerate(traits)
    for trait in class_traits
  ]
  if wording == "faithful":
    phrases = tuple(
      f"{readable(classes[i]).lower()}, which is/has {trait}"
      for i, trait in pairs
    )
  else:
    phrases = tuple(f"{readable(classes[i])}, {clause(t)}" for i, t in pairs)
  return phrases, tuple(i for i, _ in pairs)


def matched(
  classes: Sequence[str], keys: Sequence[str]
) -> tuple[str | None, ...]:
  """Finds the key that means each class.

  These rules are tried in order, until one of them finds a key:

  1. The same name, regardless of case, with underscores read as spaces, as in
     PCB's released code.
  2. The same words in another order, regardless of punctuation: CoOp's Cars
     have the year first ("2012 Audi TTS Coupe"), and PCB's file has it last.
  3. One of a key's alternatives: "Industrial Buildings" of CoOp's EuroSAT is
     "industrial buildings or commercial buildings" in PCB's file.

  Returns:
    The key of each class, or None for a class without a key.

  Raises:
    InputError: if a rule finds several keys for a class, or several classes
      for a key.
  """
  key_by_class: dict[str, str] = {}
  for rule in (_same_name, _same_words, _alternatives):
    unused = [key for key in keys if key not in key_by_class.values()]
    table = collections.defaultdict(list)
    for key in unused:
      for form in rule(key):
        table[form].append(key)
    for name in classes:
      if name in key_by_class:
        continue
      # Only a key is split into alternatives, since "Sea or Lake" as the name
      # of a class means one class.
      class_rule = _same_words if rule is _alternatives else rule
      (form,) = class_rule(name)
      if len(table[form]) > 1:
        raise InputError(
          f"class {name!r} could be {' or '.join(map(repr, table[form]))} in "
          "the file that model.descriptors names: rename one of them."
        )
      for key in table[form]:
        key_by_class[name] = key
  for key, count in collections.Counter(key_by_class.values()).items():
    if count > 1:
      names = [repr(n) for n, used in key_by_class.items() if used == key]
      raise InputError(
        f"descriptors {key!r} could be of the classes {' or '.join(names)}: "
        "give each class its own key in the file that model.descriptors names."
      )
  return tuple(key_by_class.get(name) for name in classes)


def _same_name(name: str) -> tuple[str, ...]:
  return (readable(name).lower(),)


def _same_words(name: str) -> tuple[str, ...]:
  words = re.findall(r"\w+", readable(name).casefold())
  return (" ".join(sorted(words)),)


def _alternatives(name: str) -> tuple[str, ...]:
  parts = re.split(r"\s+or\s+", readable(name).casefold())
  return tuple(dict.fromkeys(form for p in parts for form in _same_words(p)))


def clause(trait: str) -> str:
  """Turns a trait into a relative clause that begins with "which".

  "a band of blue" becomes "which is a band of blue", "winding water" becomes
  "which has winding water", and "is green" becomes "which is green".
  """
  trait = trait.strip().rstrip(".")
  first = trait.split(" ")[0].lower()
  if first == "which":
    return trait
  if first in VERBS:
    return f"which {trait}"
  return f"which {'is' if first in ARTICLES else 'has'} {trait}"
