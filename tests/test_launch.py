"""launch/: dry runs say what would run; failures, resumes and stops as said."""

import argparse
import csv
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import made_runs
import pytest
import yaml
from etils import epath

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
# What stands in for cpeal_jax.main under local.sh: `--doI=WHAT` for process I.
PROCESS = """
import signal, sys, time
words = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
me = words["process"]
what = words.get("do" + me, "0")
print("process", me, "of", words["processes"], flush=True)
if what == "saves":
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  print("ready", flush=True)
  time.sleep(60)
if what == "hangs":
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  time.sleep(60)
print("the end of", me, flush=True)
sys.exit(int(what))
"""
# And under sweep.py: plan.json has, by seed, the exit code of each attempt. An
# attempt adds a round; 0 adds what is left.
RUN = """
import json, pathlib, sys, time
words = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
seed, folder = words["config.seed"], pathlib.Path(words["workdir"])
codes = json.loads(pathlib.Path("plan.json").read_text())[seed]
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.json").write_text("{}")
count, rows = folder / "count", folder / "metrics.jsonl"
attempt = int(count.read_text()) if count.exists() else 0
count.write_text(str(attempt + 1))
print("attempt", attempt, flush=True)
code = codes[attempt]
if code == "sleeps":
  time.sleep(60)
if code in (0, 75):
  first = len(rows.read_text().splitlines()) if rows.exists() else 0
  with open(rows, "a") as file:
    for r in range(first, 3 if code == 0 else first + 1):
      line = {"round": r, "labeled": r, "accuracy": (r + 1) / 4}
      file.write(json.dumps(line) + "\\n")
if code == 2:
  print("error: no such data set", file=sys.stderr)
sys.exit(code)
"""


def stub(folder, code):
  """A directory in which `python -m cpeal_jax.main` is the given code."""
  (folder / "cpeal_jax").mkdir()
  (folder / "cpeal_jax" / "__init__.py").touch()
  (folder / "cpeal_jax" / "main.py").write_text(code)
  return folder


def call(*words, cwd=ROOT, **environment):
  given = {"PYTHON": sys.executable, "XLA_FLAGS": ""} | environment
  return subprocess.run(
    [str(word) for word in words],
    cwd=cwd,
    env=os.environ | given,
    capture_output=True,
    text=True,
    timeout=300,
  )


def tree(folder):
  return sorted(str(path) for path in folder.rglob("*"))


# --- Linters and schemas.


def test_shell_scripts_pass_shellcheck():
  checker = Path(sys.executable).parent / "shellcheck"
  scripts = [*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"]
  assert len(scripts) == 3
  done = call(checker, *scripts)
  assert not done.stdout, done.stdout
  for script in scripts:
    assert call("bash", "-n", script).returncode == 0
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert max(map(len, text.splitlines())) <= 80


# Those of the lines below that `sbatch --help` lists.
SBATCH = {
  "job-name",
  "nodes",
  "ntasks-per-node",
  "gpus-per-node",
  "cpus-per-task",
  "time",
  "signal",
  "requeue",
  "open-mode",
  "output",
}


def test_sbatch_options_exist_and_stand_before_the_first_command():
  text = (LAUNCH / "slurm.sbatch").read_text()
  lines = re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE)
  assert set(lines) <= SBATCH
  assert len(lines) == text.count("\n#SBATCH ") > 5
  head = text[: text.index("set -euo pipefail")]
  assert all(line.startswith("#") for line in head.splitlines())
  assert head.count("\n#SBATCH ") == len(lines)
  given = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.+)$", text, re.MULTILINE))
  assert given["ntasks-per-node"] == given["gpus-per-node"]


# The fields of jobset.x-k8s.io/v1alpha2 that are used, with their types.
JOBSET = {
  "network": {"enableDNSHostnames": bool, "subdomain": str},
  "failurePolicy": {
    "maxRestarts": int,
    "restartStrategy": str,
    "rules": [
      {
        "name": str,
        "action": str,
        "onJobFailureReasons": [str],
        "onJobFailureMessagePatterns": [str],
      }
    ],
  },
  "replicatedJobs": [{"name": str, "replicas": int, "template": dict}],
}
ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}
STRATEGIES = {"Recreate", "BlockingRecreate"}
VALUES = {
  "NAME": "eurosat",
  "IMAGE": "registry/cpeal_jax",
  "HOSTS": "4",
  "FLAGS": "--config=configs/eurosat.py --workdir=gs://bucket/eurosat",
}


