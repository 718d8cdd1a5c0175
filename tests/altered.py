"""Alters valid files at random, for tests of what reads them."""

import random
from collections.abc import Sequence

# Bytes that programs put where nobody expects them.
ODD_BYTES = (b"\xef\xbb\xbf", b"\r\n", b"\0", b"\r")


def altered_bytes(
  rng: random.Random,
  data: bytes,
  *,
  most: int = 4,
  cuts: bool = True,
  odd: Sequence[bytes] = ODD_BYTES,
) -> bytes:
  """Flips, cuts, repeats or inserts a few bytes.

  Args:
    rng: draws what is done.
    data: the content of a file.
    most: how many alterations there are at most.
    cuts: whether one of them may remove the rest of the file.
    odd: what may be inserted besides random bytes.
  """
  out = bytearray(data)
  for _ in range(rng.randint(1, most)):
    at = rng.randrange(len(out) + 1)
    match rng.randrange(6):
      case 0 if cuts:
        del out[at:]
      case 1:
        out[at : at + rng.randint(1, 9)] = b""
      case 2:
        out[at:at] = rng.randbytes(rng.randint(1, 9))
      case 3 if at < len(out):
        out[at] ^= 1 << rng.randrange(8)
      case 4:
        out[at:at] = out[at : at + 40]
      case _:
        out[at:at] = rng.choice(odd)
  return bytes(out)


def altered_json(
  rng: random.Random, value: object, odd: Sequence[object]
) -> object:
  """Puts an odd value somewhere, or removes or repeats an entry."""
  if isinstance(value, dict) and value and rng.random() < 0.85:
    key = rng.choice(list(value))
    if rng.random() < 0.15:
      return {k: v for k, v in value.items() if k != key}
    return value | {key: altered_json(rng, value[key], odd)}
  if isinstance(value, list) and value and rng.random() < 0.85:
    at = rng.randrange(len(value))
    entry = altered_json(rng, value[at], odd)
    repeated = [value[at]] * rng.choice((0, 0, 1))
    return [*value[:at], entry, *repeated, *value[at + 1 :]]
  return rng.choice(odd)
