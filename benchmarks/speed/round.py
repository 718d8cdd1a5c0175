"""Times a round and a whole run on EuroSAT against two versions in PyTorch.

  python benchmarks/speed/round.py --root=DIR/eurosat --weights=CLIP \
    --out=runs/round.json
  python benchmarks/speed/round.py --rounds=3 --epochs=10 --adapters=lora ...
  python benchmarks/speed/round.py --root=DIR/eurosat --weights=CLIP --small

The method is entropy with PCB, with prompts and with LoRA. The recipe is that
of the presets: SGD, rate 0.002, batch 32, augmentation, and the balanced and
annealed calibration loss, in float32; LoRA uses the data set's template. All
read CLIP from the same Hugging Face directory.

The peers are in `torch_rounds.py`: `reference` follows the passes of the
released code; `expert` is written for speed and has no gate. Ours is
`loop.run` with everything else that it does: the zero-shot row, metrics,
checkpoints and records. Like the command `cpeal_jax.main`, it excludes its
imports from garbage collection. The peers neither validate nor search
neighbors, so by default ours searches none and has only 100 images to validate
on; with --extras it searches ten neighbors of each image and validates on all
5,400 images. With --test-every=10 ours measures the test split after the last
round alone, as `eval.every` allows; the peers do so in every round, as the
released code does. The random draws differ, so the accuracies (of the last
round, in the notes) agree only roughly.

`trajectory` is the time from the end of the imports (including transformers) to
the end of the last round. Caches are empty, so this includes decoding and our
compilation. Each run is a process of its own; the runs alternate, --repeats
times. Their CPU seconds, including imports, are in the notes; they show whether
other work used the cores.

`round` is the time to select, fit and test in one round, from round 2 on, when
everything is compiled; rounds with the same number are paired. All numbers
printed are measured; nothing is extrapolated.

Gates against `reference`, for both: prompts 10 times as fast, LoRA twice.
--small uses 300 images of the pool, 3 rounds and 2 epochs.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timing import Row, alone, cores, has, parser, report, say

VARIANTS = {"prompts": "cpeal_prompt", "lora": "cpeal_lora"}
GATES = {"prompts": 10.0, "lora": 2.0}
# How many images of each split to use; a split that is not named is complete.
SAME, EXTRAS, SMALL = {"val": 100}, {}, {"train": 300, "val": 50, "test": 100}


def config_of(job: dict[str, Any], folder: str) -> Any:
  from cpeal_jax.config import presets

  config = presets.preset("eurosat", VARIANTS[job["kind"]])
  config.rounds, config.train.epochs = job["rounds"], job["epochs"]
  config.dataset.root, config.model.weights = job["root"], job["weights"]
  config.dataset.check_counts = False
  if not job["extras"]:
    config.scoring.neighbors = 0
  config.eval.every = job["test_every"]
  config.cache_dir = f"{folder}/cache"
  return config


def ours(job: dict[str, Any], folder: str) -> dict[str, Any]:
  begun = time.perf_counter()
  import contextlib
  import gc

  # A run loads these when it reads weights. They are imported here because the
  # peers import them before their clock starts.
  from transformers import AutoTokenizer, CLIPConfig  # noqa: F401

  from cpeal_jax.run import loop

  config = config_of(job, folder)
  gc.freeze()  # The command cpeal_jax.main does this too.
  imported = time.perf_counter()
  with contextlib.redirect_stdout(sys.stderr):
    rows = loop.run(config, f"{folder}/run")
  whole = time.perf_counter() - imported
  rounds = [
    {
      "select": row["seconds_score"] + row["seconds_select"],
      "fit": row["seconds_fit"],
      "evaluate": row["seconds_evaluate"],
      "acc": row.get("accuracy"),
    }
    for row in rows
    if row["round"] >= 0
  ]
  cpu = time.process_time()
  imports = imported - begun
  return {"imports": imports, "whole": whole, "cpu": cpu, "rounds": rounds}


def peer(job: dict[str, Any], folder: str) -> dict[str, Any]:
  begun = time.perf_counter()
  import torch
  from torch_rounds import Expert, Reference, Task, play

  from cpeal_jax.data.images import image_spec
  from cpeal_jax.run.datasets import load_dataset

  config = config_of(job, folder)
  torch.set_num_threads(job["threads"])
  imported = time.perf_counter()
  dataset = load_dataset(config)
  splits = [
    [
      (str(Path(job["root"]) / path), int(label))
      for path, label in zip(split.paths, split.labels, strict=True)
    ]
    for split in (dataset.train, dataset.test)
  ]
  pool, test = splits
  task = Task(
    weights=job["weights"],
    kind=job["kind"],
    classes=dataset.classes,
    template=config.model.template,
    pool=pool,
    test=test,
    spec=image_spec(job["weights"]),
    rounds=job["rounds"],
    epochs=job["epochs"],
    threads=job["threads"],
  )
  kind = {"reference": Reference, "expert": Expert}[job["arm"]]
  rounds = play(task, kind)
  whole = time.perf_counter() - imported
  cpu = time.process_time()
  imports = imported - begun
  return {"imports": imports, "whole": whole, "cpu": cpu, "rounds": rounds}


def fewer(root: str, counts: dict[str, int], folder: str) -> str:
  """Makes `folder` a data set root with fewer images and returns it.

  `counts` has the number of images for each split to reduce.
  """
  source = next(Path(root).glob("split_zhou_*.json"))
  entries = json.loads(source.read_text())
  for name, count in counts.items():
    entries[name] = entries[name][:: len(entries[name]) // count]
  (Path(folder) / source.name).write_text(json.dumps(entries))
  for path in Path(root).iterdir():
    if path.is_dir():
      (Path(folder) / path.name).symlink_to(path.resolve())
  return folder


def compared(job: dict[str, Any], found: dict[str, list[dict]]) -> list[Row]:
  """Returns two comparisons with each peer: of a round and of the whole run."""

  def seconds(arm: str) -> list[float]:
    rounds = [row for run in found[arm] for row in run["rounds"][2:]]
    return [row["select"] + row["fit"] + row["evaluate"] for row in rounds]

  def notes(arm: str) -> dict[str, Any]:
    rounds = [row for run in found[arm] for row in run["rounds"][2:]]
    parts = {
      f"{part}, {arm}": round(statistics.median(x[part] for x in rounds), 3)
      for part in ("select", "fit", "evaluate")
    }
    last = round(found[arm][-1]["rounds"][-1]["acc"], 3)
    imports = round(found[arm][-1]["imports"], 1)
    return {**parts, f"imports, {arm}": imports, f"accuracy, {arm}": last}

  clip = Path(job["weights"]).name
  sizes = f"{clip}, {job['rounds']} rounds, {job['epochs']} epochs"
  sizes += ", extras" * job["extras"]
  if job["test_every"] > 1:
    sizes += f", test split every {job['test_every']} rounds"
  rows = []
  for arm in list(found)[1:]:
    own = GATES[job["kind"]] if arm == "reference" else None
    more = notes("ours") | notes(arm)
    case = f"{job['kind']}, round 2 and on ({sizes})"
    pair = seconds("ours"), seconds(arm)
    rows.append(Row(case, arm, *pair, own, more, job["threads"]))
    case = f"{job['kind']}, trajectory ({sizes})"
    ours, theirs = ([x["whole"] for x in found[k]] for k in ("ours", arm))
    cpu = {
      f"CPU s, {k}": round(statistics.median(x["cpu"] for x in found[k]), 1)
      for k in ("ours", arm)
    }
    rows.append(Row(case, arm, ours, theirs, own, cpu, job["threads"]))
  return rows


def measure(own: Any) -> Iterator[Row]:
  arms = ["ours", *(own.peers.split(",") if has("torch") else ())]
  with tempfile.TemporaryDirectory(prefix="round_") as folder:
    images = SMALL if own.small else EXTRAS if own.extras else SAME
    root = fewer(own.root, images, folder)
    counts = (3, 2) if own.small else (own.rounds, own.epochs)
    common = {"root": root, "weights": own.weights, "rounds": counts[0]}
    common |= {"extras": own.extras, "test_every": own.test_every}
    for threads in cores(own.threads):
      for kind in own.adapters.split(","):
        job = {**common, "epochs": counts[1], "kind": kind, "threads": threads}
        found: dict[str, list[dict]] = {arm: [] for arm in arms}
        for _ in range(own.repeats):
          for arm in arms:
            found[arm].append(alone(job | {"arm": arm}, threads))
            say(f"{kind}, {arm}: {found[arm][-1]['whole']:.1f} s")
        yield from compared(job, found)


def main() -> int:
  flags = parser(__doc__, repeats=1)
  flags.add_argument("--root", help="EuroSAT in CoOp's layout")
  flags.add_argument("--weights", help="a CLIP's directory")
  flags.add_argument("--rounds", type=int, default=10, help="3 or more")
  flags.add_argument("--epochs", type=int, default=10)
  flags.add_argument("--adapters", default=",".join(VARIANTS))
  flags.add_argument("--peers", default="reference,expert")
  flags.add_argument("--extras", action="store_true", help="see above")
  flags.add_argument(
    "--test-every", type=int, default=1, help="eval.every of ours"
  )
  own = flags.parse_args()
  if own.one:
    job = json.loads(own.one)
    one = ours if job["arm"] == "ours" else peer
    with tempfile.TemporaryDirectory(prefix="round_") as folder:
      print(json.dumps(one(job, folder)))
    return 0
  if not own.root or not own.weights or own.rounds < 3:
    flags.error("give --root and --weights, and --rounds of 3 or more")
  return report(measure(own), own)


if __name__ == "__main__":
  sys.exit(main())
