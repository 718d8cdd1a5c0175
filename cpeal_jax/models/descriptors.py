"""Descriptor augmentation: several prompts per class, one for each trait.

The options AS and AE of PCB (Bang et al. 2024, arXiv 2311.11178): for example
"river, which has winding water." and "river, which is a band of blue." are two
prompts of the class "river". `Classifier.class_embeddings` averages the
prompts of a class.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cpeal_jax.errors import InputError
from cpeal_jax.models.text import readable

# A descriptor that begins with one of these words already is a clause.
VERBS = ("is", "are", "has", "have", "can", "may", "often", "usually", "which")
ARTICLES = ("a", "an", "the")


def read_descriptors(path: Path | str) -> dict[str, list[str]]:
  """Reads the traits of each class from a JSON file.

  Returns:
    `{"class name": ["a trait", ...], ...}`, as in the file.

  Raises:
    InputError: if the file is missing, is not JSON or has another form.
  """
  try:
    descriptors = json.loads(Path(path).read_text())
  except (OSError, ValueError) as error:
    raise InputError(f"cannot read descriptors from {path}: {error}") from error
  if not isinstance(descriptors, dict) or not all(
    isinstance(traits, list) and all(isinstance(t, str) for t in traits)
    for traits in descriptors.values()
  ):
    raise InputError(
      f'{path} is not of the form {{"class name": ["a trait", ...], ...}}.'
    )
  return descriptors


def with_descriptors(
  classes: Sequence[str], descriptors: Mapping[str, Sequence[str]]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
  """Makes one phrase per class and trait, such as "river, which has banks".

  Class names are looked up in `descriptors` regardless of case, with
  underscores read as spaces, as in PCB's released code.

  Returns:
    The phrases, ordered by class, and the class index of each phrase.

  Raises:
    InputError: if classes have no descriptor; the message names the first.
  """
  known = {readable(name).lower(): d for name, d in descriptors.items()}
  traits = [known.get(readable(name).lower(), ()) for name in classes]
  missing = [n for n, t in zip(classes, traits, strict=True) if not t]
  if missing:
    raise InputError(
      f"{len(missing)} of {len(classes)} classes have no descriptor; the first "
      f"is {missing[0]!r}: add them to the file that model.descriptors names."
    )
  pairs = [
    (i, trait)
    for i, class_traits in enumerate(traits)
    for trait in class_traits
  ]
  phrases = tuple(f"{readable(classes[i])}, {clause(t)}" for i, t in pairs)
  return phrases, tuple(i for i, _ in pairs)


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
