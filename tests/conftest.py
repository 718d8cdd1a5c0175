"""Strict tests: eight CPU devices, shapes checked, rank promotion refused."""

import collections
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
EIGHT = "--xla_force_host_platform_device_count=8"
if EIGHT not in os.environ.get("XLA_FLAGS", ""):  # A worker has its parent's.
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {EIGHT}"
os.environ["HF_HUB_OFFLINE"] = "1"
# Many tests build the same programs anew; tests/programs.py keeps them.
COMPILED = tempfile.TemporaryDirectory(prefix="cpeal_jax_compiled_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# One for GPUs would make the folder's path a part of every program's key.
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"

import fsspec
import jax
import jaxtyping
import programs
import pytest

STORE = programs.find_store()
# Its checks are those of the tests that call it.
pytest.register_assert_rewrite("contract")
jax.config.update("jax_numpy_rank_promotion", "raise")
jaxtyping.install_import_hook("cpeal_jax", "beartype.beartype")

# Beside the tests: what it does to warnings and sockets is its own.
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


# Files of a minute and more come first, the longest at the head, so that of
# several workers none is left alone with one of them at the end.
LONGEST = (
  "test_trajectory.py",
  "test_resume.py",
  "test_distributed.py",
  "test_acquisition.py",
  "test_training.py",
  "test_scoring.py",
  "test_main.py",
  "test_dinov2.py",
  "test_damage.py",
  "test_launch.py",
)
# Tests that an expression of marks or names leaves out, by file.
left_out = collections.Counter()


def pytest_collection_modifyitems(items):
  place = {name: i for i, name in enumerate(LONGEST)}
  items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_report_header():
  return f"{len(programs.entries(STORE))} compiled programs in {STORE}"


def pytest_deselected(items):
  left_out.update(item.path.name for item in items)


def pytest_sessionfinish(session):
  if hasattr(session.config, "workeroutput"):
    session.config.workeroutput["left_out"] = dict(left_out)
  else:
    programs.make_room(STORE)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  """Each worker of pytest-xdist leaves out the same."""
  told = getattr(node, "workeroutput", {}).get("left_out", {})
  left_out.update(collections.Counter(told) - left_out)


def pytest_terminal_summary(terminalreporter, config):
  reasons = collections.Counter(
    str(report.longrepr[-1]).removeprefix("Skipped: ")
    for report in terminalreporter.stats.get("skipped", ())
    if not isinstance(report.longrepr, str)
  )
  for reason, count in sorted(reasons.items()):
    terminalreporter.write_line(f"{count} skipped: {reason}")
  if left_out:
    files = [f"{name} {count}" for name, count in sorted(left_out.items())]
    said = {"-m": config.option.markexpr, "-k": config.option.keyword}
    why = " ".join(f"{flag} {x!r}" for flag, x in said.items() if x)
    terminalreporter.write_line(
      f"{left_out.total()} tests left out by {why}: {', '.join(files)}"
    )


@pytest.fixture(autouse=True)
def _signals():
  """Each test starts with Python's own handlers of SIGTERM and Ctrl-C.

  A command that a test calls in this process ignores both when it ends, and a
  suite in a shell's background ignores Ctrl-C from its beginning. What a test
  starts would ignore them too.
  """
  signal.signal(signal.SIGINT, signal.default_int_handler)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(scope="module", autouse=True)
def _programs():
  """Programs last as long as their file, since each holds areas of memory.

  Past 65,530 of these, Linux's `vm.max_map_count`, the process crashes. What
  other files and other runs compiled is read from the disk.
  """
  programs.take(STORE, Path(COMPILED.name))
  yield
  programs.give(Path(COMPILED.name), STORE)
  jax.clear_caches()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
  """A folder of compiled programs for processes that may die while they write.

  Half an entry would be a warning to all later tests.
  """
  folder = tmp_path_factory.mktemp("cache") / "jax"
  folder.mkdir()
  programs.take(STORE, folder)
  yield folder
  programs.give(folder, STORE)


@pytest.fixture(scope="module")
def env(compiled):
  """The environment of commands that find compiled programs in `compiled`."""
  return {"JAX_COMPILATION_CACHE_DIR": str(compiled)}


@pytest.fixture(scope="session")
def store():
  """A client of an S3 on this machine, with the bucket s3://bucket."""
  pipe = subprocess.PIPE
  command = [sys.executable, "-c", SERVER]
  with (
    pytest.MonkeyPatch.context() as patch,
    subprocess.Popen(command, stdin=pipe, stdout=pipe) as server,
  ):
    port = int(server.stdout.readline())
    for name, value in {
      "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
      "AWS_ACCESS_KEY_ID": "key",
      "AWS_SECRET_ACCESS_KEY": "secret",
      "AWS_DEFAULT_REGION": "us-east-1",
      "AWS_CONFIG_FILE": os.devnull,
      "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():
      patch.setenv(name, value)
    client = fsspec.filesystem("s3", use_listings_cache=False)
    client.mkdir("bucket")
    yield client
    server.stdin.close()
