"""What the documents promise is what is run."""

import re
from pathlib import Path

import contract
import numpy as np

from cpeal_jax import acquisition, config
from cpeal_jax.data import catalogue
from cpeal_jax.parallel import rowwise

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_ci_calls_the_readme_test_command():
  (command,) = [
    line for line in README.splitlines() if line.endswith("-m pytest")
  ]
  assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_readme_names_keys_and_values_that_exist():
  rows = [line for line in README.splitlines() if line.startswith("| `")]
  named = [word for row in rows for word in row.split("|")[1].split("`")[1::2]]
  keys = [word for word in named if "." in word and "/" not in word]
  assert len(keys) > 8
  assert set(keys) <= set(config.NAMES)
  for key in config.KEYS:
    words = getattr(key.allowed, "words", ())
    for row in rows:
      if f"`{key.name}`" in row.split("|")[1]:
        assert all(f"`{word}`" in row for word in words if word), key.name


def test_the_readmes_library_example_runs(capsys):
  (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
  exec(code, {})
  # What the quickstart's own zero-shot row says.
  assert capsys.readouterr().out == "zero-shot 0.65\n"


def test_the_example_method_keeps_the_contract(monkeypatch):
  """The six lines of docs/acquisition.md, run as a reader would."""
  page = (ROOT / "docs" / "acquisition.md").read_text()
  code, line = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:2]
  body = code[code.index('"""\n') + 4 :]
  assert len(body.splitlines()) + 2 <= 6
  names = ("Picks", "best", "selector")
  scope = {name: getattr(acquisition, name) for name in names}
  scope["rowwise"] = rowwise
  exec(code, scope)
  table = eval("{" + line + "}", scope)
  ((name, method),) = table.items()
  monkeypatch.setitem(acquisition.ACQUISITIONS, name, method)
  for rule in contract.RULES:
    for n in (1, 10, contract.CANDIDATES):
      contract.exactly_n_unlabeled(name, rule, n)
    contract.every_pick_is_explained(name, rule)
    contract.same_picks_on_devices(name, rule, 8)
    contract.minimum_distance(name, rule)
  contract.permuting_the_pool_permutes_the_picks(name)
  contract.preselection_offers_only_its_best(name)
  pool = contract.make_pool()
  mean = pool.features.mean(axis=0)
  want = np.argsort(-(pool.features @ mean) + 9 * pool.labeled)[:10]
  np.testing.assert_array_equal(contract.choose(name, pool, 10), want)


def test_the_table_of_data_sets_is_the_catalogue():
  page = (ROOT / "docs" / "datasets.md").read_text()
  for name, entry in catalogue.CATALOGUE.items():
    facts, files = (
      [cell.strip() for cell in line.strip("|").split("|")]
      for line in page.splitlines()
      if line.startswith(f"| `{name}` |")
    )
    counts = " / ".join(f"{n:,}" for n in entry.papers or ()) or "-"
    classes = f"{len(catalogue.classes(name)):,}"
    assert facts[1:4] == [classes, entry.template, counts]
    for _, split, count in entry.splits:
      assert f"{split} {count:,}" in facts[4]
    assert entry.tfds in facts[4]
    assert facts[5] == entry.terms
    assert files[1:] == [f"`{entry.layout}`", entry.get]
