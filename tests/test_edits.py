"""What somebody or something did to a workdir's files is noticed, or undone."""

import json
import os

import numpy as np
import pytest

from cpeal_jax.errors import InputError
from cpeal_jax.storage import clearing, files, record, results, workdir

CONFIG = {"seed": 1, "rounds": 3, "cache_dir": ""}
IDS = [f"i{i}" for i in range(6)]
MANIFEST = {
  "id": IDS,
  "path": IDS,
  "sha256": [f"{i:064}" for i in range(6)],
  "split": ["train"] * 6,
  "status": ["ok"] * 6,
}


def reopen(root, overwrite=False, **config):
  return workdir.open_workdir(
    root,
    config=CONFIG | config,
    defaults=CONFIG,
    run_keys=("cache_dir",),
    environment={"classes": ["a", "b"]},
    manifest=MANIFEST,
    overwrite=overwrite,
  )


@pytest.fixture
def run(tmp_path):
  """A zero-shot row and two finished rounds."""
  root = tmp_path / "run"
  reopen(root)
  results.write_metrics(root, [{"round": -1, "labeled": 0, "accuracy": 0.5}])
  for round_ in range(2):
    picks = IDS[round_ * 2 : round_ * 2 + 2]
    record.write_selection(
      root,
      round_,
      selection={"id": picks, "rank": [0, 1]},
      scores={"id": IDS, "entropy": np.arange(6, dtype=np.float32)},
    )
    record.write_labels(root, round_, picks, ["a", "b"], sources=["x", "x"])
    row = {"round": round_, "labeled": 2, "accuracy": 0.6}
    results.write_metrics(root, [row])
    record.mark_done(root, round_)
  return root


def change(path, old, new):
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new, 1))


def append(path, text):
  path.write_text(path.read_text() + text)


def edit_json(path, **values):
  content = json.loads(path.read_text())
  path.write_text(json.dumps(content | values))


@pytest.mark.parametrize(
  ("name", "edit"),
  [
    ("config.json", lambda p: edit_json(p, rounds="abc")),
    ("config.json", lambda p: edit_json(p, rounds=9)),
    ("config.json", lambda p: edit_json(p, seed=2)),
    ("config.json", lambda p: edit_json(p, extra=1)),
    ("config.json", lambda p: p.write_text("[" * 100_000)),
    ("environment.json", lambda p: edit_json(p, classes=["b", "a"])),
    ("environment.json", lambda p: p.unlink()),
    ("manifest.parquet", lambda p: files.write_parquet(p, {"id": IDS})),
    ("metrics.jsonl", lambda p: change(p, "0.5", "0.9")),
    ("metrics.jsonl", lambda p: change(p, '"round": -1', '"round": Infinity')),
    ("metrics.jsonl", lambda p: change(p, '"round": -1', '"round": -2')),
    ("metrics.jsonl", lambda p: append(p, '{"round": Infinity}\n')),
    ("metrics.jsonl", lambda p: append(p, '{"round": "x"}\n')),
    ("metrics.jsonl", lambda p: append(p, '{"round": 7, "accuracy": 1}\n')),
    ("metrics.jsonl", lambda p: append(p, '{"rou\n')),
    ("metrics.jsonl", lambda p: append(p, "\x00\x00\n")),
    ("metrics.jsonl", lambda p: change(p, '"accuracy": 0.6', '"accuracy": 1')),
    ("rounds/000/DONE", lambda p: files.write_json(p, {"files": {}})),
    ("rounds/001/SELECTED", lambda p: files.write_json(p, {"files": {}})),
    ("rounds/001/labels.csv", lambda p: change(p, "a", "b")),
  ],
)
def test_an_edit_is_refused_naming_the_file(run, name, edit):
  def go_on():
    reopen(run)
    record.restore_selected(run)
    record.finished_rounds(run)
    record.selected(run, 1)

  edit(run / name)
  with pytest.raises(InputError, match=r"edited or truncated") as error:
    go_on()
  named = name.rpartition("/")[2]
  assert named in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["rounds", "checkpoints"])
def test_a_file_in_place_of_a_folder_is_refused(run, name):
  folder = run / name
  if folder.exists():
    folder.rename(run / "moved")
  folder.write_text("")
  with pytest.raises(InputError, match="it is no directory"):
    reopen(run)


def test_an_untouched_run_goes_on(run):
  assert reopen(run) == ()
  assert record.finished_rounds(run) == 2
  (line,) = reopen(run, cache_dir="elsewhere")
  assert line.startswith("cache_dir")
  assert workdir.read_config(run)["cache_dir"] == "elsewhere"


