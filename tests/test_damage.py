"""What is cut or lost while no run is there: the next one ends the same."""

import re
import shutil

import pytest
from runs import metrics, quickstart, selections

from cpeal_jax.errors import InputError
from cpeal_jax.run import build, loop
from cpeal_jax.run.plan import make_plan

pytestmark = pytest.mark.slow
# A checkpoint after each of the 4 steps of a round.
OFTEN = {"rounds": 3, "train.epochs": 4, "checkpoint.every_seconds": 0}
MARKS = ("DONE", "SELECTED")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Runs all of a workdir's rounds, or stops after step `steps` of them."""
  config = quickstart(str(tmp_path_factory.mktemp("cache")), **OFTEN)
  experiment = build.build(config, make_plan(config))

  def play(workdir, steps=100):
    asked = iter(range(1, 100))
    return loop.run(
      config,
      workdir,
      stop=lambda: next(asked) == steps,
      experiment=experiment,
    )

  return play


@pytest.fixture(scope="module")
def straight(run, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("straight") / "run"
  run(workdir)
  return workdir


@pytest.fixture(scope="module")
def stopped(run, tmp_path_factory):
  """In round 2, after its third step."""
  workdir = tmp_path_factory.mktemp("stopped") / "run"
  with pytest.raises(loop.Preempted):
    run(workdir, steps=11)
  names = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
  assert names == [4, 1000004, 2000001, 2000002, 2000003]
  return workdir


def ends_the_same(run, workdir, straight):
  run(workdir)
  assert selections(workdir) == selections(straight)
  assert metrics(workdir) == metrics(straight)
  marks = {path.relative_to(workdir) for path in workdir.glob("rounds/*/*")}
  assert marks == {p.relative_to(straight) for p in straight.glob("rounds/*/*")}


@pytest.mark.parametrize(
  ("mark", "round_"),
  [("DONE", 0), ("DONE", 2), ("SELECTED", 1), ("both", 1), ("both", 2)],
)
def test_a_lost_mark_of_a_finished_run(run, straight, tmp_path, mark, round_):
  workdir = shutil.copytree(straight, tmp_path / "run")
  folder = workdir / "rounds" / f"{round_:03d}"
  for name in MARKS if mark == "both" else (mark,):
    (folder / name).unlink()
  if mark == "both" and round_ < 2:
    # What later rounds stand on is not drawn anew.
    with pytest.raises(InputError, match=f"but not round {round_} before it"):
      run(workdir)
    return
  ends_the_same(run, workdir, straight)


@pytest.mark.parametrize(
  "lost",
  [
    "rounds/001/DONE",
    "rounds/002/SELECTED",
    "checkpoints/2000003/commit_success.txt",
    "checkpoints/2000003/train/commit_success.txt",
    "checkpoints/2000003/digests.json",
  ],
)
def test_a_lost_mark_of_a_stopped_run(run, straight, stopped, tmp_path, lost):
  workdir = shutil.copytree(stopped, tmp_path / "run")
  (workdir / lost).unlink()
  ends_the_same(run, workdir, straight)


@pytest.mark.parametrize(
  ("cut", "steps"),
  [
    ("2000003", 2),  # The newest.
    ("200000?", 4),  # All of its round.
    ("1000004", 4),  # The last of the round before, and so what is newer.
    ("*", 4),
  ],
)
def test_cut_checkpoints(run, straight, stopped, tmp_path, capsys, cut, steps):
  workdir = shutil.copytree(stopped, tmp_path / "run")
  folders = list((workdir / "checkpoints").glob(cut))
  for folder in folders:
    for path in folder.rglob("*"):
      if path.is_file():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  capsys.readouterr()
  ends_the_same(run, workdir, straight)
  said = capsys.readouterr().out
  assert (
    "was edited or truncated (digests.json is missing or unreadable)" in said
  )
  assert "Traceback" not in said
  fits = re.findall(r"fit round (\d): (\d) steps", said)
  assert fits[-1] == ("2", str(steps)), said
