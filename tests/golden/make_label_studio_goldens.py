"""Writes the Label Studio goldens: what it exports of tasks that we wrote.

It starts a Label Studio on this machine with a database of its own, makes a
project with our `label_config.xml`, imports our `labelstudio_tasks.json`, asks
for every image by the address in its task, annotates, and exports. Beside the
exports are the two files, and `asked.json` with the questions and the answers.

The goldens were made by label-studio 1.23.2. It needs a virtual environment of
its own, since it pins many packages. Run:

  python tests/golden/make_label_studio_goldens.py PATH/TO/bin/label-studio
"""

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image

from cpeal_jax.labeling import addresses, to_label
from cpeal_jax.labeling.events import AUDIT
from cpeal_jax.labeling.questions import Question

OUT = Path(__file__).parent / "label_studio"
RUN = "golden"
CLASSES = ("cat", "R&D <\"x\"> 'y'", "Käse, alt", "=1+1", "a;b")
# Names that an address, XML or CSV could get wrong.
QUESTIONS = (
  Question("plain.jpg", 3, "cat", 0.75, "it lies between two classes"),
  Question("a b.jpg", 3, "Käse, alt", 0.5, "far from all labels"),
  Question("100%25.jpg", 3, "=1+1", 0.25, "far from all labels"),
  Question("deep/ü#1.jpg", 3, "R&D <\"x\"> 'y'", 0.3, "far from all labels"),
  Question("q?x=1&y=2+3.jpg", 3, "cat", 0.4),
  Question("it's.jpg", 3, "cat", 0.4),
  Question("=cmd.jpg", 3, "a;b", 0.4),
  Question("audit.jpg", 3, "cat", 0.9, "it must not be seen", AUDIT),
  Question("semi;colon.jpg", 3, "cat", 0.4),
)
# What is answered to each; None is skipped, and the last has no answer.
ANSWERS = {
  "plain.jpg": "cat",
  "a b.jpg": "Käse, alt",
  "100%25.jpg": "=1+1",
  "deep/ü#1.jpg": "R&D <\"x\"> 'y'",
  "q?x=1&y=2+3.jpg": "cannot tell",
  "it's.jpg": "unusable",
  "=cmd.jpg": "a;b",
  "audit.jpg": None,
}
FORMATS = {"JSON": "json", "JSON_MIN": "min.json", "CSV": "csv"}
TOKEN = "0" * 40
START_SECONDS = 600


def picture() -> bytes:
  out = io.BytesIO()
  Image.new("RGB", (8, 8), "teal").save(out, "JPEG")
  return out.getvalue()


def free_port() -> int:
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


class Client:
  """Asks one Label Studio."""

  def __init__(self, port: int):
    self.base = f"http://127.0.0.1:{port}"

  def get(self, path: str) -> bytes:
    return self._send(urllib.request.Request(self.base + path))

  def post(self, path: str, content: object) -> dict:
    body = json.dumps(content).encode()
    request = urllib.request.Request(self.base + path, body, method="POST")
    request.add_header("Content-Type", "application/json")
    return json.loads(self._send(request))

  def _send(self, request: urllib.request.Request) -> bytes:
    request.add_header("Authorization", f"Token {TOKEN}")
    try:
      with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read()
    except urllib.error.HTTPError as error:
      raise RuntimeError(f"{request.full_url}: {error.read()!r}") from error


@contextlib.contextmanager
def label_studio(command: str, settings: addresses.Settings, folder: Path):
  """A Label Studio that runs while the block does."""
  port = free_port()
  environment = dict(
    os.environ,
    LABEL_STUDIO_BASE_DATA_DIR=str(folder),
    COLLECT_ANALYTICS="0",
    SENTRY_DSN="",
  )
  for setting in (settings.serving, settings.document_root):
    name, _, value = setting.partition("=")
    environment[name] = value
  arguments = (
    f"start --no-browser --internal-host 127.0.0.1 --port {port} --data-dir"
    f" {folder} --username golden@localhost.test --password {TOKEN}"
    f" --user-token {TOKEN} --enable-legacy-api-token"
  )
  with subprocess.Popen(
    [command, *arguments.split()],
    env=environment,
    stdout=(folder / "log").open("wb"),
    stderr=subprocess.STDOUT,
  ) as server:
    client = Client(port)
    try:
      until = time.monotonic() + START_SECONDS
      while True:
        try:
          client.get("/api/projects")
          break
        except (OSError, RuntimeError):
          if time.monotonic() > until or server.poll() is not None:
            raise
          time.sleep(2)
      yield client
    finally:
      server.terminate()


def annotate(client: Client, task: int, word: str | None) -> None:
  """Answers a task as the page would; None skips it."""
  chosen = {
    "from_name": "label",
    "to_name": "image",
    "type": "choices",
    "value": {"choices": [word]},
  }
  client.post(
    f"/api/tasks/{task}/annotations/",
    {
      "result": [] if word is None else [chosen],
      "was_cancelled": word is None,
      "lead_time": 1.5,
    },
  )


def export(client: Client, project: int, name: str) -> None:
  """Keeps the export in every format."""
  for kind, suffix in FORMATS.items():
    path = f"/api/projects/{project}/export?exportType={kind}"
    data = client.get(path + "&download_all_tasks=true")
    (OUT / f"{name}.{suffix}").write_bytes(data)


def main(command: str) -> None:
  OUT.mkdir(exist_ok=True)
  asked = {
    "run": RUN,
    "classes": CLASSES,
    "questions": [question._asdict() for question in QUESTIONS],
    "answers": ANSWERS,
  }
  text = json.dumps(asked, ensure_ascii=False, indent=1) + "\n"
  (OUT / "asked.json").write_text(text)
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder) / "my photos"
    for question in QUESTIONS:
      path = root / question.id
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(picture())
    written = Path(folder) / "written"
    to_label.write(written, QUESTIONS, classes=CLASSES, root=root, run=RUN)
    for name in (to_label.CONFIG, to_label.TASKS):
      shutil.copy(written / name, OUT)
    settings = addresses.settings(root)
    data = Path(folder) / "label_studio"
    data.mkdir()
    with label_studio(command, settings, data) as client:
      config = (written / to_label.CONFIG).read_text()
      project = client.post(
        "/api/projects", {"title": "golden", "label_config": config}
      )["id"]
      client.post(
        "/api/storages/localfiles",
        {"project": project, "path": settings.storage, "use_blob_urls": True},
      )
      tasks = json.loads((written / to_label.TASKS).read_text())
      for task in tasks:
        # Every image is served under the address that we wrote.
        assert client.get(task["data"]["image"]) == picture(), task
      client.post(f"/api/projects/{project}/import", tasks)
      listed = json.loads(
        client.get(f"/api/tasks?project={project}&fields=all&page_size=100")
      )["tasks"]
      numbers = {task["data"]["cpeal_id"]: task["id"] for task in listed}
      for id_, word in ANSWERS.items():
        annotate(client, numbers[id_], word)
      export(client, project, "answered")
      annotate(client, numbers["plain.jpg"], "a;b")
      export(client, project, "disputed")


if __name__ == "__main__":
  main(sys.argv[1])
