"""A workdir in a bucket: one holder, whole objects, errors of one line."""

import json
import signal
import subprocess
import sys
import threading
import time
import uuid

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpeal_jax.errors import InputError
from cpeal_jax.storage import files, lease, workdir
from cpeal_jax.storage.checkpoint import CheckpointObjects, open_checkpoints


@pytest.fixture
def root(store, monkeypatch):
  """The address of an empty workdir; what takes minutes takes a second."""
  monkeypatch.setattr(lease, "BEAT", 0.1)
  monkeypatch.setattr(lease, "SILENCE", 1.0)
  monkeypatch.setattr(lease, "SETTLE", 0.2)
  address = f"s3://bucket/{uuid.uuid4().hex}"
  files.reach(address)
  return address


def elsewhere(beat=0):
  """What a process of another machine writes into its lock."""
  return json.dumps(
    {
      "process": 7,
      "host": "far",
      "since": "2026-01-02 03:04:05 UTC",
      "machine": "another",
      "started": "1",
      "token": "its own",
      "beat": beat,
    }
  ).encode()


def test_a_second_process_is_refused_and_the_first_leaves_nothing(root, store):
  with workdir.lock(root):
    with (
      pytest.raises(InputError, match=r"in use by process \d+ on .* since 20"),
      workdir.lock(root),
    ):
      pass
    files.write_atomic(f"{root}/a/b", "text")
    assert store.cat_file(f"{root}/a/b") == b"text"
  assert not store.exists(f"{root}/lock")
  assert not files.guards


def test_a_killed_process_of_this_machine_holds_nothing(root):
  code = (
    "import sys, time; from cpeal_jax.storage import files, workdir\n"
    "files.reach(sys.argv[1])\n"
    "with workdir.lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
  )
  child = subprocess.Popen(
    [sys.executable, "-c", code, root], stdout=subprocess.PIPE
  )
  with child:
    assert child.stdout.readline() == b"held\n"
    start = time.monotonic()
    with (
      pytest.raises(InputError, match=f"process {child.pid} on"),
      workdir.lock(root),
    ):
      pass
    child.send_signal(signal.SIGKILL)
    child.wait()
  with workdir.lock(root):
    assert time.monotonic() - start < 5


def test_another_machines_process_is_alive_while_it_writes(root, store):
  ended = threading.Event()

  def beat():
    number = 0
    while not ended.wait(0.1):
      number += 1
      store.pipe_file(f"{root}/lock", elsewhere(number))

  store.pipe_file(f"{root}/lock", elsewhere())
  thread = threading.Thread(target=beat)
  thread.start()
  with (
    pytest.raises(InputError, match=r"process 7 on far since 2026-01-02 03"),
    workdir.lock(root),
  ):
    pass
  ended.set()
  thread.join()
  assert json.loads(store.cat_file(f"{root}/lock"))["token"] == "its own"


@pytest.mark.parametrize("left", [elsewhere(), b"", b"process 7 on far\n"])
def test_what_stays_silent_is_taken_over(root, store, capsys, left):
  store.pipe_file(f"{root}/lock", left)
  start = time.monotonic()
  with workdir.lock(root):
    assert time.monotonic() - start >= lease.SILENCE
    assert json.loads(store.cat_file(f"{root}/lock"))["machine"] != "another"
  assert (
    "waits up to 1 s for a sign that it is alive" in capsys.readouterr().out
  )


@pytest.mark.parametrize("left", [None, elsewhere()])
def test_of_many_starts_one_holds(root, store, left):
  if left:
    store.pipe_file(f"{root}/lock", left)
  outcomes, ended = [], threading.Event()

  def start():
    try:
      with lease.hold(f"{root}/lock"):
        outcomes.append("held")
        ended.wait(10)
    except InputError as error:
      outcomes.append(str(error))

  threads = [threading.Thread(target=start) for _ in range(4)]
  for thread in threads:
    thread.start()
  while len(outcomes) < 4:
    time.sleep(0.05)
  ended.set()
  for thread in threads:
    thread.join()
  assert outcomes.count("held") == 1
  assert sum("in use by process" in text for text in outcomes) == 3


@pytest.mark.parametrize("taken", [elsewhere(), None])
def test_who_lost_the_lock_writes_nothing_more(root, store, taken):
  with workdir.lock(root):
    if taken:
      store.pipe_file(f"{root}/lock", taken)
    else:
      store.rm_file(f"{root}/lock")
    time.sleep(0.5)
    with pytest.raises(InputError, match="lock was lost to") as caught:
      files.write_atomic(f"{root}/metrics.jsonl", "{}")
  assert ("process 7 on far" if taken else "removed") in str(caught.value)
  assert store.find(root) == ([f"{root}/lock"[5:]] if taken else [])


