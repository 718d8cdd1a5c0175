"""Two processes as one run, with their own devices, by main's own flags."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cpeal_jax import main
from cpeal_jax.errors import InputError
from cpeal_jax.parallel import processes

HERE = Path(__file__).parent


def free_port():
  with socket.socket() as found:
    found.bind(("localhost", 0))
    return found.getsockname()[1]


class Group:
  """The processes of one run; all are ended with the block."""

  def __init__(
    self, cache, processes, devices, *flags, started=None, own=(), code=None
  ):
    environment = os.environ | {
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
      "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
    }
    port, self.children = free_port(), []
    for i in range(processes if started is None else started):
      together = [
        f"--coordinator=localhost:{port}",
        f"--processes={processes}",
        f"--process={i}",
      ]
      command = [
        sys.executable,
        *(("-c", code) if code else ("-m", "cpeal_jax.main")),
        "--config=configs/quickstart.py",
        "--config.rounds=2",
        "--config.train.epochs=4",
        f"--config.cache_dir={cache}",
        *(together if processes > 1 else ()),
        *flags,
        *(own if i else ()),
      ]
      child = subprocess.Popen(
        command,
        cwd=HERE.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      self.children.append(child)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for child in self.children:
      with contextlib.suppress(OSError):
        child.kill()
      child.communicate()

  def wait(self):
    """(exit code, output, errors) of each."""
    answers = []
    for child in self.children:
      out, err = child.communicate(timeout=300)
      answers.append((child.returncode, out, err))
    return answers


@pytest.fixture(scope="module")
def cache(compiled):
  return compiled.parent


@pytest.fixture(scope="module")
def alone(cache, tmp_path_factory):
  """One process, one device."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  with Group(cache, 1, 1, f"--workdir={workdir}") as group:
    ((code, _, err),) = group.wait()
  assert code == 0, err
  return workdir


def ids(workdir):
  texts = [
    p.read_text() for p in sorted(workdir.glob("rounds/*/selection.csv"))
  ]
  return [
    [line.split(",")[0] for line in text.splitlines()[1:]] for text in texts
  ]


