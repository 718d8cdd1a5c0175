"""A person who answers on the page, played over HTTP by a script."""

import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from cpeal_jax.data import digits

ROOT = Path(__file__).parents[1]
# No proxy, so that nothing but the page can answer.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Person:
  """Answers questions; keeps what the server has acknowledged.

  Attributes:
    saved: the last acknowledged label of each image.
    slowest: seconds that each answer took until it was acknowledged.
  """

  def __init__(self, address, saved=None):
    self.address = address
    self.saved = {} if saved is None else saved
    self.seconds = []
    self.count = itertools.count()

  def ask(self, path, content=None):
    data = None if content is None else json.dumps(content).encode()
    with OPENER.open(self.address + path, data, timeout=30) as reply:
      return json.loads(reply.read())

  def state(self):
    return self.ask("state?tab=person")

  def picture(self, id_):
    """The bytes of the picture that the page shows of an image."""
    address = f"{self.address}image?id={urllib.parse.quote(id_)}"
    with OPENER.open(address, timeout=30) as reply:
      return reply.read()

  def send(self, **operation):
    operation["n"] = next(self.count)
    start = time.monotonic()
    reply = self.ask("record", {"tab": "person", "operations": [operation]})
    self.seconds.append(time.monotonic() - start)
    (result,) = reply["results"]
    assert result["ok"], result
    return result

  def answer(self, id_, label):
    self.send(op="answer", id=id_, label=label)
    self.saved[id_] = label

  def open_questions(self, round_, *, patience=120):
    """Waits for a round; returns its questions without an answer."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
      state = self.state()
      assert not state["ended"], state["ended"]
      batch = state.get("batch")
      if batch and batch["round"] >= round_ and state["open"]:
        return [q for q in batch["questions"] if q["answer"] is None]
      time.sleep(0.02)
    raise AssertionError(f"round {round_} did not come: {state}")

  def wait_for_the_end(self, *, patience=60):
    end = time.monotonic() + patience
    while time.monotonic() < end:
      try:
        state = self.state()
      except (urllib.error.URLError, ConnectionError):
        return ""
      if state["ended"]:
        return state["ended"]
      time.sleep(0.05)
    raise AssertionError("it does not end")


def truth(images):
  """The class name of each of the demo's images, which their bytes tell."""
  by_bytes = {}
  data = digits.load_digits()
  for split in data.splits:
    for index, label in enumerate(split.labels):
      key = hashlib.sha256(split.read(index)).digest()
      by_bytes[key] = data.classes[label]
  return {
    path.name: by_bytes[hashlib.sha256(path.read_bytes()).digest()]
    for path in Path(images).iterdir()
  }


class Label:
  """`cpeal label`, or another command, in a process group of its own.

  Attributes:
    process: of the command.
    address: where the page is; empty if the command ended before.
  """

  def __init__(self, *words, cwd, env=None, command="label"):
    self.process = subprocess.Popen(
      [sys.executable, "-m", "cpeal_jax.cli", command, *words],
      cwd=cwd,
      env=os.environ
      | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
      | (env or {}),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    self.address = ""
    for line in iter(self.process.stdout.readline, ""):
      if found := re.match(r"page: (http://\S+)", line):
        self.address = found[1]
        break

  def person(self, saved=None):
    return Person(self.address, saved)

  def kill(self):
    """Kills the command and its page at once."""
    os.killpg(self.process.pid, signal.SIGKILL)
    self.process.communicate()

  def end(self, number=None, *, patience=120):
    """Waits for the end, after a signal if one is given.

    Returns:
      The exit code, and what was written to stdout and stderr.
    """
    if number is not None:
      self.process.send_signal(number)
    out, err = self.process.communicate(timeout=patience)
    return self.process.returncode, out, err

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self.process.poll() is None:
      self.kill()
