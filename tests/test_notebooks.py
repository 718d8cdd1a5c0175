"""The notebooks run, and the outputs that they come with are theirs."""

import importlib.util
import json
import re

import pytest
from doc_blocks import ROOT

from cpeal_jax import acquisition

FOLDER = ROOT / "docs" / "notebooks"
# Values that take less time: that of the parameters' cell is for readers.
SHORTER = {
  "new-method": {"SEEDS": 2, "ROUNDS": 2},
  "own-images": {"IMAGES": 300, "ROUNDS": 2},
  "quickstart": {"ROUNDS": 2},
}
MOST_BYTES = 120_000


def load_runner():
  spec = importlib.util.spec_from_file_location("run", FOLDER / "run.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


runner = load_runner()


def read(name):
  return json.loads((FOLDER / f"{name}.ipynb").read_text())


def code(notebook):
  return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds(cell):
  return [output["output_type"] for output in cell["outputs"]]


def test_every_notebook_is_run_here():
  assert {path.stem for path in FOLDER.glob("*.ipynb")} == {*SHORTER}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORTER)
def test_it_runs_and_shows_what_it_comes_with(name, env, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  # For commands that a cell starts.
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  for key, value in env.items():
    monkeypatch.setenv(key, value)
  # A method that a notebook adds is there for the notebook alone.
  methods = dict(acquisition.ACQUISITIONS)
  notebook = read(name)
  try:
    done = runner.run(notebook, SHORTER[name])
  finally:
    acquisition.ACQUISITIONS.clear()
    acquisition.ACQUISITIONS.update(methods)
  for cell, before in zip(code(done), code(notebook), strict=True):
    assert kinds(cell) == kinds(before), "".join(before["source"])


@pytest.mark.parametrize("name", SHORTER)
def test_outputs_are_of_these_cells_small_and_of_no_machine(name):
  path = FOLDER / f"{name}.ipynb"
  assert path.stat().st_size < MOST_BYTES
  for cell in code(read(name)):
    source = "".join(cell["source"])
    same = cell["metadata"].get("sha256") == runner.digest(source)
    assert same, (
      f"run docs/notebooks/run.py again, since this changed: {source}"
    )
    for output in cell["outputs"]:
      data = output.get("data", {})
      text = "".join(output.get("text") or data["text/plain"])
      assert not re.search(
        r"/(home|root|tmp|usr|work|var)\b|site-packages", text
      )
      # What a reader who does not see a picture is told.
      assert "image/png" not in data or len(cell["metadata"]["alt"]) > 30


def test_the_runner_gives_what_a_kernel_would():
  sources = ("x = 2", "print(x)\nx + N", "N = 1")
  cells = [
    {"cell_type": "code", "metadata": {}, "source": [source], "outputs": []}
    for source in (sources[2], *sources[:2])
  ]
  cells[0]["metadata"]["tags"] = ["parameters"]
  done = runner.run({"cells": cells}, {"N": 40})
  first, second = done["cells"][2]["outputs"]
  assert first["text"] == ["2\n"]
  assert second["data"] == {"text/plain": ["42"]}
  assert not cells[2]["outputs"]
  with pytest.raises(ZeroDivisionError):
    runner.run({"cells": [cells[0] | {"source": ["1 / 0"]}]})