def agrees(value, schema):
  if isinstance(schema, dict):
    assert value.keys() <= schema.keys()
    for key in value:
      agrees(value[key], schema[key])
  elif isinstance(schema, list):
    for item in value:
      agrees(item, schema[0])
  else:
    assert type(value) is schema, (value, schema)


def manifest():
  text = (LAUNCH / "jobset.yaml").read_text()
  filled = re.sub(r"\$\{(\w+)\}", lambda hit: VALUES[hit[1]], text)
  if shutil.which("envsubst"):
    done = subprocess.run(
      ["envsubst"],
      input=text,
      env=os.environ | VALUES,
      capture_output=True,
      text=True,
      check=True,
    )
    assert yaml.safe_load(done.stdout) == yaml.safe_load(filled)
  return yaml.safe_load(filled)


def test_jobset_agrees_with_its_schema():
  jobset = manifest()
  assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert jobset["kind"] == "JobSet"
  agrees(jobset["spec"], JOBSET)
  policy = jobset["spec"]["failurePolicy"]
  assert {rule["action"] for rule in policy["rules"]} <= ACTIONS
  assert policy["restartStrategy"] in STRATEGIES
  for job in jobset["spec"]["replicatedJobs"]:
    whole = {
      "apiVersion": "batch/v1",
      "kind": "Job",
      "metadata": {"name": "x"},
      **job["template"],
    }
    for version in ("1.31", kubernetes_validate.latest_version()):
      kubernetes_validate.validate(whole, version, strict=True)


