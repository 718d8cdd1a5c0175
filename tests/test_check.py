"""The watch over the benchmarks' ratios, on files made by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "check.py"


def row(case, ratio, gate=None, threads=1):
  met = gate is None or ratio >= gate
  verdict = "no gate" if gate is None else f">= {gate}: met"
  return {
    "case": case,
    "peer": "numpy",
    "threads": threads,
    "ours": [1.0],
    "theirs": [ratio],
    "ratio": ratio,
    "gate": gate,
    "verdict": verdict if met else f">= {gate}: MISSED",
    "notes": {},
  }


@pytest.fixture
def check(tmp_path):
  """Writes rows as a benchmark does, and runs the script on them."""

  def run(rows, *flags, small=False, device="cpu"):
    file = tmp_path / "neighbor_search.json"
    about = {"benchmark": "neighbor_search", "environment": {"device": device}}
    file.write_text(json.dumps({**about, "small": small, "rows": rows}))
    stored = f"--stored={tmp_path / 'ratios.json'}"
    command = [sys.executable, str(SCRIPT), str(file), stored, *flags]
    return subprocess.run(command, capture_output=True, text=True)

  return run


def changes(done):
  """The table's last column."""
  return [line.split(" | ")[-1][:-2] for line in done.stdout.splitlines()[2:]]


def test_a_ratio_that_fell_and_one_that_did_not(check):
  assert check([row("a", 10), row("b", 10)], "--update").returncode == 0
  done = check([row("a", 8), row("b", 30)])
  assert (changes(done), done.returncode) == (["-20 %", "+200 %"], 0)
  done = check([row("a", 7.9), row("b", 10)])
  assert (changes(done), done.returncode) == (["-21 %, FELL", "+0 %"], 1)
  assert check([row("a", 7.9)], "--tolerance=0.3").returncode == 0


def test_a_gate_counts_if_it_was_met(check):
  check([row("met", 1.05, 1.0), row("missed", 0.9, 1.0)], "--update")
  done = check([row("met", 1.01, 1.0), row("missed", 0.9, 1.0)])
  assert (changes(done), done.returncode) == (["-4 %", "+0 %"], 0)
  done = check([row("met", 0.99, 1.0)])
  assert (changes(done), done.returncode) == (["-6 %, gate MISSED"], 1)


def test_another_case_number_of_threads_or_device_is_new(check):
  check([row("a", 10)], "--update")
  done = check([row("b", 1, 2.0), row("a", 1, threads=2)])
  assert (changes(done), done.returncode) == (["new", "new"], 0)
  assert changes(check([row("a", 1)], device="H100")) == ["new"]


def test_update_keeps_what_was_not_run(check, tmp_path):
  check([row("b", 2, 1.5), row("a", 3)], "--update")
  check([row("b", 1.23456), {**row("alone", 1), "ratio": None}], "--update")
  lines = (tmp_path / "ratios.json").read_text().splitlines()
  stored = json.loads("\n".join(lines))
  assert len(lines) == 2 + len(stored)
  assert [(x["case"], x["ratio"], x["gate"]) for x in stored] == [
    ("a", 3, None),
    ("b", 1.235, None),
  ]


def test_refusals_are_one_line(check, tmp_path):
  done = check([row("a", 1)])
  assert "--update" in done.stderr
  assert (done.returncode, done.stderr.count("\n")) == (1, 1)
  done = check([row("a", 1)], "--update", small=True)
  assert "--small" in done.stderr
  assert (done.returncode, done.stderr.count("\n")) == (1, 1)
  assert not (tmp_path / "ratios.json").exists()


def test_figures_of_an_accelerator_are_compared(tmp_path):
  """Those of the last start that are shares or ratios, and no others."""
  file = tmp_path / "figures.jsonl"

  def line(start, name, value, **more):
    known = {"benchmark": "accelerator", "device": "H200", "devices": 1}
    known |= {"start": start, "small": False, "case": "B/16", "name": name}
    goal, compared = (0.5, True) if "share" in name else (None, False)
    known |= {"value": value, "goal": goal, "compared": compared}
    met = "met" if goal is None or value >= goal else "MISSED"
    verdict = f">= {goal}: {met}" if goal else ""
    return json.dumps({**known, "verdict": verdict, **more}) + "\n"

  def check(*lines, flags=()):
    file.write_text("".join(lines))
    stored = f"--stored={tmp_path / 'ratios.json'}"
    command = [sys.executable, str(SCRIPT), str(file), stored, *flags]
    return subprocess.run(command, capture_output=True, text=True)

  first = line(1, "share", 0.6), line(1, "images/s", 9000)
  assert check(*first, flags=["--update"]).returncode == 0
  stored = json.loads((tmp_path / "ratios.json").read_text())
  kept = {"device": "H200", "case": "B/16", "peer": "share", "threads": 1}
  assert stored == [
    {"benchmark": "accelerator", **kept, "ratio": 0.6, "gate": 0.5}
  ]
  done = check(*first, line(2, "share", 0.55))
  assert (changes(done), done.returncode) == (["-8 %"], 0)
  done = check(*first, line(2, "share", 0.49), '{"start": 3, "cut')
  assert changes(done) == ["-18 %, gate MISSED"]
  assert done.returncode == 1
  done = check(*first, line(2, "share", 0.55, small=True))
  assert "--small" in done.stderr
  assert (done.returncode, done.stderr.count("\n")) == (1, 1)
