"""Rounds of entropy and PCB in PyTorch, in two versions, for `round.py`.

`reference` follows the passes of the released code of C-PEAL. In each round:

  pool       is read from files, decoded, resized and cropped again, 32 images
             at a time, because every selector makes its own loader and keeps
             nothing
  candidates are scored a second time (the tenth of the pool that PCB chooses
             among), because PCB is a selector that calls the model itself
  texts      are padded to 77 tokens and encoded in every forward pass, also
             when scoring and testing, because the text tower is part of it
  model      is read from disk and built again, because every round starts from
             CLIP
  fit        reads every image from its file in every epoch and augments it; the
             image tower runs even if it is frozen
  PCB        is a Python loop over picks with lists of candidates
  test       is read from files, 100 images at a time

It does not follow the released code in: half precision, which CPUs lack; LoRA's
branch as a product of full size; stale rows and endless draws, which are
defects; and BADGE's loop over images and classes (see `selection_peers.py`).
Files are opened by as many threads as there are cores.

`expert` is what somebody who knows the method would write. Images are decoded
once. If the image tower is frozen, features are computed once; otherwise in
large batches with LoRA merged into the weights. Prompts are cut to the longest,
and texts are encoded once per pass. PCB uses the scores that exist already. The
model is kept, and only its adapter is initialized again in each round.
"""

import dataclasses
import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch_clip import TorchClip, entropy, loss, to_floats

from cpeal_jax.data.augment import augment
from cpeal_jax.data.images import ImageSpec, preprocess

BATCH, TESTED, LARGE = 32, 100, 512


@dataclasses.dataclass(frozen=True)
class Task:
  """The data of a run (files and labels of two splits) and its recipe."""

  weights: str
  kind: str
  classes: tuple[str, ...]
  template: str
  pool: list[tuple[str, int]]
  test: list[tuple[str, int]]
  spec: ImageSpec
  rounds: int
  epochs: int
  threads: int
  seed: int = 1

  def model(self, whole: bool) -> TorchClip:
    return TorchClip(
      self.weights,
      self.kind,
      self.classes,
      template=self.template,
      whole=whole,
    )


def read(path: str) -> Image.Image:
  with Image.open(path) as image:
    return image.convert("RGB")


def rate(epoch: int, epochs: int) -> float:
  if epoch == 0:
    return 1e-5
  return 0.001 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def weight(epoch: int, epochs: int) -> float:
  """Returns the weight of the calibration loss, which is annealed to 1."""
  first = int(0.1 * epochs)
  if epoch < first:
    return 0.01 * epoch / first
  return 0.01 + 0.99 * (epoch - first) / (epochs - first)


def pcb(
  predictions: list[int],
  counts: list[int],
  budget: int,
  rng: np.random.Generator,
) -> list[int]:
  """Picks one item at a time from the rarest class that is still predicted."""
  left, picks = list(range(len(predictions))), []
  for _ in range(budget):
    rarest = min({predictions[i] for i in left}, key=lambda c: (counts[c], c))
    picks.append(int(rng.choice([i for i in left if predictions[i] == rarest])))
    left.remove(picks[-1])
    counts[rarest] += 1
  return picks


class Reference:
  """The version `reference`, which computes everything again each time."""

  def __init__(self, task: Task):
    self.task, self.threads = task, ThreadPoolExecutor(task.threads)

  def originals(self, rows: list[int]) -> list[Image.Image]:
    """Reads images of the pool in RGB."""
    paths = [self.task.pool[i][0] for i in rows]
    return list(self.threads.map(read, paths))

  def fresh(self) -> TorchClip:
    return self.task.model(whole=True)

  def logits(self, model: TorchClip, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixels)

  @torch.no_grad()
  def scan(
    self, model: TorchClip, items: list[tuple[str, int]], batch: int
  ) -> torch.Tensor:
    found = []
    for at in range(0, len(items), batch):
      images = self.threads.map(read, [p for p, _ in items[at : at + batch]])
      pixels = np.stack([preprocess(x, self.task.spec) for x in images])
      found.append(model(to_floats(pixels, self.task.spec)))
    return torch.cat(found)

  def choose(self, model: TorchClip, left: list[int]) -> tuple[list, list]:
    """Returns PCB's candidates and their predicted classes."""
    pool, count = self.task.pool, int(0.1 * len(self.task.pool))
    scores = entropy(self.scan(model, [pool[i] for i in left], BATCH))
    best = [left[i] for i in scores.argsort(descending=True)[:count].tolist()]
    again = self.scan(model, [pool[i] for i in best], BATCH)
    return best, again.argmax(dim=1).tolist()

  def accuracy(self, model: TorchClip) -> float:
    found = self.scan(model, self.task.test, TESTED).argmax(dim=1)
    labels = torch.tensor([label for _, label in self.task.test])
    return (found == labels).float().mean().item()


