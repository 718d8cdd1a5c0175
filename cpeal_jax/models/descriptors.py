"""Descriptor augmentation: several prompts a class, each naming a trait.

PCB's AS and AE (Bang et al. 2024, arXiv 2311.11178): "river, which has winding
water." beside "river, which is a band of blue." How a class's prompts become
one is `Classifier.class_embeddings`'s matter.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cpeal_jax.errors import InputError
from cpeal_jax.models.text import readable

# A descriptor that starts so is a clause already.
VERBS = ("is", "are", "has", "have", "can", "may", "often", "usually", "which")
ARTICLES = ("a", "an", "the")


def read_descriptors(path: Path | str) -> dict[str, list[str]]:
  """Reads `{"class name": ["a trait", ...], ...}`.

  Raises:
    InputError: no such file, or not of this form.
  """
  try:
    found = json.loads(Path(path).read_text())
  except (OSError, ValueError) as error:
    raise InputError(f"cannot read descriptors {path}: {error}") from error
  if not isinstance(found, dict) or not all(
    isinstance(traits, list) and all(isinstance(t, str) for t in traits)
    for traits in found.values()
  ):
    raise InputError(
      f'{path} is not of the form {{"class name": ["a trait", ...], ...}}.'
    )
  return found


def with_descriptors(
  classes: Sequence[str], descriptors: Mapping[str, Sequence[str]]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
  """One phrase per class and descriptor: `"river, which has banks"`.

  Class names are looked up without regard to case or underscores, as in the
  released code.

  Returns:
    The phrases, class by class, and the class index of each.

  Raises:
    InputError: naming the classes without a descriptor.
  """
  known = {readable(name).lower(): d for name, d in descriptors.items()}
  traits = [known.get(readable(name).lower(), ()) for name in classes]
  missing = [n for n, t in zip(classes, traits, strict=True) if not t]
  if missing:
    raise InputError(
      f"{len(missing)} of {len(classes)} classes have no descriptor, the first "
      f"{missing[0]!r}: add them to model.descriptors."
    )
  pairs = [(i, trait) for i, own in enumerate(traits) for trait in own]
  phrases = tuple(f"{readable(classes[i])}, {clause(t)}" for i, t in pairs)
  return phrases, tuple(i for i, _ in pairs)


def clause(trait: str) -> str:
  """`"a band of blue"` as `"which is a band of blue"`; else with "has"."""
  trait = trait.strip().rstrip(".")
  first = trait.split(" ")[0].lower()
  if first == "which":
    return trait
  if first in VERBS:
    return f"which {trait}"
  return f"which {'is' if first in ARTICLES else 'has'} {trait}"