def test_jobset_runs_one_process_a_host():
  jobset = manifest()
  (job,) = jobset["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  assert spec["completions"] == spec["parallelism"] == 4
  (container,) = spec["template"]["spec"]["containers"]
  name = jobset["metadata"]["name"]
  assert container["command"] == [
    "sh",
    "-c",
    "exec python -m cpeal_jax.main "
    f"--coordinator={name}-{job['name']}-0-0.{name}:8476 "
    f"--processes=4 --process=$(PROCESS) {VALUES['FLAGS']}",
  ]
  assert jobset["spec"]["network"]["subdomain"] == name


@pytest.mark.parametrize(
  ("message", "action"),
  [
    (
      "Container main for pod x/y failed with exit code 75 matching FailJob "
      "rule at index 0",
      "RestartJobSetAndIgnoreMaxRestarts",
    ),
    (
      "Pod x/y has condition DisruptionTarget matching FailJob rule at index 1",
      "RestartJobSetAndIgnoreMaxRestarts",
    ),
    (
      "Container main for pod x/y failed with exit code 2 matching FailJob "
      "rule at index 2",
      "FailJobSet",
    ),
  ],
)
def test_jobset_restarts_what_can_go_on(message, action):
  """By the messages that Kubernetes' Job controller writes."""
  rules = manifest()["spec"]["failurePolicy"]["rules"]
  fits = [
    rule
    for rule in rules
    if "PodFailurePolicy" in rule["onJobFailureReasons"]
    and any(
      re.search(pattern, message)
      for pattern in rule.get("onJobFailureMessagePatterns", [""])
    )
  ]
  assert fits[0]["action"] == action


# --- local.sh


def local(*words, cwd, **environment):
  return call(LAUNCH / "local.sh", *words, cwd=cwd, **environment)


def test_local_dry_run_prints_the_commands_and_touches_nothing(tmp_path):
  flags = ("--config=configs/quickstart.py", "--workdir=my run")
  done = local(
    "--dry_run", "--devices=2", "--port=1234", "2", "--", *flags, cwd=tmp_path
  )
  assert done.returncode == 0, done.stderr
  for i, line in enumerate(done.stdout.splitlines()):
    assert shlex.split(line) == [
      "env",
      "XLA_FLAGS=--xla_force_host_platform_device_count=2",
      sys.executable,
      "-m",
      "cpeal_jax.main",
      *flags,
      "--coordinator=127.0.0.1:1234",
      "--processes=2",
      f"--process={i}",
      ">",
      f"my run.logs/process-{i}.log",
      "2>&1",
      "&",
    ]
  assert i == 1
  assert tree(tmp_path) == []


def test_local_logs_beside_no_bucket(tmp_path):
  done = local("--dry_run", "1", "--", "--workdir=s3://b/run", cwd=tmp_path)
  assert re.search(r"> runs/local-\d+\.logs/process-0\.log", done.stdout)


def test_local_runs_all_and_shows_process_0(tmp_path):
  stub(tmp_path, PROCESS)
  done = local("3", "--", "--workdir=run", cwd=tmp_path)
  assert done.returncode == 0
  assert done.stdout == "process 0 of 3\nthe end of 0\n"
  assert done.stderr == ""
  for i in range(3):
    log = (tmp_path / "run.logs" / f"process-{i}.log").read_text()
    assert log == f"process {i} of 3\nthe end of {i}\n"


def test_local_names_who_failed_and_who_was_waited_for(tmp_path):
  stub(tmp_path, PROCESS)
  start = time.monotonic()
  done = local(
    *("--grace=1", "--logs=logs", "3", "--", "--do1=7", "--do2=hangs"),
    cwd=tmp_path,
  )
  assert done.returncode == 7
  assert time.monotonic() - start < 10
  assert done.stderr.splitlines() == [
    "process 1 of 3 failed with exit code 7; the end of logs/process-1.log:",
    "  | process 1 of 3",
    "  | the end of 1",
    "process 2 was still running and was ended; its last line: process 2 of 3",
  ]


def test_local_keeps_75(tmp_path):
  stub(tmp_path, PROCESS)
  done = local("2", "--", "--workdir=run", "--do0=75", "--do1=75", cwd=tmp_path)
  assert done.returncode == 75
  assert "run the same command again" in done.stderr
  assert "still running" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_signals_on(tmp_path, number):
  stub(tmp_path, PROCESS)
  words = ["2", "--", "--workdir=run", "--do0=saves", "--do1=saves"]
  process = subprocess.Popen(
    [LAUNCH / "local.sh", *words],
    cwd=tmp_path,
    env=os.environ | {"PYTHON": sys.executable},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  wait_for(tmp_path / "run.logs" / "process-0.log", "ready")
  wait_for(tmp_path / "run.logs" / "process-1.log", "ready")
  process.send_signal(number)
  _, said = process.communicate(timeout=30)
  assert process.returncode == 75, said


def test_local_keeps_a_signal_until_there_are_processes(tmp_path):
  stub(tmp_path, PROCESS)
  early = tmp_path / "bin" / "mkdir"
  early.parent.mkdir()
  early.write_text('#!/bin/sh\nkill -TERM $PPID\nexec /bin/mkdir "$@"\n')
  early.chmod(0o755)
  path = f"{early.parent}{os.pathsep}{os.environ['PATH']}"
  done = local("2", "--", "--do0=saves", "--do1=saves", cwd=tmp_path, PATH=path)
  # By the signal itself where it comes before a process listens.
  assert done.returncode in (75, 143), done.stderr


def wait_for(path, text):
  for _ in range(200):
    if path.exists() and text in path.read_text():
      return
    time.sleep(0.05)
  raise AssertionError(f"{text!r} never came in {path}")


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--", "--config=x"], "N, the number of processes, is missing."),
    (["0", "--", "--config=x"], "N is '0'; give a whole number from 1 on."),
    (["2", "--config=x"], "unknown option '--config=x'."),
    (["2"], "-- and the flags of main are missing."),
    (
      ["2", "--", "--process=1"],
      "--process=1 is set by local.sh: leave it out.",
    ),
  ],
)
def test_local_refuses_in_one_line(tmp_path, words, message):
  done = local(*words, cwd=tmp_path)
  assert done.returncode == 2
  assert done.stderr.startswith(f"error: {message}")
  assert done.stderr.count("\n") == 1


# --- tpu_pod.sh

