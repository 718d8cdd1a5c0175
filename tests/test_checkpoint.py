"""Saves are ordered, survive a kill, move between device counts, and no edit
or truncation goes unnoticed."""

import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cpeal_jax.errors import InputError
from cpeal_jax.storage.checkpoint import STRIDE, Checkpoints

LOOP = {"phase": "train", "labeled": ["ü.jpg"], "weights_sha256": "00"}


def state(value=0.0, sharding=None):
  tree = {
    "adapter": {"a": jnp.arange(16.0).reshape(8, 2) + value},
    "opt": (jnp.int32(3), [jnp.full((8,), 0.5, jnp.bfloat16)]),
  }
  return tree if sharding is None else jax.device_put(tree, sharding)


def mesh(devices):
  return Mesh(
    np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,)
  )


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_what_is_saved_comes_back(tmp_path):
  with Checkpoints(tmp_path / "new") as checkpoints:
    assert checkpoints.latest() is None
    checkpoints.save(2, 7, state(1), {**LOOP, "pair": (1, 2)})
    train, loop = checkpoints.restore(2, 7, state())
  assert_same(train, state(1))
  assert loop == {**LOOP, "pair": [1, 2], "round": 2, "step": 7}


def test_random_keys_come_back(tmp_path):
  key = jax.random.key(5)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(0, 0, {"key": key}, {})
    train, _ = checkpoints.restore(0, 0, {"key": jax.random.key(0)})
  assert jnp.array_equal(jax.random.bits(train["key"]), jax.random.bits(key))


def test_the_newest_and_each_rounds_last_stay(tmp_path):
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    for at in [(0, 1), (0, 9), (1, 2), (1, 3), (2, 0), (2, 4), (2, 5), (2, 6)]:
      checkpoints.save(*at, state(), LOOP)
    checkpoints.wait()
    assert checkpoints.all() == [(0, 9), (1, 3), (2, 5), (2, 6)]
    assert checkpoints.latest() == (2, 6)
    assert checkpoints.at(1) == (1, 3)
    assert checkpoints.at(3) is None
  with Checkpoints(tmp_path) as again:
    assert again.all() == [(0, 9), (1, 3), (2, 5), (2, 6)]


@pytest.mark.parametrize("reopened", [False, True])
def test_a_redone_step_replaces_what_is_there_and_newer(tmp_path, reopened):
  checkpoints = Checkpoints(tmp_path)
  for at in [(0, 5), (1, 2), (1, 4)]:
    checkpoints.save(*at, state(), LOOP)
  if reopened:
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, 2, state(9), {**LOOP, "phase": "redone"})
  checkpoints.wait()
  assert checkpoints.all() == [(0, 5), (1, 2)]
  train, loop = checkpoints.restore(1, 2, state())
  assert_same(train, state(9))
  assert loop["phase"] == "redone"
  checkpoints.rewind(0, 0)
  assert checkpoints.latest() is None
  checkpoints.close()


def test_a_skipped_save_is_never_silent(tmp_path, monkeypatch):
  with Checkpoints(tmp_path) as checkpoints:
    monkeypatch.setattr(
      checkpoints._manager, "save", lambda *args, **kwargs: False
    )
    with pytest.raises(RuntimeError, match="skipped round 1, step 2"):
      checkpoints.save(1, 2, state(), LOOP)


@pytest.mark.parametrize("at", [(-1, 0), (0, -1), (0, STRIDE)])
def test_numbers_out_of_range_are_refused(tmp_path, at):
  with (
    Checkpoints(tmp_path) as checkpoints,
    pytest.raises(ValueError, match="out of range"),
  ):
    checkpoints.save(*at, state(), LOOP)


