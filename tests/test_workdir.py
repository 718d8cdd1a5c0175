"""A workdir continues only what it started, has one writer, and stays safe."""

import errno
import json
import os
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpeal_jax.errors import InputError
from cpeal_jax.storage import files, workdir
from cpeal_jax.storage.settings import config_hash

CONFIG = {
  "seed": 1,
  "rounds": 3,
  "optim": {"lr": 0.002, "betas": (0.9, 0.999)},
  "parallel": {"backend": "shard_map", "devices": 0},
}
RUN_KEYS = {"parallel", "scoring.batch"}
MANIFEST = {
  "id": ["a.jpg", "ü.jpg"],
  "path": ["a.jpg", "ü.jpg"],
  "sha256": ["00", "11"],
  "split": ["train", "test"],
  "status": ["ok", "corrupt"],
}


# What a workdir of an older version means by a key it lacks.
DEFAULTS = {"dataset.name": "", "dataset.layout": "auto"}


def start(root, config=CONFIG, manifest=MANIFEST, **more):
  return workdir.open_workdir(
    root,
    config=config,
    run_keys=RUN_KEYS,
    defaults=DEFAULTS,
    environment={"jax": "0.10.2"},
    manifest=manifest,
    **more,
  )


def contents(root):
  return {
    str(path.relative_to(root)): path.read_bytes()
    for path in sorted(root.rglob("*"))
    if path.is_file()
  }


def test_first_start_writes_three_versioned_files(tmp_path):
  root = tmp_path / "deep" / "run"
  assert start(root) == ()
  assert set(contents(root)) == {
    "config.json",
    "environment.json",
    "manifest.parquet",
  }
  stored = json.loads((root / "config.json").read_text())
  assert stored["schema_version"] == 1
  assert stored["optim"] == {"lr": 0.002, "betas": [0.9, 0.999]}
  assert "schema_version" not in workdir.read_config(root)
  environment = json.loads((root / "environment.json").read_text())
  assert len(environment.pop("content_sha256")) == 64
  assert environment == {"schema_version": 1, "jax": "0.10.2"}
  manifest = pq.read_table(root / "manifest.parquet")
  assert manifest.to_pydict() == MANIFEST
  assert manifest.schema.metadata[b"schema_version"] == b"1"


def test_second_start_changes_nothing(tmp_path):
  start(tmp_path)
  before = contents(tmp_path)
  assert start(tmp_path) == ()
  assert contents(tmp_path) == before


def test_every_result_key_that_differs_is_listed(tmp_path):
  start(tmp_path)
  before = contents(tmp_path)
  config = {**CONFIG, "seed": 2, "optim": {"lr": 0.01}, "new": None}
  with pytest.raises(InputError) as caught:
    start(tmp_path, config)
  assert str(caught.value) == (
    f"{tmp_path} was started with other settings: "
    "new: workdir has nothing, you gave null; "
    "optim.betas: workdir has [0.9, 0.999], you gave nothing; "
    "optim.lr: workdir has 0.002, you gave 0.01; "
    "seed: workdir has 1, you gave 2. "
    "Give the workdir's values to go on, use another --workdir, or --overwrite "
    "to start over."
  )
  assert contents(tmp_path) == before


def test_run_keys_may_differ_and_rounds_may_grow(tmp_path):
  start(tmp_path)
  config = {
    **CONFIG,
    "rounds": 5,
    "parallel": {"backend": "pmap", "devices": 0},
  }
  assert start(tmp_path, config) == (
    'parallel.backend: workdir has "shard_map", you gave "pmap"',
    "rounds: workdir has 3, you gave 5",
  )
  assert workdir.read_config(tmp_path)["rounds"] == 5
  with pytest.raises(InputError, match=r"you gave 3 \(may only grow\)"):
    start(tmp_path)


def test_a_key_that_is_new_means_its_default(tmp_path):
  start(tmp_path)
  newer = CONFIG | {"dataset": {"name": "", "layout": "auto"}}
  assert start(tmp_path, newer) == ()
  with pytest.raises(InputError, match='workdir has "", you gave "dtd"'):
    start(tmp_path, CONFIG | {"dataset": {"name": "dtd", "layout": "auto"}})


def test_config_hash_follows_the_result_keys_alone():
  def of(**more):
    return config_hash({**CONFIG, **more}, RUN_KEYS)

  assert of() == of(rounds=9, parallel={"backend": "pmap"})
  assert of() != of(seed=2)


def test_other_images_are_refused_and_a_moved_root_is_not(tmp_path):
  start(tmp_path)
  moved = {**MANIFEST, "path": ["/else/a.jpg", "/else/ü.jpg"]}
  assert start(tmp_path, manifest=moved) == ()
  edited = {
    "id": ["a.jpg", "b.jpg"],
    "sha256": ["99", "22"],
    "split": ["train", "train"],
  }
  with pytest.raises(
    InputError, match="1 added, 1 removed, 1 changed, the first is"
  ):
    start(tmp_path, manifest=edited)


