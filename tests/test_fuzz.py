"""A few examples for every parser of `benchmarks/reliability/fuzz.py`."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PATH = Path(__file__).parents[1] / "benchmarks" / "reliability" / "fuzz.py"
SPEC = importlib.util.spec_from_file_location("fuzz", PATH)
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_an_altered_input_is_refused_or_read_right(kind, capsys):
  """No traceback, no hang, no other file changed, no wrong answer."""

  @settings(
    max_examples=6 if kind in fuzz.SLOW else 25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
  )
  @given(st.integers(0, 2**32 - 1))
  def attempt(seed):
    count = fuzz.Count()
    fuzz.attempt(kind, seed, count, keep=None)
    wrong = (count.tracebacks, count.hangs, count.lost, count.nonsense)
    assert (count.tried, *wrong) == (1, 0, 0, 0, 0), capsys.readouterr().out

  attempt()


def test_the_campaign_counts_what_goes_wrong(monkeypatch, tmp_path):
  """The other test rests on these counts."""

  def accepted(rng, folder):
    raise fuzz.Nonsense("two classes, not three")

  def broken(rng, folder):
    (folder.parent / "beside" / "note.txt").unlink()
    raise KeyError("label")

  monkeypatch.setattr(fuzz, "KINDS", {"accepted": accepted, "broken": broken})
  counts = fuzz.campaign(["accepted", "broken"], 4, 1, keep=tmp_path)
  assert counts["accepted"] == fuzz.Count(tried=2, nonsense=2)
  assert counts["broken"] == fuzz.Count(tried=2, tracebacks=2, lost=2)
  assert len(list(tmp_path.iterdir())) == 4
