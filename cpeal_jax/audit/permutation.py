"""Which images are audited, and which images a statement is then about.

One permutation of the pool is fixed at the start of a run. The audits are its
first images, as many as are asked for, skipping those that cannot be audited.
The permutation has nothing to do with the images. So those of its images that
are in a given set, in its order, are in random order, and the first of them are
a uniform sample of the set without replacement. This holds for every set that
was fixed without looking at the permutation. All of `audit` rests on this fact.

**The images that a statement is about** are those that were never picked for
training: neither bought, nor given with a label at the start. Audits belong to
them. A statement about the present model speaks of its predictions on exactly
these images. It does not speak of the images it was trained on, which have
labels anyway, nor of new images, unless these come from the same source and
few images were picked.

**Audits of several rounds.** An audit is the label of an image, and it does not
age: the predictions of each round's model are compared with all audits so far.
What changes is the set of images, because every purchase takes images out of
it. There are two ways to buy, and they differ in what is left of the audits:

1. The acquisition does not know which images are audits. They are offered to it
   like any unlabeled image. If it picks one, this image stops being an audit;
   whether it is then trained on or set aside does not matter here. So neither
   picks nor models depend on the order that the permutation gives to the images
   that are left. The audits that are left, of all rounds together, are a
   uniform sample of these images, and intervals and certificates are exact.
   Give `counted` the images that are left.
2. The audits are withheld from the acquisition. An image that it would have
   bought then stays among the audits, while others like it are bought and leave
   the images that the statement is about. So the audits hold too many images of
   the kind that is bought. The estimate is too low if that is the difficult
   kind, and too high if it is the easy kind. The fraction of audits that are
   too many is about the fraction of the images that were bought since the
   audits were drawn. This is little in a large pool and a lot in a small one.
   An exact statement then needs another permutation, drawn after the last
   purchase (`step` in `order`). Its first images that have an answer already
   need no second one.

Three more things spoil a statement: training on audits, fitting or choosing
anything by their labels (a temperature, for example), and letting their answers
decide how many there are. A statement is made for one look at it. Of twenty
intervals that hold with 95 %, one misses on average, so whoever reports the
best of twenty should not expect it to hold.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from cpeal_jax.errors import InputError


def order(
  ids: Sequence[object], *, seed: int, step: int = 0
) -> Int[np.ndarray, " N"]:
  """Returns the fixed permutation of the pool, from the seed and the ids.

  It sorts the images by a hash of their ids. So images that are added later
  leave the order of the others as it was, wherever they stand.

  Args:
    ids: the ids of the pool's N images, all different when written.
    seed: the seed of the run.
    step: 0 for the audits of a run; other numbers for permutations that are
      independent of it.

  Returns:
    The rows of all images; those at the front are audited first.
  """
  digests = [
    hashlib.sha256(
      f"audit {seed} {step} {id_}".encode(errors="backslashreplace")
    )
    for id_ in ids
  ]
  places = [digest.digest() for digest in digests]
  return np.array(sorted(range(len(ids)), key=places.__getitem__), np.int64)


def next_audits(
  order: Int[np.ndarray, " N"], taken: Bool[np.ndarray, " N"], *, n: int
) -> Int[np.ndarray, " k"]:
  """Returns the next images to audit, in the order of the permutation.

  Args:
    order: the permutation.
    taken: the images that are drawn already, were picked for training, or are
      unusable. An image whose answer a certificate asked for is not taken. It
      is drawn in its turn like any other, and needs no second answer: if such
      images were skipped, or counted before their turn, the audits would not be
      uniform.
    n: how many to return. There are fewer if fewer are left.

  Raises:
    InputError: n is negative.
  """
  if n < 0:
    raise InputError(f"{n} audits; give 0 or more.")
  return order[~taken[order]][:n]


def counted(
  order: Int[np.ndarray, " N"],
  answered: Bool[np.ndarray, " N"],
  where: Bool[np.ndarray, " N"],
) -> Int[np.ndarray, " m"]:
  """Returns the audits that count for a statement.

  These are the images at the front of the permutation, restricted to the images
  that the statement is about, up to the first without an answer. An answer that
  came out of turn, for example because a person stopped in the middle of a
  batch, counts once those before it are there: otherwise images that are slow
  to answer would be missing.

  Args:
    order: the permutation.
    answered: which images were drawn as audits and have an answer. "Cannot
      tell" is an answer too, and counts as wrong, since leaving such images out
      would flatter the model.
    where: the images that the statement is about: all that were never picked
      for training. Their number is `pool` in `intervals.accuracy`. An image
      that turns out to be unusable may be left out; the statement is then about
      the usable ones.
  """
  front = order[where[order]]
  missing = np.flatnonzero(~answered[front])
  return front[: missing[0]] if len(missing) else front