SLICE = {"NAME": "pod", "ZONE": "us-west4-a", "TYPE": "v5litepod-16"}
TPU = {
  ("create",): [
    "gcloud compute tpus queued-resources create pod --node-id=pod "
    "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite "
    "--spot --zone=us-west4-a"
  ],
  ("wait",): [
    "gcloud compute tpus queued-resources describe pod "
    "'--format=value(state.state)' --zone=us-west4-a"
  ],
  ("run", "--", "--config=configs/eurosat.py:cec", "--workdir=gs://b/a run"): [
    "gcloud compute tpus tpu-vm ssh pod --worker=all '--command="
    "cd cpeal_jax && .venv/bin/python -m cpeal_jax.main --distributed "
    "--config=configs/eurosat.py:cec --workdir=gs://b/a\\ run' "
    "--zone=us-west4-a"
  ],
  ("collect", "gs://b/run", "here"): [
    "mkdir -p here",
    "gcloud storage rsync --recursive gs://b/run here",
  ],
  ("collect", "runs/x", "here"): [
    "mkdir -p here",
    "gcloud compute tpus tpu-vm scp --recurse 'pod:cpeal_jax/runs/x/*' here "
    "--worker=0 --zone=us-west4-a",
  ],
  ("delete",): [
    "gcloud compute tpus queued-resources delete pod --force --quiet "
    "--zone=us-west4-a"
  ],
}


@pytest.mark.parametrize("words", TPU, ids=" ".join)
def test_tpu_dry_run_prints_the_commands(tmp_path, words):
  done = call(LAUNCH / "tpu_pod.sh", "--dry_run", *words, cwd=tmp_path, **SLICE)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == TPU[words]
  assert tree(tmp_path) == []


def test_tpu_without_a_queue(tmp_path):
  own = SLICE | {"QUEUED": "0", "SPOT": "0", "TYPE": "v6e-8"}
  done = call(LAUNCH / "tpu_pod.sh", "--dry_run", "create", **own)
  assert done.stdout == (
    "gcloud compute tpus tpu-vm create pod --accelerator-type=v6e-8 "
    "--version=v2-alpha-tpuv6e --zone=us-west4-a\n"
  )
  done = call(LAUNCH / "tpu_pod.sh", "--dry_run", "delete", **own)
  assert done.stdout == (
    "gcloud compute tpus tpu-vm delete pod --quiet --zone=us-west4-a\n"
  )


def test_tpu_installs_this_checkout_with_a_new_enough_python():
  done = call(LAUNCH / "tpu_pod.sh", "--dry_run", "install", **SLICE)
  pack, copy, remove, ssh = done.stdout.splitlines()
  assert pack == "git archive --format=tar.gz --output=cpeal_jax.tar.gz HEAD"
  assert copy == (
    "gcloud compute tpus tpu-vm scp cpeal_jax.tar.gz pod: --worker=all "
    "--zone=us-west4-a"
  )
  assert remove == "rm cpeal_jax.tar.gz"
  (line,) = [w for w in shlex.split(ssh) if w.startswith("--command=")]
  assert (
    "uv venv --quiet --allow-existing --python 3.12 cpeal_jax/.venv" in line
  )
  assert line.endswith("-e './cpeal_jax[tpu]'")


def test_tpu_installs_from_a_checkout_alone(tmp_path):
  words = ("--dry_run", "install")
  done = call(LAUNCH / "tpu_pod.sh", *words, cwd=tmp_path, **SLICE)
  assert done.returncode == 2
  assert done.stderr.startswith("error: install packs HEAD of a git checkout")
  assert done.stdout == ""


def fake(folder, name, code):
  """A program of the given name, first on the path of what is called."""
  (folder / "bin").mkdir(exist_ok=True)
  path = folder / "bin" / name
  path.write_text(f'#!/usr/bin/env bash\necho {name} "$*" >> calls\n{code}\n')
  path.chmod(0o755)
  return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


@pytest.mark.parametrize(("codes", "want"), [("75 75 0", 0), ("75 2", 2)])
def test_tpu_run_goes_on_after_75(tmp_path, codes, want):
  (tmp_path / "codes").write_text(codes.replace(" ", "\n") + "\n")
  path = fake(
    tmp_path,
    "gcloud",
    'code=$(head -n 1 codes)\nsed -i 1d codes\nexit "$code"',
  )
  done = call(
    LAUNCH / "tpu_pod.sh",
    "run",
    "--",
    "--config=x",
    cwd=tmp_path,
    **SLICE,
    **path,
  )
  assert done.returncode == want
  calls = (tmp_path / "calls").read_text().splitlines()
  assert len(calls) == len(codes.split())