def test_restores_on_another_number_of_devices(tmp_path):
  for saved in (1, 8):
    before = state(saved, NamedSharding(mesh(saved), P()))
    before["rows"] = jax.device_put(
      jnp.arange(8.0), NamedSharding(mesh(saved), P("data"))
    )
    with Checkpoints(tmp_path / str(saved)) as checkpoints:
      checkpoints.save(0, 0, before, LOOP)
    for wanted in (1, 2, 8):
      sharding = NamedSharding(mesh(wanted), P())
      target = jax.tree.map(
        lambda x, s=sharding: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=s
        ),
        before,
      )
      with Checkpoints(tmp_path / str(saved)) as checkpoints:
        after, _ = checkpoints.restore(0, 0, target)
      assert_same(after, before)
      for leaf in jax.tree.leaves(after):
        assert leaf.sharding == sharding


def _files(root):
  return sorted(p for p in root.rglob("*") if p.is_file() and p.stat().st_size)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  root = tmp_path_factory.mktemp("saved")
  with Checkpoints(root) as checkpoints:
    checkpoints.save(0, 1, state(1), LOOP)
    checkpoints.save(0, 2, state(2), LOOP)
  return root


def _copy(source, target):
  for path in source.rglob("*"):
    if path.is_file():
      copy = target / path.relative_to(source)
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes(path.read_bytes())


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_to_any_file_is_named(saved, tmp_path, damage):
  victims = [
    path
    for path in _files(saved / "2")
    if path.parent.name != "2" and path.name != "commit_success.txt"
  ]
  assert {p.name for p in victims} >= {
    "metadata",
    "_METADATA",
    "manifest.ocdbt",
  }
  for number, victim in enumerate(victims):
    root = tmp_path / str(number)
    _copy(saved, root)
    path = root / victim.relative_to(saved)
    data = path.read_bytes()
    if damage == "remove":
      path.unlink()
    elif damage == "truncate":
      path.write_bytes(data[: len(data) // 2])
    else:
      i = len(data) // 2
      path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
    expected = f"{root}/2 is missing, edited or truncated .*{victim.name}: "
    with Checkpoints(root) as checkpoints:
      with pytest.raises(InputError, match=expected) as caught:
        checkpoints.restore(0, 2, state())
      assert "\n" not in str(caught.value)
      checkpoints.rewind(0, 2)
      train, _ = checkpoints.restore(*checkpoints.latest(), state())
    assert_same(train, state(1))


@pytest.mark.parametrize("text", [None, "", "{}", '{"schema_version": 1}'])
def test_damaged_digests_are_named(saved, tmp_path, text):
  _copy(saved, tmp_path)
  path = tmp_path / "2" / "digests.json"
  path.unlink() if text is None else path.write_text(text)
  with (
    Checkpoints(tmp_path) as checkpoints,
    pytest.raises(
      InputError, match=r"truncated \(digests\.json is missing or unreadable"
    ),
  ):
    checkpoints.restore(0, 2, state())


def test_a_tree_of_another_shape_is_an_input_error(saved):
  with (
    Checkpoints(saved) as checkpoints,
    pytest.raises(InputError, match=f"{saved}/1 is .*ValueError"),
  ):
    checkpoints.restore(0, 1, {"other": jnp.zeros(2)})


def test_a_missing_step_is_an_input_error(saved):
  with (
    Checkpoints(saved) as checkpoints,
    pytest.raises(InputError, match=f"{saved}/3 is missing"),
  ):
    checkpoints.restore(0, 3, state())


def test_an_unwritable_directory_is_an_input_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match=r"cannot write .*file/checkpoints"):
    Checkpoints(tmp_path / "file" / "checkpoints")


def test_a_full_disk_is_an_input_error(tmp_path):
  """A limit on file sizes refuses writes the way a full disk does."""
  code = (
    "import jax, resource, sys\n"
    "from cpeal_jax.storage.checkpoint import Checkpoints\n"
    "train = {'a': jax.random.normal(jax.random.key(0), (100_000,))}\n"
    "checkpoints = Checkpoints(sys.argv[1])\n"
    "checkpoints.save(0, 1, {'a': train['a'][:100]}, {}); checkpoints.wait()\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
    "try: checkpoints.save(0, 2, train, {}); checkpoints.wait()\n"
    "except ValueError as e: print(type(e).__name__, e)\n"
    "print(checkpoints.latest())"
  )
  child = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
  )
  error, latest = child.stdout.splitlines()
  assert error.startswith(f"InputError cannot write {tmp_path}: ")
  assert "File too large. Free some space" in error
  assert latest == "(0, 1)"