class Expert:
  """The version `expert`, which computes the output of frozen parts once."""

  def __init__(self, task: Task):
    self.task, self.threads = task, ThreadPoolExecutor(task.threads)
    self.kept: dict[int, Image.Image] = {}
    self.model = task.model(whole=False)
    self.model.eval()
    self.start = {k: v.clone() for k, v in self.model.state_dict().items()}
    self.pixels = [self.decode(x) for x in (task.pool, task.test)]
    self.features = None
    if task.kind == "prompts":
      self.features = [self.encode(x) for x in self.pixels]

  def decode(self, items: list[tuple[str, int]]) -> np.ndarray:
    def one(item: tuple[str, int]) -> np.ndarray:
      return preprocess(read(item[0]), self.task.spec)

    return np.stack(list(self.threads.map(one, items)))

  @torch.inference_mode()
  def encode(self, pixels: np.ndarray) -> torch.Tensor:
    parts = [pixels[i : i + LARGE] for i in range(0, len(pixels), LARGE)]
    spec = self.task.spec
    return torch.cat([self.model.images(to_floats(x, spec)) for x in parts])

  @torch.inference_mode()
  def scan(self, split: int) -> torch.Tensor:
    if self.features:
      features = self.features[split]
    else:
      self.model.merge(True)
      features = self.encode(self.pixels[split])
    found = self.model.compare(features, self.model.texts())
    self.model.merge(False)
    return found

  def originals(self, rows: list[int]) -> list[Image.Image]:
    new = [i for i in rows if i not in self.kept]
    images = self.threads.map(read, [self.task.pool[i][0] for i in new])
    self.kept |= dict(zip(new, images, strict=True))
    return [self.kept[i] for i in rows]

  def fresh(self) -> TorchClip:
    self.model.load_state_dict(self.start)
    return self.model

  def logits(self, model: TorchClip, pixels: torch.Tensor) -> torch.Tensor:
    if self.task.kind == "lora":
      return model(pixels)
    with torch.no_grad():
      features = model.images(pixels)
    return model.compare(features, model.texts())

  def choose(self, model: TorchClip, left: list[int]) -> tuple[list, list]:
    logits, count = self.scan(0)[left], int(0.1 * len(self.task.pool))
    best = entropy(logits).topk(min(count, len(left))).indices
    found = logits.argmax(dim=1)[best].tolist()
    return [left[i] for i in best.tolist()], found

  def accuracy(self, model: TorchClip) -> float:
    labels = torch.tensor([label for _, label in self.task.test])
    found = self.scan(1).argmax(dim=1)
    return (found == labels).float().mean().item()


def fit(
  arm: Reference | Expert,
  model: TorchClip,
  labeled: list[int],
  rng: np.random.Generator,
) -> None:
  task, spec = arm.task, arm.task.spec
  optimizer = torch.optim.SGD(
    model.trained(), lr=1e-5, momentum=0.9, weight_decay=5e-4
  )
  model.train()
  steps = len(labeled) // BATCH or 1
  for epoch in range(task.epochs):
    optimizer.param_groups[0]["lr"] = rate(epoch, task.epochs)
    order = rng.permutation(labeled).tolist()
    for step in range(steps):
      rows = order[step * BATCH : (step + 1) * BATCH]
      pixels = [augment(rng, x, spec) for x in arm.originals(rows)]
      labels = torch.tensor([task.pool[i][1] for i in rows])
      logits = arm.logits(model, to_floats(np.stack(pixels), spec))
      total = loss(logits, labels, weight(epoch, task.epochs))
      optimizer.zero_grad()
      total.backward()
      optimizer.step()
  model.eval()


def play(
  task: Task, kind: type[Reference] | type[Expert]
) -> list[dict[str, float]]:
  """Executes all rounds; returns the seconds and the accuracy of each."""
  torch.manual_seed(task.seed)
  arm, rng = kind(task), np.random.default_rng(task.seed)
  labeled, done = [], []
  left, model = list(range(len(task.pool))), None
  for _ in range(task.rounds):
    at = [time.perf_counter()]
    if model is None:
      picks = rng.choice(left, len(task.classes), replace=False).tolist()
    else:
      candidates, predictions = arm.choose(model, left)
      counts = [0] * len(task.classes)
      for i in labeled:
        counts[task.pool[i][1]] += 1
      chosen = pcb(predictions, counts, len(task.classes), rng)
      picks = [candidates[i] for i in chosen]
    labeled += picks
    left = [i for i in left if i not in set(picks)]
    at.append(time.perf_counter())
    model = arm.fresh()
    fit(arm, model, labeled, rng)
    at.append(time.perf_counter())
    accuracy = arm.accuracy(model)
    at.append(time.perf_counter())
    select, seconds, evaluate = np.diff(at).tolist()
    done.append(
      {"select": select, "fit": seconds, "evaluate": evaluate, "acc": accuracy}
    )
  return done