def test_a_process_that_was_stopped_looks_before_it_writes(
  root, store, monkeypatch
):
  monkeypatch.setattr(lease, "BEAT", 60.0)
  with workdir.lock(root):
    store.pipe_file(f"{root}/lock", elsewhere())
    time.sleep(lease.SILENCE)
    with pytest.raises(InputError, match="lock was lost to process 7"):
      files.write_atomic(f"{root}/metrics.jsonl", "{}")


def start(root, **more):
  return workdir.open_workdir(
    root,
    config={"seed": 1, **more},
    run_keys=(),
    defaults={},
    environment={},
    manifest={"id": ["a"], "sha256": ["0"], "split": ["train"]},
    overwrite=bool(more),
  )


def test_a_workdir_starts_goes_on_and_starts_over(root, store):
  assert start(root) == start(root) == ()
  for name in ("rounds/000/DONE", "checkpoints/4.msgpack", "notes.txt"):
    store.pipe_file(f"{root}/{name}", b"x")
  start(root, other=2)
  assert workdir.read_config(root) == {"seed": 1, "other": 2}
  assert sorted(name.split("/")[-1] for name in store.find(root)) == [
    "config.json",
    "environment.json",
    "manifest.parquet",
    "notes.txt",
  ]
  with pytest.raises(InputError, match="is no workdir"):
    start(root.rpartition("/")[0])


def test_a_bucket_that_is_not_there_is_named(store):
  with (
    pytest.raises(
      InputError, match=r"cannot write s3://absent/run/lock: .*buck"
    ),
    workdir.lock("s3://absent/run"),
  ):
    pass


def test_an_address_that_cannot_be_used_is_named(monkeypatch):
  with pytest.raises(InputError, match=r"az://b/run; give a local dir.*s3://"):
    files.reach("az://b/run")
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  with pytest.raises(InputError, match=r"gcsfs: pip install 'cpeal_jax\[gcs"):
    files.reach("gs://b/run")

  def refuse(*args, **kwargs):
    raise RuntimeError("no\ncredentials")

  monkeypatch.setattr(fsspec, "filesystem", refuse)
  with pytest.raises(InputError, match=r"reached \(RuntimeError: no credent"):
    files.reach("gs://b/run")


def state(value=0.0):
  tree = {
    "adapter": {"a": jnp.arange(16.0).reshape(8, 2) + value},
    "opt": (jnp.int32(3), [jnp.full((8,), 0.5, jnp.bfloat16)]),
  }
  return jax.device_put(tree, jax.devices()[1])


def test_a_checkpoint_comes_back_where_it_belongs(root):
  with open_checkpoints(f"{root}/checkpoints") as checkpoints:
    assert isinstance(checkpoints, CheckpointObjects)
    assert checkpoints.latest() is None
    checkpoints.save(2, 7, state(1), {"pair": (1, 2)})
    train, loop = checkpoints.restore(2, 7, state())
  assert loop == {"pair": [1, 2], "round": 2, "step": 7}
  assert jax.tree.structure(train) == jax.tree.structure(state())
  for x, y in zip(
    jax.tree.leaves(train), jax.tree.leaves(state(1)), strict=True
  ):
    assert (x.dtype, x.sharding) == (y.dtype, y.sharding)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_which_checkpoints_stay(root):
  checkpoints = CheckpointObjects(f"{root}/checkpoints", keep=2)
  for at in [(0, 1), (0, 9), (1, 2), (1, 3), (2, 0), (2, 4), (2, 5), (2, 6)]:
    checkpoints.save(*at, state(), {})
  assert checkpoints.all() == [(0, 9), (1, 3), (2, 5), (2, 6)]
  assert checkpoints.latest() == (2, 6)
  assert checkpoints.at(1) == (1, 3)
  assert checkpoints.at(3) is None
  checkpoints.save(1, 3, state(9), {"redone": True})
  assert checkpoints.all() == [(0, 9), (1, 3)]
  train, loop = checkpoints.restore(1, 3, state())
  assert train["adapter"]["a"][0, 0] == 9
  assert loop["redone"]


@pytest.mark.parametrize("damage", ["truncate", "edit", "remove", "other"])
def test_a_damaged_checkpoint_is_named(root, store, damage):
  checkpoints = CheckpointObjects(f"{root}/checkpoints")
  checkpoints.save(0, 4, state(), {})
  path, target = f"{root}/checkpoints/4.msgpack", state()
  data = store.cat_file(path)
  if damage == "remove":
    store.rm_file(path)
  elif damage == "truncate":
    store.pipe_file(path, data[: len(data) // 2])
  elif damage == "edit":
    store.pipe_file(path, data[:200] + b"~" + data[201:])
  else:
    target["adapter"]["a"] = jnp.zeros((8, 3))
  with pytest.raises(InputError, match=f"checkpoint {path} is missing, edi"):
    checkpoints.restore(0, 4, target)
  # Of another shape is no damage of the object.
  assert (checkpoints.damage(0, 4) is None) == (damage == "other")
