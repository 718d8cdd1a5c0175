"""The arrows between modules point one way, and each library has one owner."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cpeal_jax"
LEAVES = {"errors", "keys"}
DATA = {f"data.{name}" for name in ("files", "images", "pools")}
# Methods stand on these; only the table knows the methods.
ACQUISITION = {
  f"acquisition.{name}"
  for name in ("pool", "scores", "selectors", "kmeans", "coreset")
}
METHODS = {
  f"acquisition.{name}"
  for name in (
    "alfa_mix",
    "badge",
    "cec",
    "clustering",
    "featdist",
    "gcnal",
    "passes",
    "probcover",
    "typiclust",
  )
}
CHOICE = {
  f"acquisition.{name}" for name in ("balance", "choice", "table", "wrappers")
}
TOWERS = {"models.resnet", "models.transformer"}
SIZES = {"models.clip"} | TOWERS
MODELS = {f"models.{name}" for name in ("adapters", "clip", "classifier")}
CLASSIFIERS = {"models.classifier", "models.linear"}
MAY_IMPORT = {
  "errors": set(),
  "keys": set(),
  "settings": set(),
  "progress": set(),
  "files": {"errors"},
  "lease": {"errors", "files", "progress"},
  "workdir": {"errors", "files", "lease"},
  "record": {"errors", "files"},
  "checkpoint_objects": {"errors", "files"},
  "checkpoint": {"errors", "files", "checkpoint_objects"},
  "oracle": {"errors"},
  "sharding": {"errors"},
  "spmd": {"sharding"},
  "losses": set(),
  "metrics": {"losses"},
  "acquisition": ACQUISITION | METHODS | CHOICE,
  "acquisition.pool": {"sharding"},
  "acquisition.balance": set(),
  "acquisition.kmeans": {"spmd"},
  "acquisition.wrappers": {"spmd", "acquisition.pool"},
  **dict.fromkeys(
    ACQUISITION - {"acquisition.pool", "acquisition.kmeans"},
    {"errors", "spmd"} | ACQUISITION,
  ),
  **dict.fromkeys(METHODS, {"errors", "spmd"} | ACQUISITION),
  "acquisition.cec": {"errors", "spmd", "acquisition.clustering"} | ACQUISITION,
  "acquisition.alfa_mix": {"errors", "spmd", "acquisition.featdist"}
  | ACQUISITION,
  **dict.fromkeys(
    ("acquisition.typiclust", "acquisition.gcnal"),
    {"errors", "sharding", "spmd"} | ACQUISITION,
  ),
  "acquisition.table": ACQUISITION | METHODS,
  "acquisition.choice": {"errors", "spmd", "acquisition.cec"}
  | ACQUISITION
  | CHOICE,
  "neighbors": {"errors", "sharding", "spmd"},
  "data.images": {"errors"},
  "data.pools": {"errors", "data.images"},
  "data.files": {"errors"} | DATA,
  "data.coop": {"errors"} | DATA,
  "data.folders": {"errors"} | DATA,
  "data.digits": {"errors"} | DATA,
  "data.catalogue": {"errors"},
  "data.prepare": {"errors", "progress", "data.catalogue"},
  "data.records": {"errors", "data.catalogue"} | DATA,
  "data.tfds_sets": {"errors", "data.catalogue", "data.coop"}
  | {"data.prepare", "data.records"}
  | DATA,
  "data.aircraft": {"errors"} | DATA,
  "data.imagenet": {"errors", "data.catalogue", "data.folders"} | DATA,
  "data.aptos": {"errors", "data.catalogue"} | DATA,
  "data.cache": set(),
  "data.workers": {"data.images"},
  "data.store": {"errors", "data.cache", "data.workers"} | DATA,
  "data.augment": {"errors"} | DATA,
  "data.batches": LEAVES | DATA | {"data.augment", "data.workers"},
  "models.adapters": {"errors"},
  "models.resnet": {"models.adapters"},
  "models.transformer": {"models.adapters"},
  "models.clip": {"errors", "models.adapters"} | TOWERS,
  "models.text": {"errors", "models.adapters"},
  "models.hub": {"errors"},
  "models.tensors": {"errors"},
  "models.naming": SIZES | {"models.tensors"},
  "models.open_clip": {"errors"} | SIZES,
  "models.weights": {"errors", "models.hub", "models.tensors"}
  | {"models.naming", "models.open_clip"}
  | SIZES,
  "models.dinov2": {"errors", "models.adapters", "models.transformer"},
  "models.dinov2_weights": {"models.dinov2", "models.hub", "models.tensors"},
  "models.linear": MODELS | {"models.dinov2"},
  "models.weights_out": SIZES
  | {"models.adapters", "models.naming", "models.tensors"},
  "models.classifier": MODELS | {"models.text"},
  "models.descriptors": {"errors", "models.text"},
  "models.loss_head": set(),
  "quickstart": set(),
  "quickstart.glyphs": LEAVES | {"data.digits"},
  "quickstart.tokenizer": LEAVES | {"quickstart", "quickstart.glyphs"},
  "quickstart.pretrain": LEAVES
  | DATA
  | MODELS
  | {"models.text", "models.weights", "models.weights_out", "data.digits"}
  | {"models.transformer"}
  | {"quickstart", "quickstart.glyphs", "quickstart.tokenizer"},
  "distributed": {"errors", "progress"},
  "scoring": {"sharding", "neighbors"} | CLASSIFIERS,
  "evaluation": {"metrics"},
  "stochastic": {"scoring", "sharding", "spmd"} | CLASSIFIERS,
  "ahead": LEAVES
  | {"recipe", "scoring", "sharding", "training", "data.batches"},
  "recipe": {"models.loss_head"},
  "objective": {"losses", "recipe", "spmd", "models.loss_head"} | CLASSIFIERS,
  "training": LEAVES
  | {"losses", "objective", "recipe", "sharding", "data.batches"}
  | {"models.loss_head"}
  | CLASSIFIERS,
}
# From here on a config may be read.
DRIVERS = (
  "config",
  "presets",
  "sources",
  "plan",
  "build",
  "frozen",
  "describe",
  "stages",
  "fitting",
  "trajectory",
  "finished",
  "api",
  "export",
  "main",
)
ONLY_IN = {
  "ml_collections": set(DRIVERS) - {"api"},
  "orbax": {"checkpoint"},
}
FILES = sorted(
  path
  for path in PACKAGE.rglob("*.py")
  if path.name != "__init__.py" or path.stat().st_size > 200
)


def name_of(path):
  parts = path.relative_to(PACKAGE).with_suffix("").parts
  return ".".join(part for part in parts if part != "__init__")


def imported(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "absolute imports only"
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path):
  me, modules = name_of(path), {name_of(p) for p in FILES} - {""}
  tree = ast.parse(path.read_text())
  for full in imported(tree):
    inner = full.removeprefix(f"{PACKAGE.name}.")
    if inner != full and inner in modules:
      if me in DRIVERS:
        later = DRIVERS[DRIVERS.index(me) :]
        assert inner not in later, f"{me} must not import {inner}"
      elif me:
        assert inner in MAY_IMPORT[me], f"{me} must not import {inner}"
    owners = ONLY_IN.get(full.split(".")[0])
    assert owners is None or me in owners, f"{full} belongs in {owners}"


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
    if name_of(path) != "sharding":
      assert "PartitionSpec" not in path.read_text(), path
