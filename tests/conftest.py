"""Strict tests: eight CPU devices, shapes checked, rank promotion refused."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["HF_HUB_OFFLINE"] = "1"
# Of a suite in the background, what it starts would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Many tests build the same programs anew; compile each once a session.
COMPILED = tempfile.TemporaryDirectory(prefix="cpeal_jax_compiled_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import fsspec
import jax
import jaxtyping
import pytest

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


@pytest.fixture(scope="module", autouse=True)
def _programs():
  """Programs last as long as their file, since each holds areas of memory.

  Past 65,530 of these, Linux's `vm.max_map_count`, the process crashes.
  """
  yield
  jax.clear_caches()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
  """A copy of what is compiled, for processes that may die while they write.

  Half an entry would be a warning to all later tests.
  """
  to = tmp_path_factory.mktemp("compiled") / "jax"
  return str(shutil.copytree(COMPILED.name, to))


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