@pytest.mark.parametrize(
  ("words", "own", "message"),
  [
    (
      [],
      {},
      "the command is missing; give create, wait, install, run, collect",
    ),
    (["start"], {}, "unknown command 'start'; give create, wait"),
    (["wait"], {"NAME": ""}, "NAME is not set; export the slice's name."),
    (
      ["create"],
      {"TYPE": "v9-4"},
      "no software version is known for TYPE=v9-4",
    ),
    (["run", "--config=x"], {}, "-- and the flags of main are missing"),
    (["collect", "x"], {}, "collect needs two paths"),
  ],
)
def test_tpu_refuses_in_one_line(words, own, message):
  done = call(LAUNCH / "tpu_pod.sh", *words, **(SLICE | own))
  assert done.returncode == 2
  assert done.stderr.startswith(f"error: {message}")
  assert done.stderr.count("\n") == 1


# --- slurm.sbatch


def slurm(*words, cwd=ROOT, **environment):
  return call("bash", LAUNCH / "slurm.sbatch", *words, cwd=cwd, **environment)


STEP = "srun --kill-on-bad-exit=1 python -m cpeal_jax.main --distributed"


def test_slurm_dry_run_prints_the_step(tmp_path):
  done = slurm("--dry_run", "--config=x", cwd=tmp_path, PYTHON="python")
  first, second = done.stdout.splitlines()
  assert shlex.split(first) == [*STEP.split(), "--config=x"]
  assert second == "# after exit code 75: scontrol requeue JOB"


def test_slurm_array_takes_its_line(tmp_path):
  table = tmp_path / "runs.txt"
  table.write_text(
    "--config=a\n" + shlex.join(["--config=b", "--x=1 2"]) + "\n"
  )
  own = {
    "RUNS": str(table),
    "PYTHON": "python",
    "SLURM_JOB_ID": "8",
    "SLURM_ARRAY_JOB_ID": "7",
  }
  done = slurm("--dry_run", SLURM_ARRAY_TASK_ID="1", cwd=tmp_path, **own)
  first, second = done.stdout.splitlines()
  assert shlex.split(first) == [*STEP.split(), "--config=b", "--x=1 2"]
  assert second == "# after exit code 75: scontrol requeue 7_1"
  done = slurm("--dry_run", SLURM_ARRAY_TASK_ID="2", cwd=tmp_path, **own)
  assert done.returncode == 2
  assert done.stderr == f"error: {table} has no line 3.\n"


@pytest.mark.parametrize(
  ("code", "restarts", "want", "requeued"),
  [(0, 0, 0, False), (75, 0, 0, True), (75, 50, 2, False), (2, 0, 2, False)],
)
def test_slurm_puts_a_preempted_job_back(
  tmp_path, code, restarts, want, requeued
):
  path = fake(tmp_path, "srun", f"exit {code}") | fake(tmp_path, "scontrol", "")
  done = slurm(
    "--config=x",
    cwd=tmp_path,
    SLURM_JOB_ID="41",
    SLURM_RESTART_COUNT=str(restarts),
    **path,
  )
  assert done.returncode == want, done.stderr
  calls = (tmp_path / "calls").read_text()
  assert ("scontrol requeue 41" in calls) == requeued


# --- sweep.py

QUICKSTART = f"--configs={ROOT / 'configs' / 'quickstart.py'}"


def sweep(*words, cwd, **environment):
  script = LAUNCH / "sweep.py"
  return call(sys.executable, script, *words, cwd=cwd, **environment)


def say(monkeypatch, capsys, folder, *words):
  """What the sweep says in this process, where it starts no other."""
  monkeypatch.chdir(folder)
  monkeypatch.syspath_prepend(str(LAUNCH))
  code = importlib.import_module("sweep").main([QUICKSTART, *words])
  return code, *capsys.readouterr()


def planned(folder, **codes):
  plan = {seed.removeprefix("seed"): codes[seed] for seed in codes}
  (stub(folder, RUN) / "plan.json").write_text(json.dumps(plan))


def test_sweep_dry_run_prints_the_commands_and_touches_nothing(
  tmp_path, monkeypatch, capsys
):
  words = ("--methods=random,cec", "--seeds=1-2", "--dry_run")
  flags = ("--", "--config.rounds=3")
  code, out, _ = say(monkeypatch, capsys, tmp_path, *words, *flags)
  assert code == 0
  lines = out.splitlines()
  runs = [(1, "random"), (1, "cec"), (2, "random"), (2, "cec")]
  for line, (seed, method) in zip(lines, runs, strict=True):
    words = shlex.split(line)
    assert words[words.index(sys.executable) :] == [
      sys.executable,
      "-m",
      "cpeal_jax.main",
      QUICKSTART.replace("configs=", "config="),
      f"--config.seed={seed}",
      f"--config.acquisition.name={method}",
      "--config.rounds=3",
      f"--workdir=runs/quickstart/cpeal_lora-{method}/seed{seed}",
    ]
  assert tree(tmp_path) == []


