"""Chooses images on the CPU and on the accelerator, in float32, and compares.

From pixels, features differ in their last bits at least: XLA multiplies
float32 on a GPU in TF32 unless it is told otherwise, and adds in another order.
From the same features, the choice is to be the same.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import workload

from accelerated.figures import Figure, ratio
from accelerated.setting import Setting
from cpeal_jax import acquisition, scoring
from cpeal_jax.parallel import sharding

METHODS = (
  *("entropy", "margin", "cec", "coreset"),
  *("badge", "typiclust", "uherding", "clue"),
)
SMALL_METHODS = ("margin", "coreset")
CLASSES, NEIGHBORS, PICKS = 10, 10, 20
START = (
  "from accelerated import annotations; annotations.stand_in(); "
  "from accelerated import same_picks; same_picks.on_cpu()"
)


def measure(setting: Setting, _: str) -> Iterator[Figure]:
  """Yields how many methods choose the same, and how many picks are equal."""
  file = setting.to / "picks-cpu.npz"
  command = [sys.executable, "-c", START, str(file), str(int(setting.small))]
  other = subprocess.Popen(command, env={**os.environ, "JAX_PLATFORMS": "cpu"})
  work, images = made(setting.small)
  precise = {"default precision": None, "highest precision": "highest"}
  features = {}
  for name, precision in precise.items():
    with jax.default_matmul_precision(precision or "default"):
      features[name] = encoded(work, images)
  other.wait(max(setting.left(), 1))
  if other.returncode:
    raise RuntimeError(f"the CPU's part ended with {other.returncode}")
  cpu = dict(np.load(file))
  file.unlink()
  features = {"the same features": cpu.pop("features"), **features}
  for name, own in features.items():
    picked = chosen(work, own, setting.small)
    same = [
      method for method in picked if (picked[method] == cpu[method]).all()
    ]
    common = sum(len({*picked[m]} & {*cpu[m]}) for m in picked)
    gap = float(np.abs(own - features["the same features"]).max())
    note = f"same: {', '.join(same) or 'none'}; features differ by {gap:.1e}"
    case = f"{len(own):,} images, {PICKS} picks, float32, {name}"
    goal = 1.0 if name == "the same features" else None
    share = len(same) / len(picked)
    yield ratio(
      case, "share of methods with the CPU's picks", share, goal, note
    )
    yield Figure(case, "share of equal picks", common / PICKS / len(picked))


def on_cpu() -> None:
  """Writes features and picks of this process's devices into a file."""
  file, small = Path(sys.argv[1]), sys.argv[2] == "1"
  work, images = made(small)
  features = encoded(work, images)
  arrays: dict[str, Any] = {"features": features}
  np.savez(file, **arrays, **chosen(work, features, small))


def made(small: bool) -> tuple[workload.Work, workload.Pictures]:
  """Returns a model in float32, and pictures that differ as real ones do."""
  name, count = (workload.TINY, 64) if small else ("ViT-B/32", 512)
  work = workload.make(name, "none", classes=CLASSES, length=16)
  side = work.classifier.model.config.image_size
  rng = np.random.default_rng(3)
  coarse = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
  pixels = coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)
  return work, workload.Pictures(pixels)


def encoded(work: workload.Work, images: workload.Pictures) -> np.ndarray:
  # The same tile on all devices.
  scorer = scoring.make_scorer(work.classifier, work.mesh, tile=16)
  found = scoring.encode_pool(scorer, work.params, {}, images)
  return np.asarray(found)[: len(images)]


def chosen(
  work: workload.Work, features: np.ndarray, small: bool
) -> dict[str, Any]:
  """Returns the picks of each method from features, by its name."""
  scorer = scoring.make_scorer(work.classifier, work.mesh, tile=16)
  total = len(features)
  padded = sharding.padded(total, work.mesh.devices.size, 32)
  x = sharding.place(features, work.mesh, to=padded, fill=0)
  # Exact also where the first bits of the texts' products would be TF32's.
  with jax.default_matmul_precision("highest"):
    scores = scoring.score_pool(
      scorer, work.params, {}, x, total=total, neighbors=NEIGHBORS
    )
    texts = scorer.embed(work.params, {})
  labels = np.full(total, -1, np.int32)
  labels[:CLASSES] = np.arange(CLASSES)
  pool = acquisition.PoolView(
    logits=scores.logits,
    features=x,
    labeled=sharding.place(labels >= 0, work.mesh, to=padded, fill=True),
    labels=sharding.place(labels, work.mesh, to=padded, fill=-1),
    class_embeddings=texts,
    logit_scale=np.exp(np.asarray(work.params["logit_scale"])),
    neighbor_indices=scores.neighbor_indices,
    neighbor_similarities=scores.neighbor_similarities,
    total=total,
  )
  key = jax.random.key(0)
  return {
    name: acquisition.select(name, key, pool, PICKS)
    for name in (SMALL_METHODS if small else METHODS)
  }