def test_a_disk_without_room_for_a_directory_is_told_once(tmp_path):
  """Orbax fails in two places, and leaves threads behind that wait."""
  code = (
    "import builtins, io, os, sys, jax.numpy as jnp\n"
    "from cpeal_jax.storage.checkpoint import Checkpoints\n"
    "def refused(path, *args, **kwargs): raise OSError(28, 'Full', str(path))\n"
    "try:\n"
    "  with Checkpoints(sys.argv[1]) as checkpoints:\n"
    "    checkpoints.save(0, 1, {'a': jnp.zeros(9)}, {}); checkpoints.wait()\n"
    "    made, plain = os.mkdir, io.open\n"
    "    def mkdir(path, *args, **kwargs):\n"
    "      call = refused if 'loop.orbax' in str(path) else made\n"
    "      return call(path, *args, **kwargs)\n"
    "    def opened(file, mode='r', *args, **kwargs):\n"
    "      call = refused if 'w' in mode else plain\n"
    "      return call(file, mode, *args, **kwargs)\n"
    "    os.mkdir, builtins.open, io.open = mkdir, opened, opened\n"
    "    checkpoints.save(0, 2, {'a': jnp.zeros(9)}, {}); checkpoints.wait()\n"
    "except Exception as e: print(type(e).__name__, e, flush=True)\n"
    "os._exit(0)"
  )
  child = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)],
    capture_output=True,
    text=True,
    timeout=100,
  )
  assert child.stdout.startswith(f"InputError cannot write {tmp_path}: Full.")


def test_damage_prints_no_stray_traceback(tmp_path):
  """Through a process, whose screen shows what other threads print."""
  code = (
    "import sys, time, jax.numpy as jnp; from pathlib import Path\n"
    "from cpeal_jax.storage.checkpoint import Checkpoints\n"
    "train = {str(i): jnp.zeros((300, 300)) for i in range(20)}\n"
    "checkpoints = Checkpoints(sys.argv[1])\n"
    "checkpoints.save(0, 1, train, {}); checkpoints.wait()\n"
    "for p in (Path(sys.argv[1]) / '1/train/d').iterdir(): p.write_bytes(b'')\n"
    "try: checkpoints.restore(0, 1, train)\n"
    "except ValueError as error: print(type(error).__name__)\n"
    "time.sleep(0.2)"
  )
  child = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
  )
  assert child.stdout == "InputError\n"
  assert "Traceback" not in child.stderr


CHILD = """
import sys
import jax.numpy as jnp
from cpeal_jax.storage.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
for step in range(10_000):
  train = {"a": jnp.full((1 << 20,), float(step)), "step": jnp.int32(step)}
  checkpoints.save(0, step, train, {})
  print(step, flush=True)
"""


@pytest.mark.parametrize("saves", [2, 4])
def test_a_kill_during_a_save_leaves_a_whole_checkpoint(tmp_path, saves):
  with subprocess.Popen(
    [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE
  ) as child:
    for _ in range(saves + 1):
      child.stdout.readline()
    # Save number `saves` has started and the one before it is complete.
    child.send_signal(signal.SIGKILL)
  target = {"a": jnp.zeros(1 << 20), "step": jnp.int32(0)}
  with Checkpoints(tmp_path) as checkpoints:
    round_, step = checkpoints.latest()
    assert round_ == 0
    assert step >= saves - 1
    train, _ = checkpoints.restore(0, step, target)
    assert train["step"] == step
    assert (np.asarray(train["a"]) == step).all()
    checkpoints.save(0, step + 1, train, {})
    checkpoints.wait()
    assert checkpoints.latest() == (0, step + 1)