def rows(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def same(workdir, alone):
  """Selections equal; proper scores to 1e-4, since gradients are summed."""
  assert ids(workdir) == ids(alone)
  for got, want in zip(rows(workdir), rows(alone), strict=True):
    for name in ("nll", "brier"):
      assert got[name] == pytest.approx(want[name], rel=1e-4)
  # Round 0 was scored by the pretrained model on all: bit for bit.
  first = "rounds/000/scores.parquet"
  got, want = (pq.read_table(path / first) for path in (workdir, alone))
  assert got.equals(want)


def test_the_launcher_runs_two_processes_of_two_devices(cache, alone, tmp_path):
  """The real main under local.sh; tests/test_launch.py has stand-ins."""
  workdir = tmp_path / "run"
  environment = os.environ | {
    "PYTHON": sys.executable,
    "XLA_FLAGS": "",
    "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
  }
  done = subprocess.run(
    [
      *("launch/local.sh", "--devices=2", "2", "--"),
      "--config=configs/quickstart.py",
      "--config.rounds=2",
      "--config.train.epochs=4",
      f"--config.cache_dir={cache}",
      f"--config.profile={tmp_path / 'profile'}",
      f"--workdir={workdir}",
    ],
    cwd=HERE.parent,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert "process 0 of 2, process 0 at 127.0.0.1:" in done.stdout
  assert "4 cpu devices" in done.stdout
  # The other one says where it is, and nothing more.
  quiet = (tmp_path / "run.logs/process-1.log").read_text()
  # Gloo's threads write at once, so its lines come in pieces.
  gloo = (
    r"\[Gloo\] Rank|is connected to|peer ranks\.|"
    r"Expected number of connected peer ranks is :"
  )
  noise = re.compile(rf"(?:{gloo}|\d+|\s)*")
  own = [line for line in quiet.splitlines() if not noise.fullmatch(line)]
  assert len(own) == 1, own
  assert own[0].startswith("process 1 of 2")
  for i in range(2):
    traces = f"profile/process{i}/plugins/profile/*/*.xplane.pb"
    assert len(list(tmp_path.glob(traces))) == 1
  same(workdir, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("before", "after"), [((2, 1), (1, 1)), ((1, 1), (2, 2))], ids=str
)
def test_preempted_together_and_resumed_on_another_shape(
  cache, alone, tmp_path, before, after
):
  """SIGTERM at the last of them; the others save and stop with it."""
  workdir = tmp_path / "run"
  with Group(cache, *before, f"--workdir={workdir}") as group:
    while not (workdir / "rounds/000/SELECTED").exists():
      assert all(child.poll() is None for child in group.children)
      time.sleep(0.05)
    group.children[-1].send_signal(signal.SIGTERM)
    answers = group.wait()
  assert {code for code, _, _ in answers} == {75}, answers
  with Group(cache, *after, f"--workdir={workdir}") as group:
    answers = group.wait()
  assert {code for code, _, _ in answers} == {0}, answers
  same(workdir, alone)


ANCHORED = (
  *("--config.adapter.kind=anchored", "--config.loss.calibration=none"),
  *("--config.round0=pool", "--config.acquisition.name=uherding"),
  *("--config.acquisition.balance=off", "--config.train.augment=False"),
)


def test_an_anchored_head_on_two_processes(cache, tmp_path):
  """The head is solved on each; the sums over the pool are those of one."""
  answers = []
  for processes_, devices in ((1, 1), (2, 2)):
    workdir = tmp_path / str(processes_)
    flags = f"--workdir={workdir}", *ANCHORED
    with Group(cache, processes_, devices, *flags) as group:
      for code, _, err in group.wait():
        assert code == 0, err
    answers.append((ids(workdir), [row["nll"] for row in rows(workdir)]))
  assert answers[0][0] == answers[1][0]
  np.testing.assert_allclose(answers[0][1], answers[1][1], rtol=1e-5)


def test_a_mistake_ends_all_with_its_line(cache, tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "thesis.tex").write_text("mine")
  with Group(cache, 2, 1, f"--workdir={tmp_path / 'run'}") as group:
    answers = group.wait()
  for code, _, err in answers:
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(lines) == 1
    assert "thesis.tex" in lines[0]


def test_two_processes_wait_for_a_person_and_go_on(cache, tmp_path):
  workdir = tmp_path / "run"
  flags = (
    f"--workdir={workdir}",
    *("--config.oracle.kind=files", "--config.oracle.audit=3"),
    *("--config.adapter.kind=anchored", "--config.loss.calibration=none"),
    *("--config.train.augment=False", "--config.rounds=1"),
  )
  with Group(cache, 2, 1, *flags) as group:
    answers = group.wait()
  assert [code for code, _, _ in answers] == [main.WAITING] * 2, answers
  table = workdir / "rounds/000/to_label.csv"
  lines = table.read_text().splitlines()
  assert len(lines) == 14
  table.write_text("\n".join([lines[0], *(f"{x}one" for x in lines[1:])]))
  with Group(cache, 2, 1, *flags) as group:
    answers = group.wait()
  assert [code for code, _, _ in answers] == [main.FINISHED] * 2, answers
  assert rows(workdir)[-1]["labeled"] == 10


@pytest.mark.slow
def test_a_mistake_of_one_ends_the_others(cache, tmp_path):
  """Neither waits for the other in a pass that it will not enter."""
  flags = (f"--workdir={tmp_path / 'run'}",)
  wrong = ("--config.model.weights=/absent",)
  with Group(cache, 2, 1, *flags, own=wrong) as group:
    (code, _, err), (other, _, why) = group.wait()
  assert (code, other) == (1, 2)
  assert "error: another process failed" in err
  assert "error: model.weights: there is no directory /absent" in why
  with Group(cache, 2, 1, *flags, own=("--config.seed=2",)) as group:
    answers = group.wait()
  for code, _, err in answers:
    assert code == 2, err
    assert "started with different settings or data" in err
  assert not (tmp_path / "run").exists()


BROKEN = """
import sys
from cpeal_jax import main, scoring
def broken(*_, **__):
  raise OSError(5, "one disk alone")
if "--process=1" in sys.argv:
  scoring.encode_pool = broken
sys.exit(main.main(sys.argv))
"""


@pytest.mark.slow
def test_a_failure_that_the_others_cannot_know_of_ends_them(cache, tmp_path):
  """They wait in a pass that the failed one never enters."""
  # A cache of its own, so that there is something to encode.
  flags = (f"--workdir={tmp_path / 'run'}", f"--config.cache_dir={tmp_path}")
  start = time.monotonic()
  with Group(cache, 2, 1, *flags, code=BROKEN) as group:
    (code, _, _), (other, _, why) = group.wait()
  assert code != 0
  assert other == 1
  assert "OSError: [Errno 5] one disk alone" in why
  assert time.monotonic() - start < 120


FULL = """
import resource, sys
import jax.numpy as jnp
from cpeal_jax.parallel import processes, sharding
from cpeal_jax.storage import checkpoint
words = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
processes.start(
  coordinator=words["coordinator"], processes=2, process=int(words["process"])
)
train = {"a": jnp.sin(jnp.arange(100_000.0))}
train = sharding.replicate(train, sharding.make_mesh())
if words["process"] == words["full"]:
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
  with checkpoint.Checkpoints(words["workdir"]) as checkpoints:
    checkpoints.save(0, 1, train, {})
    checkpoints.wait()
except Exception as error:
  print(type(error).__name__, error, flush=True)
  processes.leave(error, 2)
"""


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_of_one_is_told_at_once(cache, tmp_path, full):
  """Its save failed, and the other one waits for it within orbax."""
  flags = (f"--workdir={tmp_path / 'run'}", f"--full={full}")
  with Group(cache, 2, 1, *flags, code=FULL) as group:
    out, err = group.children[full].communicate(timeout=120)
  assert group.children[full].returncode == 2, err
  assert f"InputError cannot write {tmp_path / 'run'}: File too large." in out


def test_a_missing_peer_ends_the_run_in_time(cache, tmp_path):
  flags = (f"--workdir={tmp_path / 'run'}", "--start_timeout=3")
  start = time.monotonic()
  with Group(cache, 2, 1, *flags, started=1) as group:
    ((code, said, _),) = group.wait()
  assert code != 0
  assert "waits up to 3 s for the others" in said
  assert time.monotonic() - start < 60
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ({"processes": 2}, "go together"),
    ({"coordinator": "a:1", "processes": 2, "process": 2}, "it is 0 to 1"),
    ({"detect": True}, "did not find each other"),
    ({"coordinator": "junk", "processes": 2, "process": 1}, "HOST:PORT"),
    ({"coordinator": "a:b", "processes": 2, "process": 0}, "HOST:PORT"),
    ({"coordinator": "a:70000", "processes": 2, "process": 0}, "65535"),
    (
      {"coordinator": "a:1", "processes": 2, "process": 0, "timeout": 0},
      "at least 1 second",
    ),
    (
      {"coordinator": "a:1", "processes": 2, "process": 1, "timeout": -3},
      "at least 1 second",
    ),
    (
      {
        "coordinator": "127.0.0.1:1",
        "processes": 2,
        "process": 1,
        "timeout": 1,
      },
      "process 0 did not answer at 127.0.0.1:1 within 1 s",
    ),
  ],
  ids=str,
)
def test_flags_that_make_no_sense(given, words):
  with pytest.raises(InputError, match=words):
    processes.start(**given)


def test_alone_nothing_is_asked_of_others():
  assert processes.first(lambda x: (x,), 3) == (3,)
  assert processes.anywhere(True, False) == [True, False]
  assert processes.everywhere(True)
  processes.start()
  processes.stop()
