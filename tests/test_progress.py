"""What a run says on the terminal while it works."""

import threading
from concurrent.futures import Future

import pytest

from cpeal_jax import progress
from cpeal_jax.run import precompile


def test_long_lines_break_between_words():
  path = "runs/" + "x" * 90
  text = f"digits: 10 classes; {path} and more words"
  lines = progress.wrapped(f"{text}\n  a  table  0.5", 80).split("\n")
  assert lines == [
    "digits: 10 classes;",
    f"  {path}",
    "  and more words",
    "  a  table  0.5",
  ]


def test_lines_break_only_on_a_terminal(capsys, monkeypatch):
  text = "word " * 40
  progress.say(text)
  monkeypatch.setattr("sys.stdout.isatty", lambda: True)
  monkeypatch.setenv("COLUMNS", "60")
  progress.say(text)
  plain, *broken = capsys.readouterr().out.splitlines()
  assert plain == text
  assert len(broken) == 4
  assert max(map(len, broken)) <= 60


@pytest.mark.parametrize(
  ("done", "seconds", "shown"),
  [
    (40, 260.0, " (0.2/s)"),
    (13_500, 0.25, " (54000/s)"),
    (1, 9.5, ""),
    (0, 0.01, ""),
    (300, 0.001, ""),
  ],
)
def test_a_rate_is_true_or_left_out(done, seconds, shown):
  assert progress._rate(done, seconds) == shown


def test_a_wait_for_a_compilation_is_shown(capsys, monkeypatch):
  monkeypatch.setattr(precompile, "SOON", 0.01)
  ready, late = Future(), Future()
  ready.set_result(None)
  precompile.wait_for({"fit": ready}, "fit")
  precompile.wait_for({"fit": late}, "encode")
  assert capsys.readouterr().out == ""
  timer = threading.Timer(0.2, late.set_result, [None])
  timer.start()
  precompile.wait_for({"fit": late}, "fit")
  timer.join()
  assert capsys.readouterr().out.startswith("  compile fit: 1 program in ")