def test_sweep_resumes_gives_up_and_names_the_refused(tmp_path):
  planned(tmp_path, seed1=[75, 9, 0], seed2=[2], seed3=[1, 1, 1], seed4=[3])
  done = sweep(
    QUICKSTART,
    "--seeds=1-4",
    "--jobs=2",
    "--",
    "--config.rounds=3",
    cwd=tmp_path,
  )
  assert done.returncode == 2
  runs = Path("runs/quickstart/cpeal_lora")
  assert done.stderr.splitlines() == [
    f"refused: {runs}/seed2: error: no such data set",
    f"gave up after 3 attempts: {runs}/seed3: attempt 2",
  ]
  lines = done.stdout.splitlines()
  assert lines[0] == (
    "quickstart/cpeal_lora/seed1  0/3 rounds  accuracy -  waiting"
  )
  assert (
    "quickstart/cpeal_lora/seed1  1/3 rounds  accuracy 0.2500  again"
  ) in lines
  last = {line.split()[0][-1]: line for line in lines}
  assert last["1"].endswith("3/3 rounds  accuracy 0.7500  finished")
  assert last["2"].endswith("refused")
  assert last["3"].endswith("gave up")
  assert last["4"].endswith("waits for labels")
  log = (tmp_path / runs / "seed1.log").read_text()
  assert log == "attempt 0\nattempt 1\nattempt 2\n"
  with open(tmp_path / "runs" / "sweep.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert [row["round"] for row in rows if row["seed"] == "1"] == ["0", "1", "2"]
  assert {row["state"] for row in rows if row["seed"] == "1"} == {"finished"}
  assert float(rows[0]["accuracy"]) == 0.25


def test_sweep_does_not_believe_an_early_0(tmp_path):
  planned(tmp_path, seed1=[0])
  words = (QUICKSTART, "--attempts=1", "--", "--config.rounds=4")
  done = sweep(*words, cwd=tmp_path)
  assert done.returncode == 1
  assert "exit code 0 after 3 of 4 rounds" in done.stderr


def test_sweep_stops_and_says_75(tmp_path):
  planned(tmp_path, seed1=["sleeps"], seed2=[0])
  words = [sys.executable, LAUNCH / "sweep.py", QUICKSTART, "--seeds=1-2"]
  process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL)
  folder = tmp_path / "runs" / "quickstart" / "cpeal_lora"
  wait_for(folder / "seed1.log", "attempt 0")
  process.terminate()
  assert process.wait(30) == 75
  assert not (folder / "seed2.log").exists()


