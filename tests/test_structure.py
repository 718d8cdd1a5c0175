"""The arrows between rooms point one way, and each library has one owner.

A room is a folder of the package or a module at its top level.
"""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cpeal_jax"
# What each room may import besides itself, from the ground up.
GROUND = {"errors", "keys", "progress"}
MAY_IMPORT = {
  "errors": set(),
  "keys": set(),
  "progress": {"errors"},
  # What the commands share; they may start before slow imports.
  "command_line": GROUND,
  "losses": set(),
  "metrics": {"losses"},
  "storage": GROUND,
  "parallel": GROUND,
  "data": GROUND,
  # What people bring is read in data.
  "labeling": GROUND | {"data", "storage"},
  "models": GROUND | {"data"},
  "quickstart": GROUND | {"data", "models"},
  "neighbors": GROUND | {"parallel"},
  "acquisition": GROUND | {"parallel"},
  "audit": {"errors"},
  "scoring": {"models", "neighbors", "parallel"},
  "training": GROUND | {"data", "losses", "models", "parallel"},
  "config": {
    "acquisition",
    "data",
    "errors",
    "models",
    "neighbors",
    "parallel",
    "storage",
    "training",
  },
}
# The last floors may import everything below them.
UPPER = (
  *("run", "api", "rounds", "export", "predict", "certify"),
  *("report", "main", "label", "cli"),
)
# Whoever may name a library; a folder stands for all of its modules.
ONLY_IN = {
  "ml_collections": {"config", "run", "export", "main"},
  "orbax": {"storage.checkpoint"},
}
# With the commands, each of which `python -m cpeal_jax.NAME` has to find.
TOP_LEVEL = 30


def name_of(path):
  parts = path.relative_to(PACKAGE).with_suffix("").parts
  return ".".join(part for part in parts if part != "__init__")


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {name_of(path) for path in FILES} - {""}


def imported(path):
  """The full names that a file imports, of modules and of what is in them."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: absolute imports only"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(path):
  """The package's modules that a file imports, the finest that are named."""
  for full in imported(path):
    inner = full.removeprefix(f"{PACKAGE.name}.")
    if inner == full:
      continue
    while inner not in MODULES and "." in inner:
      inner = inner.rpartition(".")[0]
    if inner in MODULES:
      yield inner


def room(module):
  return module.partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path):
  me = room(name_of(path))
  if not me:
    return
  if me in UPPER:
    allowed = {*MAY_IMPORT, *UPPER[: UPPER.index(me)]}
  else:
    allowed = MAY_IMPORT[me]
  for module in own_modules(path):
    assert room(module) in {me, *allowed}, f"{me} must not import {module}"


def test_rooms_are_in_order():
  """So the table itself has no circle."""
  order = tuple(graphlib.TopologicalSorter(MAY_IMPORT).static_order())
  assert {*order} == {*MAY_IMPORT}
  assert {room(module) for module in MODULES} == {*MAY_IMPORT, *UPPER}


def test_no_two_files_import_each_other():
  graph = {name_of(path): {*own_modules(path)} for path in FILES}
  tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_library_has_one_owner(path):
  me = name_of(path)
  for full in imported(path):
    owners = ONLY_IN.get(full.partition(".")[0])
    assert owners is None or {me, room(me)} & owners, f"{full}: {owners}"


def test_only_the_table_knows_every_method():
  methods = {m for m in MODULES if m.startswith("acquisition.methods.")}
  # CEC's neighbor uncertainty is a column of every method's scores.
  cec = {"acquisition.methods.cec"}
  allowed = {"acquisition.table": methods}
  allowed |= {"acquisition": cec, "acquisition.choice": cec}
  # Their words are choices of settings.
  names = ("bald", "featdist", "uherding")
  words = {f"acquisition.methods.{name}" for name in names}
  allowed["config.keys"] = cec | words
  for path in FILES:
    me = name_of(path)
    if me in methods:
      continue
    assert {*own_modules(path)} & methods <= allowed.get(me, set()), me


def test_storage_needs_no_jax_but_for_checkpoints():
  for path in (PACKAGE / "storage").glob("*.py"):
    if path.stem.startswith("checkpoint"):
      continue
    assert not {"jax", "flax"} & {x.partition(".")[0] for x in imported(path)}


def test_labeling_needs_no_jax():
  """Nor does anything that it imports, so a page of it starts at once."""
  names = sorted(m for m in MODULES if m.startswith("labeling."))
  code = "".join(f"import cpeal_jax.{name}\n" for name in names)
  code += "import sys; sys.exit('jax' in sys.modules)"
  assert len(names) > 10
  assert (
    subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
  )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_prints_or_draws_globally(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Call):
      call = ast.unparse(node.func)
      assert call != "print" or name_of(path) == "quickstart.pretrain"
      if call.startswith("np.random."):
        assert call.startswith("np.random.default_rng"), call


def test_only_sharding_names_a_mesh_axis():
  for path in FILES:
    if name_of(path) != "parallel.sharding":
      assert "PartitionSpec" not in path.read_text(), path


def test_test_modules_import_no_other():
  """So that a mark or a name may leave any of them out."""
  for path in Path(__file__).parent.glob("test_*.py"):
    others = [x for x in imported(path) if x.startswith("test_")]
    assert not others, f"{path.name}: {others} belong in tests/runs.py"


def test_the_top_level_is_one_screen():
  entries = {
    path.name
    for path in PACKAGE.iterdir()
    if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__")
  }
  assert len(entries) <= TOP_LEVEL, sorted(entries)


def test_the_map_names_every_module():
  """`docs/design.md`'s map and the tree hold the same."""
  text = (ROOT / "docs" / "design.md").read_text()
  drawn = re.search(r"## The map\n.*?```\n(.*?)```", text, re.S).group(1)
  named, folder = set(), ""
  for line in drawn.splitlines():
    words = line.partition("#")[0].split()
    if words and not line.startswith(" "):
      folder = "" if words[0] == "." else words[0].replace("/", ".")
      del words[0]
    named |= {folder + word for word in words}
  folders = {
    module
    for module in MODULES
    if (PACKAGE / module.replace(".", "/")).is_dir()
  }
  assert named == MODULES - folders
