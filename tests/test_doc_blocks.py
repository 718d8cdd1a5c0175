"""Each command and piece of code in the documents is run, or says why not."""

import os
import re
import shlex
import subprocess
import sys

import doc_blocks
import pytest
from doc_blocks import BLOCKS, ROOT, RUN_HERE

from cpeal_jax import acquisition, config
from cpeal_jax.config import load

SHELL = [block for block in BLOCKS if block.language != "python"]
PYTHON = [block for block in BLOCKS if block.language == "python"]
RUN_ON = sorted({block.page for block in RUN_HERE})
# Files with the flags of commands: the package's own, and of what lies beside.
WITH_FLAGS = ("cpeal_jax", "launch", "experiments", "benchmarks")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  """A folder with the commands `cpeal` and `python` of this environment."""
  folder = tmp_path_factory.mktemp("bin")
  for name, words in (("python", ""), ("cpeal", "-m cpeal_jax.cli ")):
    file = folder / name
    file.write_text(
      f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words}"$@"\n'
    )
    file.chmod(0o755)
  return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_ON)
def test_the_blocks_of_a_page_run(page, path, env, tmp_path, monkeypatch):
  """One after the other, in one folder, as a reader would."""
  monkeypatch.chdir(tmp_path)
  # A method that an example adds is there for the example alone.
  methods = dict(acquisition.ACQUISITIONS)
  scope = {}
  try:
    for block in RUN_HERE:
      if block.page == page:
        run(block, scope, path, env)
  finally:
    acquisition.ACQUISITIONS.clear()
    acquisition.ACQUISITIONS.update(methods)


def run(block, scope, path, env):
  if block.language == "python":
    exec(compile(block.text, str(block), "exec"), scope)
    return
  done = subprocess.run(
    ["bash", "-euo", "pipefail", "-c", block.text],
    env=os.environ
    | env
    | {
      "PATH": f"{path}:{os.environ['PATH']}",
      "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
      "XDG_CACHE_HOME": "cache",
      "XLA_FLAGS": "",
    },
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, f"{block}: {done.stdout}{done.stderr}"


def test_some_blocks_of_each_kind_are_run():
  assert {"docs/quickstart.md", "docs/extending.md"} <= {*RUN_ON}
  assert {block.language for block in RUN_HERE} == {"sh", "python"}
  assert len(BLOCKS) > 70


def test_the_named_tests_exist():
  for block in BLOCKS:
    if block.test:
      file, name = block.test
      text = (ROOT / file).read_text()
      assert re.search(rf"^def {name}\(", text, re.M), f"{block}: {block.test}"


def test_a_reason_is_a_reason():
  for block in BLOCKS:
    assert not block.reason or len(block.reason.split()) > 2, block
  records = {page for page in doc_blocks.RECORDS if not (ROOT / page).exists()}
  assert not records


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_is_python(block):
  text = block.text
  # A line of a table.
  compile("{" + text + "}" if text.startswith("  ") else text, "", "exec")


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_what_a_command_names_exists(block):
  """Scripts, configs, settings and flags: also where the command is not run."""
  text = block.text.replace("\\\n", " ")
  text = re.sub(r"<<'(\w+)'\n.*?\n\1\n", "\n", text, flags=re.S)
  for script in re.findall(
    r"\b(?:python|sbatch) ([\w/.]+\.(?:py|sbatch))", text
  ):
    own = f"{script} <<" in block.text or f"> {script}" in block.text
    assert own or (ROOT / script).is_file(), f"{block}: {script}"
  for module in re.findall(r"python -m (cpeal_jax[\w.]*)", text):
    source = ROOT / module.replace(".", "/")
    assert source.is_dir() or source.with_suffix(".py").is_file(), module
  for name in re.findall(r"--config=([\w/.:]+)", text):
    if name.strip("."):
      _load_config(name, block)
  for key in re.findall(r"--(?:set=|config\.)([a-z][\w.]*)=", text):
    assert key in config.NAMES, f"{block}: {key}"
  known = _flags()
  for flag in re.findall(r"(?<=\s)--([a-z][a-z_-]*)(?=[=\s]|$)", text):
    if flag not in ("config", "no-deps"):
      assert flag in known, f"{block}: --{flag}"


def _load_config(name, block):
  if name.startswith("leaves.py"):  # The page's own example.
    return
  path = name if "/" not in name else str(ROOT / name)
  assert load.load(path, []), f"{block}: {name}"


def _flags():
  """Every word that a program here takes behind two dashes."""
  text = "\n".join(
    path.read_text()
    for folder in WITH_FLAGS
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".sh", ".sbatch")
  )
  words = re.findall(r"--([a-z][a-z_-]*)", text)
  # absl names a flag without the dashes.
  return {*words, *re.findall(r'^  *"([a-z_]+)",?$', text, re.M), "help"}
