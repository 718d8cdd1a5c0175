"""Times calls of ours in turn with matrix products, or with PyTorch's."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import optional_peers
import timing

from accelerated import rate
from accelerated.figures import Figure, left_out, ratio, reason
from accelerated.setting import Setting

FASTER = 1.2  # The goal against `torch.compile`.
SHARE = "share of the matrix rate"
KINDS = ("compiled", "eager")
# A CPU takes minutes to compile for `torch.compile`.
SMALL_KINDS = ("eager",)
REPEATS = 3


class Ours(NamedTuple):
  """What is compared.

  Attributes:
    case: what it does, with its sizes.
    run: does it, and waits for the result.
    operations: floating-point operations of one call.
    items: how many images one call takes.
    goal: the least share of the matrix rate, or None.
  """

  case: str
  run: Callable[[], Any]
  operations: float
  items: int
  goal: float | None


def measure(
  ours: Ours,
  make_theirs: Callable[[Any, str], Callable[[], Any]],
  setting: Setting,
) -> Iterator[Figure]:
  """Yields the speed of ours, or ratios to PyTorch, compiled first.

  Args:
    ours: what is measured; it may be compiled already.
    make_theirs: (the module `peers`, a kind of `KINDS`) -> PyTorch's call.
    setting: of the stage; says which of the two.
  """
  if setting.peers:
    yield from _compared(ours, make_theirs, setting)
  else:
    yield from _alone(ours, setting)


def _alone(ours: Ours, setting: Setting) -> Iterator[Figure]:
  size, times = (128, 2) if setting.small else (8192, 8)
  products = rate.products(size, times, "bfloat16")
  found, _ = _in_turn({"ours": ours.run, "products": products.run})
  yield Figure(ours.case, "images/s", ours.items / found["ours"])
  per_second = ours.operations / found["ours"]
  share = per_second * found["products"] / products.operations
  rate_note = f"{per_second / 1e12:.1f} TFLOP/s"
  yield ratio(ours.case, SHARE, share, ours.goal, rate_note)


def _compared(
  ours: Ours,
  make_theirs: Callable[[Any, str], Callable[[], Any]],
  setting: Setting,
) -> Iterator[Figure]:
  peers = optional_peers.load_peers()
  if peers is None:
    yield left_out(f"{ours.case}: PyTorch", "it is not installed")
    return
  if jax.default_backend() != "cpu" and not peers.GPU:
    yield left_out(f"{ours.case}: PyTorch", "it has no such device here")
    return
  kinds = SMALL_KINDS if setting.small else KINDS
  working = peers.working(",".join(kinds))
  for kind in kinds:
    case = f"{ours.case}: PyTorch, {kind}"
    if kind not in working:
      yield left_out(case, "it does not work here, see log.txt")
      continue
    try:
      theirs = make_theirs(peers, kind)
      found, answers = _in_turn({"ours": ours.run, kind: theirs})
    except Exception as error:
      # Ours goes on where PyTorch has too little memory or another version.
      yield left_out(case, reason(error))
      continue
    yield Figure(case, "images/s", ours.items / found[kind])
    name = f"times as fast as PyTorch, {kind}"
    goal = FASTER if kind == "compiled" else None
    note = _difference(answers["ours"], answers[kind])
    yield ratio(ours.case, name, found[kind] / found["ours"], goal, note)


def _in_turn(
  calls: dict[str, Callable[[], Any]],
) -> tuple[dict[str, float], dict[str, Any]]:
  """Returns the median seconds of each call, and each one's first answer."""
  seconds, answers = timing.in_turn(
    {name: lambda _, call=call: call() for name, call in calls.items()}, REPEATS
  )
  middle = {name: statistics.median(x) for name, x in seconds.items()}
  return middle, {name: x[0] for name, x in answers.items()}


def _difference(ours: Any, theirs: Any) -> str:
  """Says how far two answers that are arrays differ; steps change theirs."""
  if not isinstance(ours, tuple):
    return ""
  pairs = zip(ours, theirs, strict=True)
  gaps = [abs(a - b).max() / abs(b).max() for a, b in pairs]
  return f"answers differ by {max(map(float, gaps)):.1e} of the largest"