def test_corrected_labels_are_refused_or_said(tmp_path):
  root = tmp_path / "run"

  def start(labels, **more):
    return workdir.open_workdir(
      root,
      config=CONFIG,
      defaults=CONFIG,
      run_keys=(),
      environment={},
      manifest=MANIFEST | {"label": labels},
      **more,
    )

  start(list("ababab"))
  assert start(list("ababab")) == ()
  with pytest.raises(
    InputError, match=r"2 changed, .* 'i1' in train: 'b' then"
  ):
    start(list("aaabaa"))
  (line,) = start(list("aaabaa"), accept_labels=True)
  assert "2 changed" in line
  # What was accepted is what counts from then on.
  assert start(list("aaabaa")) == ()
  # Exchanged class names are other labels.
  with pytest.raises(InputError, match="6 changed"):
    start(list("bbbabb"))


def test_results_are_made_anew(run):
  want = (run / "results.csv").read_bytes()
  (run / "results.csv").write_text("edited")
  results.write_results(run)
  assert (run / "results.csv").read_bytes() == want


def test_json_of_before_the_digest_is_read(tmp_path):
  path = tmp_path / "old.json"
  path.write_text('{"schema_version": 1, "a": 1}')
  assert files.read_json(path) == {"a": 1}


@pytest.mark.parametrize(
  "name", ["a\rb", "a\nb", "a\r\nb", "\r", 'a"\rb', "a,b", "=1+1", " a "]
)
def test_every_name_survives_a_csv(tmp_path, name):
  path = tmp_path / "a.csv"
  rows = [(name, "x"), ("plain", name)]
  path.write_bytes(files.csv_text(("id", "label"), rows).encode())
  read = [(row["id"], row["label"]) for row in files.read_csv(path)]
  assert read == rows


# --- Only its own


def test_overwrite_keeps_what_the_run_did_not_write(run):
  (run / "checkpoints" / "1000003").mkdir(parents=True)
  (run / "checkpoints" / "1000003" / "data").write_text("ours")
  kept = {
    run / "checkpoints" / "notes.txt",
    run / "checkpoints" / "mine" / "model.bin",
    run / "rounds" / "notes.txt",
    run / "rounds" / "000" / "notes.txt",
    run / "notes.txt",
  }
  for path in kept:
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
  reopen(run, overwrite=True)
  assert all(path.read_text() == "mine" for path in kept)
  assert not (run / "checkpoints" / "1000003").exists()
  assert not (run / "rounds" / "001").exists()
  assert record.finished_rounds(run) == 0


@pytest.mark.parametrize("step", range(8))
def test_an_interrupted_overwrite_can_be_repeated(run, monkeypatch, step):
  """The files of a user do not make a half-removed run a foreign folder."""
  (run / "notes.txt").write_text("mine")
  steps = 0

  def counted(function):
    def call(*args):
      nonlocal steps
      steps += 1
      if steps > step:
        raise KeyboardInterrupt
      return function(*args)

    return call

  calls = {
    clearing: ("_remove", "_remove_if_empty"),
    workdir: ("write_json", "write_parquet"),
  }
  with monkeypatch.context() as patched:
    for module, names in calls.items():
      for name in names:
        patched.setattr(module, name, counted(getattr(module, name)))
    with pytest.raises(KeyboardInterrupt):
      reopen(run, overwrite=True, seed=2)
  reopen(run, overwrite=True, seed=2)
  assert record.finished_rounds(run) == 0
  assert not (run / "rounds").exists()
  assert files.read_json(run / "config.json")["seed"] == 2
  assert (run / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["rounds", "checkpoints", "rounds/001"])
def test_overwrite_removes_nothing_through_a_link(run, tmp_path, name):
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  (elsewhere / "labels.csv").write_text("mine")
  (elsewhere / "000").mkdir()
  (elsewhere / "000" / "labels.csv").write_text("mine")
  if (run / name).exists():
    (run / name).rename(tmp_path / "moved")
  (run / name).symlink_to(elsewhere)
  before = (run / "config.json").read_bytes()
  with pytest.raises(InputError, match="is a link"):
    reopen(run, overwrite=True)
  assert (run / "config.json").read_bytes() == before
  assert (elsewhere / "labels.csv").read_text() == "mine"
  assert (elsewhere / "000" / "labels.csv").read_text() == "mine"


def test_nothing_is_written_through_a_link(tmp_path):
  mine = tmp_path / "mine.txt"
  mine.write_text("mine")
  run = tmp_path / "run"
  run.mkdir()
  (run / "lock").symlink_to(mine)
  with pytest.raises(InputError, match="lock"), workdir.lock(run):
    pass
  (run / ".a.json.tmp").symlink_to(mine)
  with pytest.raises(InputError, match=r"a\.json"):
    files.write_json(run / "a.json", {})
  assert mine.read_text() == "mine"
  # A link of the file's own name is replaced, not followed.
  (run / "b.json").symlink_to(mine)
  files.write_json(run / "b.json", {"b": 1})
  assert mine.read_text() == "mine"
  assert files.read_json(run / "b.json") == {"b": 1}


def test_a_path_that_cannot_be_is_one_line(tmp_path):
  loop = tmp_path / "loop"
  os.symlink(loop, loop)
  for path in (tmp_path / ("a" * 300), loop / "run"):
    with pytest.raises(InputError) as error:
      reopen(path)
    assert "\n" not in str(error.value)
