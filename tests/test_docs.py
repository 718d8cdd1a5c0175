"""What the documents promise is what is run."""

from pathlib import Path

from cpeal_jax import config

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
  for name, choices in config.CHOICES.items():
    for row in rows:
      if f"`{name}`" in row.split("|")[1]:
        assert all(f"`{choice}`" in row for choice in choices), name
