"""The programs whose memory `benchmarks/speed/scaling.py` reports."""

import importlib.util
from pathlib import Path

import pytest

from cpeal_jax.parallel import sharding

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speed" / "scaling.py"


@pytest.mark.slow
def test_every_program_can_be_lowered_without_a_pool(monkeypatch):
  # It imports the scripts beside it.
  monkeypatch.syspath_prepend(SCRIPT.parent)
  spec = importlib.util.spec_from_file_location("scaling", SCRIPT)
  assert spec
  assert spec.loader
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  programs = script.programs(sharding.make_mesh(2), 4096, 5, 8, 3)
  assert sorted(programs) == ["badge", "coreset", "k-means", "neighbors"]
  for lowered in programs.values():
    assert "stablehlo" in lowered.as_text()
