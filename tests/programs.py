"""What is compiled lasts from one run of the tests to the next.

JAX writes an entry of its cache in place. Whoever reads at that moment finds
half an entry, and whoever is killed then leaves it there: a warning, and so an
error, in every later run. JAX's own lock (`JAX_COMPILATION_CACHE_MAX_SIZE`)
helps against the first alone, and looks at every entry before each write: 0.14
CPU seconds a program where 3,000 are kept. So each process of pytest, and each
file whose processes are killed, has a folder of its own. Whole entries come
from it into the store, and out of the store into it, by links, each at once.
"""

import atexit
import hashlib
import os
import platform
import re
import shutil
import tempfile
import zlib
from importlib.metadata import version
from pathlib import Path

# The store is emptied from its oldest entries down to half of this.
LIMIT = 512 << 20


def processor() -> str:
  """What compiled code may use, since it is for this processor alone."""
  try:
    about = Path("/proc/cpuinfo").read_text()
  except OSError:
    about = ""
  flags = re.search(r"^(flags|Features)\s*:.*$", about, re.MULTILINE)
  return flags[0] if flags else platform.machine() + platform.processor()


def find_store() -> Path:
  """A folder of the user's cache, or one that ends with this process."""
  cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  digest = hashlib.sha256(processor().encode()).hexdigest()[:12]
  name = f"{version('jaxlib')}-{digest}"
  store = Path(cache) / "cpeal_jax" / "tests" / name
  try:
    store.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=store).close()
  except OSError:
    store = Path(tempfile.mkdtemp(prefix="cpeal_jax_store_"))
    atexit.register(shutil.rmtree, store, ignore_errors=True)
  return store


def entries(folder: Path) -> set[str]:
  """The names of the programs in it."""
  return {name for name in os.listdir(folder) if name.endswith("-cache")}


def link(source: Path, target: Path) -> None:
  """The file under another name, at once or not at all."""
  try:
    os.link(source, target)
  except (FileExistsError, FileNotFoundError):
    pass  # Another process was there first, to give it or to make room.
  except OSError:  # On another disk.
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
      file.write(source.read_bytes())
    os.replace(file.name, target)


def whole(path: Path) -> bool:
  """Whether an entry was written to its end."""
  try:
    zlib.decompress(path.read_bytes())
  except (OSError, zlib.error):
    return False
  return True


def take(store: Path, folder: Path) -> None:
  """Puts into the folder what the store has."""
  for name in entries(store) - entries(folder):
    link(store / name, folder / name)


def give(folder: Path, store: Path) -> None:
  """Puts into the store what was compiled into the folder, if it is whole."""
  for name in entries(folder) - entries(store):
    if whole(folder / name):
      link(folder / name, store / name)


def make_room(store: Path) -> None:
  """Empties a store that is above its limit, the oldest entries first."""
  files = [(path.stat(), path) for path in store.iterdir()]
  size = sum(stat.st_size for stat, _ in files)
  if size <= LIMIT:
    return
  for stat, path in sorted(files, key=lambda file: file[0].st_mtime):
    if size > LIMIT // 2:
      path.unlink(missing_ok=True)
      size -= stat.st_size
