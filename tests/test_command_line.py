"""What the commands share: arguments, errors in one line, exit codes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from cpeal_jax import command_line, errors

COMMANDS = ("predict", "certify", "export", "label", "sweep")


def guarded(error):
  def run(_):
    raise error

  return command_line.guarded(run, ["cpeal"])


@pytest.mark.parametrize(
  ("error", "code", "line"),
  [
    (errors.InputError("give a number"), errors.USAGE, "give a number"),
    (errors.Failure("no loss is finite"), errors.FAILED, "no loss is finite"),
    (
      PermissionError(13, "Permission denied", "a/b"),
      errors.FAILED,
      "a/b: Permission denied",
    ),
    (
      RuntimeError("RESOURCE_EXHAUSTED: 3\nGB"),
      errors.FAILED,
      "out of memory (RESOURCE_EXHAUSTED: 3 GB): lower train.batch, "
      "scoring.tile or the number of prompts, or set model.remat=True.",
    ),
  ],
)
def test_what_a_user_can_mend_is_one_line(error, code, line, capsys):
  assert guarded(error) == code
  assert capsys.readouterr().err == f"error: {line}\n"


def test_an_error_of_the_program_has_its_traceback(capsys):
  assert guarded(KeyError("x")) == errors.FAILED
  said = capsys.readouterr().err
  assert said.startswith("Traceback")
  assert "in guarded" in said
  assert said.endswith("KeyError: 'x'\n")


def test_ctrl_c_has_no_traceback(capsys):
  assert guarded(KeyboardInterrupt()) == errors.INTERRUPTED
  assert capsys.readouterr().err == "interrupted\n"


def test_arguments_are_not_abbreviated():
  parser = command_line.Parser("cpeal x", "About it.")
  command_line.add_round(parser)
  assert parser.parse_args(["--round=3"]).round == 3
  with pytest.raises(errors.InputError, match="cpeal x --help") as caught:
    parser.parse_args(["--rou=3"])
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_argument_names_the_help(command):
  done = subprocess.run(
    [sys.executable, "-m", "cpeal_jax.cli", command, "--nothing"],
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout) == (errors.USAGE, "")
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: ")
  assert line.endswith(f"`cpeal {command} --help` explains the command.")


def test_ctrl_c_while_a_command_is_imported(tmp_path):
  # Where jax is first imported, the test waits.
  (tmp_path / "jax.py").write_text(
    "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
  )
  child = subprocess.Popen(
    [sys.executable, "-m", "cpeal_jax.cli", "predict", "x"],
    env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert child.stdout.readline() == "importing\n"
  begun = time.monotonic()
  child.send_signal(signal.SIGINT)
  _, err = child.communicate(timeout=60)
  assert time.monotonic() - begun < 10
  assert (child.returncode, err) == (errors.INTERRUPTED, "interrupted\n")