def test_a_foreign_directory_is_refused_even_to_overwrite(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  (tmp_path / "checkpoints" / "mine.bin").write_text("x")
  for overwrite in (False, True):
    with pytest.raises(InputError, match=r"'checkpoints'.*another --workdir"):
      start(tmp_path, overwrite=overwrite)
  with (
    pytest.raises(InputError, match="is no workdir"),
    workdir.lock(tmp_path),
  ):
    pass
  assert list(contents(tmp_path)) == ["checkpoints/mine.bin"]
  with pytest.raises(InputError, match="is a file; give a directory"):
    start(tmp_path / "checkpoints" / "mine.bin")


def test_overwrite_removes_only_what_is_ours(tmp_path):
  start(tmp_path)
  round_ = tmp_path / "rounds" / "000"
  round_.mkdir(parents=True)
  (tmp_path / "checkpoints" / "12").mkdir(parents=True)
  for path in (
    round_ / "DONE",
    round_ / "labels.csv",
    round_ / "notes.txt",
    tmp_path / "metrics.jsonl",
    tmp_path / "report.html",
    tmp_path / "notes.txt",
    tmp_path / "checkpoints" / "12" / "x",
  ):
    path.write_text("x")
  (tmp_path / "rounds" / "001").mkdir()
  assert start(tmp_path, {**CONFIG, "seed": 7}, overwrite=True) == ()
  assert workdir.read_config(tmp_path)["seed"] == 7
  assert set(contents(tmp_path)) == {
    "config.json",
    "environment.json",
    "manifest.parquet",
    "notes.txt",
    "rounds/000/notes.txt",
  }
  assert not (tmp_path / "rounds" / "001").exists()


def test_an_interrupted_first_start_begins_again(tmp_path):
  start(tmp_path)
  (tmp_path / "config.json").unlink()
  (tmp_path / ".config.json.tmp").write_text("{")
  assert start(tmp_path, {**CONFIG, "seed": 3}) == ()
  assert workdir.read_config(tmp_path)["seed"] == 3
  assert not (tmp_path / ".config.json.tmp").exists()


@pytest.mark.parametrize("text", ["", "[1]", '{"seed": 1}', '{"schema_ver'])
def test_a_damaged_config_is_named(tmp_path, text):
  start(tmp_path)
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(InputError, match=r"config\.json was edited or truncated"):
    start(tmp_path)


def test_a_damaged_manifest_is_named(tmp_path):
  start(tmp_path)
  path = tmp_path / "manifest.parquet"
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(
    InputError, match=r"manifest\.parquet was edited or trunc"
  ):
    start(tmp_path)


def test_a_newer_schema_is_refused(tmp_path):
  start(tmp_path)
  (tmp_path / "config.json").write_text('{"schema_version": 2, "seed": 1}')
  with pytest.raises(InputError, match=r"schema_version 2, this .* up to 1"):
    start(tmp_path)
  path = tmp_path / "other.parquet"
  table = pa.table({"id": ["a"]})
  pq.write_table(table.replace_schema_metadata({"schema_version": "2"}), path)
  with pytest.raises(InputError, match="schema_version 2"):
    files.read_parquet(path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_refused_write_keeps_the_old_file(tmp_path, monkeypatch, code):
  path = tmp_path / "x"
  files.write_atomic(path, "old")

  def refuse(_):
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr(os, "fsync", refuse)
  with pytest.raises(InputError) as caught:
    files.write_atomic(path, b"new")
  assert f"cannot write {path}: {os.strerror(code)}" in str(caught.value)
  assert "\n" not in str(caught.value)
  assert contents(tmp_path) == {"x": b"old"}


def test_a_path_below_a_file_is_an_input_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match=r"Not a directory|is a file"):
    start(tmp_path / "file" / "run")


def test_a_second_process_is_refused_with_the_pid(tmp_path):
  held = f"in use by process {os.getpid()} on "
  with (
    workdir.lock(tmp_path),
    pytest.raises(InputError, match=held),
    workdir.lock(tmp_path),
  ):
    pass
  with workdir.lock(tmp_path):
    start(tmp_path)


def test_a_killed_process_holds_no_lock(tmp_path):
  code = (
    "import sys, time; from cpeal_jax.storage import workdir\n"
    "with workdir.lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
  )
  child = subprocess.Popen(
    [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE
  )
  with child:
    assert child.stdout.readline() == b"held\n"
    with (
      pytest.raises(InputError, match=f"process {child.pid} on"),
      workdir.lock(tmp_path),
    ):
      pass
    child.send_signal(signal.SIGKILL)
    child.wait()
  with workdir.lock(tmp_path):
    assert str(os.getpid()) in (tmp_path / "lock").read_text()
