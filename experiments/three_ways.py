"""Labels the same photos in three ways, and compares with the simulated oracle.

  python experiments/three_ways.py --tiles=DIR/eurosat --weights=CLIP \
    --out=runs/three_ways --ways=simulated,files,page,studio \
    --studio=PATH/TO/bin/label-studio

2,000 tiles are copied flat, under neutral names, beside a file of ten class
names. A script then plays the person for three rounds. It answers the truth,
and so must every way choose what the simulated oracle chooses, byte for byte in
selection.csv. `studio` starts a Label Studio, imports the tasks of each round,
annotates them and exports; `page` asks the labeling page for its questions, as
a browser would.
"""

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cpeal_jax.labeling import addresses, to_label

ROOT = Path(__file__).parents[1]
TILES, ROUNDS, WAITING = 2_000, 3, 3
Truth = dict[str, str]


def photos(tiles: Path, folder: Path) -> Truth:
  """Copies tiles flat; returns the class of each by its neutral name."""
  found = sorted(
    path for path in tiles.rglob("*") if path.suffix in (".jpg", ".png")
  )
  classes = sorted({path.parent.name for path in found})
  by_class = {
    name: [path for path in found if path.parent.name == name]
    for name in classes
  }
  # Mixed, so that a name says nothing about its class.
  chosen = [
    by_class[name][row]
    for row in range(TILES // len(classes))
    for name in classes
  ]
  (folder / "photos").mkdir(parents=True)
  truth = {}
  for number, path in enumerate(chosen):
    name = f"photo{number * 7919 % TILES:04}{path.suffix}"
    shutil.copy(path, folder / "photos" / name)
    truth[name] = path.parent.name
  (folder / "classes.txt").write_text("\n".join(classes) + "\n")
  return truth


def command(options: argparse.Namespace, way: str, *more: str) -> list[str]:
  """The command line of a run of one way."""
  return [
    *(sys.executable, "-m", "cpeal_jax.main", "--config=own_images"),
    f"--config.dataset.root={options.out / 'photos'}",
    f"--config.dataset.class_names={options.out / 'classes.txt'}",
    f"--config.model.weights={options.weights}",
    f"--config.cache_dir={options.out / 'cache'}",
    f"--config.rounds={ROUNDS}",
    "--config.oracle.audit=5",
    f"--workdir={options.out / way}",
    *more,
  ]


def run(words: list[str]) -> int:
  """Runs a command to its end; returns its exit code, 0 or 3."""
  code = subprocess.run(words, cwd=ROOT).returncode
  if code not in (0, WAITING):
    raise SystemExit(f"{' '.join(words)}: exit code {code}")
  return code


def simulated(options: argparse.Namespace, truth: Truth) -> None:
  """The same photos, with a list of all their labels beside them."""
  listed = options.out / "photos" / "list.csv"
  with open(listed, "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(("path", "label"))
    table.writerows(sorted(truth.items()))
  run(command(options, "simulated", "--config.dataset.shares=1,0,0"))
  listed.unlink()


def by_turns(
  options: argparse.Namespace,
  way: str,
  answer: Callable[[Path], list[str]],
  *settings: str,
) -> None:
  """Runs until it waits, answers, and runs again, until it is finished."""
  settings = ("--config.oracle.kind=files", *settings)
  workdir, more = options.out / way, []
  for round_ in range(ROUNDS):
    assert run(command(options, way, *settings, *more)) == WAITING
    more = answer(workdir / f"rounds/{round_:03}")
  assert run(command(options, way, *settings, *more)) == 0


def files(
  options: argparse.Namespace, truth: Truth, way: str = "files", *settings: str
) -> None:
  """Fills in to_label.csv."""

  def answer(folder: Path) -> list[str]:
    path = folder / to_label.TABLE
    with open(path, encoding="utf-8-sig") as file:
      rows = list(csv.DictReader(file))
    for row in rows:
      row["label"] = truth[row["id"]]
    with open(path, "w", newline="") as file:
      table = csv.DictWriter(file, rows[0])
      table.writeheader()
      table.writerows(rows)
    return []

  by_turns(options, way, answer, *settings)


def studio(options: argparse.Namespace, truth: Truth) -> None:
  """Imports each round into a Label Studio of its own, and exports."""
  sys.path.insert(0, str(ROOT / "tests" / "golden"))
  import make_label_studio_goldens as golden

  data = options.out / "label_studio"
  data.mkdir()
  settings = addresses.settings(options.out / "photos")
  with golden.label_studio(options.studio, settings, data) as client:

    def answer(folder: Path) -> list[str]:
      config = (folder / to_label.CONFIG).read_text()
      project = client.post(
        "/api/projects", {"title": folder.name, "label_config": config}
      )["id"]
      client.post(
        "/api/storages/localfiles",
        {"project": project, "path": settings.storage, "use_blob_urls": True},
      )
      tasks = json.loads((folder / to_label.TASKS).read_text())
      for task in tasks:
        assert client.get(task["data"]["image"])
      client.post(f"/api/projects/{project}/import", tasks)
      query = f"/api/tasks?project={project}&fields=all&page_size=1000"
      for task in json.loads(client.get(query))["tasks"]:
        golden.annotate(client, task["id"], truth[task["data"]["cpeal_id"]])
      export = f"/api/projects/{project}/export?exportType=JSON"
      path = options.out / f"export{folder.name}.json"
      path.write_bytes(client.get(export + "&download_all_tasks=true"))
      return [f"--config.oracle.answers={path}"]

    by_turns(options, "studio", answer)


def page(options: argparse.Namespace, truth: Truth, *settings: str) -> None:
  """Answers on the labeling page over HTTP, as its script in a browser does."""
  sys.path.insert(0, str(ROOT / "tests"))
  import page_person

  words = command(
    options,
    "page",
    "--config.oracle.kind=page",
    "--config.oracle.browser=False",
    *settings,
  )
  with subprocess.Popen(
    words, cwd=ROOT, stdout=subprocess.PIPE, text=True
  ) as child:
    lines = iter(child.stdout.readline, "")
    address = next(
      found[1] for line in lines if (found := re.match(r"page: (\S+)", line))
    )
    person = page_person.Person(address)
    for round_ in range(ROUNDS):
      for question in person.open_questions(round_):
        person.answer(question["id"], truth[question["id"]])
    person.wait_for_the_end()
    child.communicate()
  assert child.returncode == 0


WAYS: dict[str, Callable[[argparse.Namespace, Truth], None]] = {
  "simulated": simulated,
  "files": files,
  "page": page,
  "studio": studio,
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--tiles", type=Path, required=True)
  parser.add_argument("--weights", required=True)
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument("--ways", default=",".join(WAYS))
  parser.add_argument("--studio", help="the command label-studio")
  options = parser.parse_args()
  options.out = options.out.absolute()
  truth = photos(options.tiles, options.out)
  wanted = None
  for way in options.ways.split(","):
    start = time.monotonic()
    WAYS[way](options, truth)
    chosen = {
      path.parent.name: path.read_bytes()
      for path in (options.out / way).glob("rounds/*/selection.csv")
    }
    assert len(chosen) == ROUNDS
    wanted = wanted or chosen
    same = "the same selections" if chosen == wanted else "OTHER SELECTIONS"
    print(f"== {way}: {same}, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
  main()