def test_sweep_plays_two_real_runs_and_then_skips_them(
  tmp_path, monkeypatch, capsys
):
  words = (QUICKSTART, "--seeds=1-2")
  # Prompts compile fastest.
  flags = ("--", "--config.rounds=1", "--config.adapter.kind=prompts")
  flags += ("--config.train.epochs=1",)
  done = sweep(*words, *flags, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  folder = tmp_path / "runs" / "quickstart" / "cpeal_lora"
  assert (folder / "seed1" / "rounds" / "000" / "DONE").exists()
  with open(tmp_path / "runs" / "sweep.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert [(row["seed"], row["round"]) for row in rows] == [
    *(("1", "-1"), ("1", "0")),
    *(("2", "-1"), ("2", "0")),
  ]
  for row in rows:
    assert 0.3 < float(row["accuracy"]) < 1
  assert done.stdout.endswith(
    "wrote runs/report.html\nwrote runs/report_files\n"
  )
  page = (tmp_path / "runs" / "report.html").read_text()
  assert "1 arm, 2 seeds (1, 2), 2 runs" in page
  with open(tmp_path / "runs/report_files/results.csv", newline="") as file:
    reported = {(x["seed"], x["round"], x["nll"]) for x in csv.DictReader(file)}
  assert reported == {(x["seed"], x["round"], x["nll"]) for x in rows}

  logs = [(folder / f"seed{seed}.log").read_bytes() for seed in (1, 2)]
  done = sweep(*words, *flags, cwd=tmp_path)
  assert done.returncode == 0
  assert done.stdout.count("finished") == 2
  assert logs == [(folder / f"seed{s}.log").read_bytes() for s in (1, 2)]

  # Other settings are not finished runs, and an array job skips what is.
  more = ("--seeds=1-4", "--dry_run", *flags)
  _, out, _ = say(monkeypatch, capsys, tmp_path, *more)
  marks = [line.startswith("# finished") for line in out.splitlines()]
  assert marks == [True, True, False, False]
  other = (*flags[:-1], "--config.train.epochs=2")
  _, out, _ = say(monkeypatch, capsys, tmp_path, "--dry_run", *other)
  assert not out.startswith("# finished")
  more = ("--seeds=1-4", "--where=slurm", "--jobs=8", *flags)
  _, out, _ = say(monkeypatch, capsys, tmp_path, *more)
  assert out.splitlines()[-1] == (
    f"RUNS=runs/sweep.txt sbatch --array=0-1%8 {LAUNCH / 'slurm.sbatch'}"
  )
  table = (tmp_path / "runs" / "sweep.txt").read_text().splitlines()
  assert ["--config.seed=3" in table[0], "--config.seed=4" in table[1]] == [
    1,
    1,
  ]


def test_sweep_reports_on_each_data_set(tmp_path, monkeypatch, capsys):
  monkeypatch.syspath_prepend(LAUNCH)
  module = importlib.import_module("sweep")
  out = epath.Path(tmp_path / "runs")
  runs = []
  for name in ("birds", "cars"):
    folder = out / name / "anchored" / "seed1"
    made_runs.make(folder, data=len(runs))
    run = module.Run(name, "", 1, 3, folder, [], "", state="finished")
    runs.append(run)
  options = argparse.Namespace(
    out=out, flags=[f"--config.cache_dir={tmp_path}", "--config.seed=3"]
  )
  module.report(runs, options)
  said = capsys.readouterr().out
  for name in ("birds", "cars"):
    assert f"wrote {out / name / 'report.html'}" in said
    assert "3 rounds" in (out / name / "report.html").read_text()
  # What keeps it from being made is said, and the sweep is done all the same.
  (out / "birds" / "report.html").write_text("mine")
  module.report(runs[:1], argparse.Namespace(out=out / "birds", flags=[]))
  said = capsys.readouterr().out
  assert "note: there is no report: " in said
  assert "is there already and is no report" in said


def test_sweep_prints_a_slice_a_run(tmp_path, monkeypatch, capsys):
  words = ("--seeds=1-2", "--where=tpu", "--dry_run", f"--out={tmp_path}")
  _, out, _ = say(monkeypatch, capsys, tmp_path, *words)
  tool = f"NAME=sweep-1 {LAUNCH / 'tpu_pod.sh'}"
  config = QUICKSTART.replace("configs=", "config=")
  folder = tmp_path / "quickstart" / "cpeal_lora" / "seed2"
  assert out.splitlines()[1] == (
    f"{tool} create && {tool} wait && {tool} install && {tool} run -- {config} "
    f"--config.seed=2 --workdir={folder}; {tool} delete"
  )
  assert tree(tmp_path) == []


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--methods=entrpy"], "unknown method 'entrpy'; choose from: alfa_mix,"),
    (["--jobs=0"], "--jobs=0; give 1 or more."),
    (["--where=tpu"], "--out=runs with --where=tpu; give a bucket"),
    (["--out=s3://b"], "--out=s3://b with --where=local; give a directory"),
    (["--seeds=1,1"], "runs/quickstart/cpeal_lora/seed1 is the workdir of two"),
    (["--", "--workdir=x"], "--workdir is set by the sweep: leave it out."),
    (["--", "--config.rods=1"], "--config="),
    (["--", "rounds"], "'rounds' after --: give flags as --NAME=VALUE."),
  ],
)
def test_sweep_refuses_in_one_line(
  tmp_path, monkeypatch, capsys, words, message
):
  code, out, err = say(monkeypatch, capsys, tmp_path, *words)
  assert code == 2
  assert out == ""
  assert err.startswith(f"error: {message}")
  assert err.count("\n") == 1
  assert tree(tmp_path) == []
