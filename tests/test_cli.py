"""The command `cpeal`, and the configs that it finds by name, path or run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cpeal_jax
from cpeal_jax import cli
from cpeal_jax import config as config_lib
from cpeal_jax.config import load, overrides, presets
from cpeal_jax.errors import InputError

ROOT = Path(__file__).parents[1]


def cpeal(*words, cwd):
  """The command in a folder that is no checkout."""
  return subprocess.run(
    [sys.executable, "-m", "cpeal_jax.cli", *words],
    cwd=cwd,
    env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    timeout=300,
  )


def test_version_is_the_packages(tmp_path):
  done = cpeal("--version", cwd=tmp_path)
  assert done.stdout == f"cpeal_jax {cpeal_jax.__version__}\n"
  assert done.returncode == 0


def test_help_names_every_command(tmp_path):
  done = cpeal("--help", cwd=tmp_path)
  assert done.returncode == 0
  assert all(f"cpeal {name}" in done.stdout for name in cli.COMMANDS)
  bare = cpeal(cwd=tmp_path)
  assert (bare.returncode, bare.stdout) == (2, done.stdout)


def test_a_mistyped_command_is_one_line(tmp_path):
  done = cpeal("swep", cwd=tmp_path)
  assert done.returncode == 2
  assert done.stderr.startswith("error: unknown command 'swep'")
  assert "Did you mean 'sweep'" in done.stderr
  assert len(done.stderr.splitlines()) == 1


def test_a_mistyped_option_is_one_line(tmp_path):
  done = cpeal("--verson", cwd=tmp_path)
  assert done.returncode == 2
  assert "Did you mean '--version'" in done.stderr
  assert len(done.stderr.splitlines()) == 1
  for words in (["--seeds=1"], ["--configs=quickstart", "--jobs=x"], ["-q"]):
    done = cpeal("sweep", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_commands_pass_their_words_on(tmp_path):
  done = cpeal("run", "--config=quickstart", "--dry_run", cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert "runs/quickstart/cpeal_lora/seed1" in done.stdout
  done = cpeal("export", "nowhere", "--format=peft", "--to=x", cwd=tmp_path)
  assert done.returncode == 2
  assert done.stderr.startswith("error: nowhere is no workdir")
  words = ("--configs=quickstart", "--seeds=1-2", "--dry_run")
  done = cpeal("sweep", *words, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert len(done.stdout.splitlines()) == 2
  assert list(tmp_path.iterdir()) == []


def test_public_names_and_short_reprs():
  assert dir(cpeal_jax) == sorted(cpeal_jax.__all__)
  for name in cpeal_jax.__all__:
    assert getattr(cpeal_jax, name)


# --- Configs


def test_a_name_and_a_path_are_the_same_config():
  by_name = load.load("eurosat:cec")
  by_path = load.load(f"{ROOT / 'configs' / 'eurosat.py'}:cec")
  assert by_name.to_dict() == by_path.to_dict()
  assert by_name.variant == "cec"
  assert "quickstart" in load.named_configs()


def test_every_named_config_has_a_default():
  for name in load.named_configs():
    config_lib.validate(load.load(name))


@pytest.mark.parametrize(
  "variant", ["cpeal_lora", "cpeal_prompt", "pcb", "cec"]
)
def test_the_quickstarts_variants(variant):
  config = load.load(f"quickstart:{variant}")
  config_lib.validate(config)
  assert config.variant == variant
  assert config.dataset.layout == "digits"
  published = presets.preset("eurosat", variant)
  for key in ("adapter.kind", "loss.calibration", "acquisition.name"):
    section, _, leaf = key.partition(".")
    assert config[section][leaf] == published[section][leaf]


def test_a_workdirs_config_json_repeats_its_run(tmp_path):
  config = load.load("quickstart", ["--config.seed=7"])
  content = config.to_dict() | {"schema_version": 1}
  content["model"]["sha256"] = "0" * 64
  content["train"]["momentum"] = 0  # As other programs write 0.0.
  path = tmp_path / "config.json"
  path.write_text(json.dumps(content))
  again = load.load(str(path), ["--config.rounds=9"])
  config_lib.validate(again)
  assert (again.seed, again.rounds) == (7, 9)
  assert again.train.momentum == 0.0
  assert set(config_lib.flatten(again)) == set(config_lib.NAMES)


def test_overrides_are_read_by_the_type_of_the_key():
  words = ["seed=3", "train.learning_rate=1", "train.augment=false", "budget=5"]
  config = load.load("quickstart", [f"--config.{word}" for word in words])
  assert (config.seed, config.train.learning_rate) == (3, 1.0)
  assert (config.train.augment, config.budget) == (False, "5")


def test_keys_on_a_command_line():
  words = ["--workdir=w", "--config.seed", "-1", "--config.train.augment"]
  words += ["--noconfig.model.remat", "-config.rounds=2", "--dry_run"]
  others, changes = overrides.split([*words, "--", "--config.seed=3"])
  assert others == ["--workdir=w", "--dry_run", "--", "--config.seed=3"]
  assert changes == [
    "--config.seed=-1",
    "--config.train.augment=true",
    "--config.model.remat=false",
    "--config.rounds=2",
  ]
  for words, message in (
    (["--config.seed"], "give --config.seed=VALUE"),
    (["--config.seed", "--dry_run"], "give --config.seed=VALUE"),
    (["--config.sed"], "Did you mean 'seed'"),
    (["--noconfig.seed"], "give --config.seed=VALUE"),
    (["--noconfig.model.remat=1"], "give --config.model.remat=VALUE"),
  ):
    with pytest.raises(InputError, match=message):
      overrides.split(words)


def test_keys_that_a_file_does_not_mention_have_their_defaults(tmp_path):
  path = tmp_path / "few.py"
  path.write_text(
    "from ml_collections import ConfigDict\n\n"
    "def get_config():\n"
    "  return ConfigDict({'rounds': 3, 'train': {'learning_rate': 1}})\n"
  )
  config = load.load(str(path))
  assert (config.rounds, config.train.learning_rate) == (3, 1.0)
  assert set(config_lib.flatten(config)) == set(config_lib.NAMES)


def test_variants_of_every_named_config():
  assert load.variants("quickstart")[0] == "cpeal_lora"
  assert load.variants("aptos")[0] == "peal"
  for name in load.named_configs():
    for variant in load.variants(name):
      assert load.load(f"{name}:{variant}").variant == variant


GOOD = "from cpeal_jax.config import base\n\ndef get_config():\n  c = base()\n"


@pytest.mark.parametrize(
  ("text", "words"),
  [
    (GOOD + "  c.round = 2\n  return c\n", "Did you mean 'rounds'"),
    (GOOD + "  c.train.lr = 1.0\n  return c\n", "'train.lr'"),
    (GOOD + "  c.extra = {'a': {'b': 1}}\n  return c\n", "'extra.a.b'"),
    (GOOD + "  c.rounds = 'two'\n  return c\n", "line 5: TypeError"),
    (GOOD + "  return c.nothing\n", "line 5: AttributeError"),
    (GOOD + "  return {}\n", "returned dict, not a config"),
    (GOOD + "  return\n", "returned NoneType"),
    ("def get_config(:\n", "line 1: SyntaxError"),
    ("import nowhere_at_all\n", "line 1: ModuleNotFoundError"),
    ("x = 1\n", "no function get_config"),
    ("raise SystemExit\n", "line 1: SystemExit"),
    ("\x00", "SyntaxError"),
  ],
)
def test_an_error_in_a_config_file_is_one_line(tmp_path, text, words):
  path = tmp_path / "mine.py"
  path.write_text(text)
  with pytest.raises(InputError) as error:
    load.load(str(path))
  assert words in str(error.value)
  assert "\n" not in str(error.value)
  assert len(str(error.value)) < 400


@pytest.mark.parametrize(
  ("source", "words"),
  [
    ("eurosatt", "Did you mean 'eurosat'"),
    ("eurosat:cpeal_lore", "cpeal_lora"),
    ("mine.py:small", "takes no variant"),
    ("absent/config.json", "there is no such file"),
    ("a" * 300, "there is no such file"),
    ("a/" * 3000 + "b.py", "there is no such file"),
    ("config.json", "no config.json of a workdir"),
    ("broken.json", "is not JSON"),
    ("edited.json", "rounds is 'abc'"),
    ("typo.json", "Did you mean 'seed'"),
    ("folder", "no file but a directory; give a file"),
    ("run", "give --config=run/config.json"),
    ("needy.py", "needs a variant"),
    ("gs://bucket/run", "give the config.json"),
    ("quickstart:peal", "needs a DINOv2"),
    ("binary.py", "binary.py: SyntaxError"),
    ("later.json", "has schema_version 9"),
    (".", "is no file"),
    ("mine.txt", "no Python file"),
  ],
)
def test_a_config_that_is_not_there_or_damaged(
  tmp_path, monkeypatch, source, words
):
  monkeypatch.chdir(tmp_path)
  Path("mine.py").write_text(GOOD + "  return c\n")
  Path("mine.txt").write_text(GOOD + "  return c\n")
  Path("config.json").write_text("[]")
  Path("broken.json").write_text("{" * 100_000)
  Path("edited.json").write_text('{"schema_version": 1, "rounds": "abc"}')
  Path("typo.json").write_text('{"schema_version": 1, "sed": 1}')
  Path("later.json").write_text('{"schema_version": 9}')
  Path("needy.py").write_text(GOOD.replace("()", "(variant)", 1))
  Path("binary.py").write_bytes(b"\0\xff")
  Path("folder").mkdir()
  Path("run").mkdir()
  Path("run/config.json").write_text("{}")
  with pytest.raises(InputError) as error:
    load.load(source)
  assert words in str(error.value)
  assert "\n" not in str(error.value)
