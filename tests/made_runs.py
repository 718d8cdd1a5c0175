"""Finished runs made by hand: workdirs as a run leaves them, without a model.

Images are small pictures on disk unless `has_images` is False.
"""

import jax
import numpy as np
from page_workdir import photo

from cpeal_jax import config as config_lib
from cpeal_jax import metrics
from cpeal_jax.storage import files, record, results, workdir

SUMMARY = jax.jit(metrics.summary)


def names_of(classes):
  return [f"class {number:03}" for number in range(classes)]


def make(
  folder,
  *,
  seed=1,
  method="random",
  classes=4,
  pool=60,
  test=40,
  rounds=3,
  planned=None,
  budget=4,
  skill=2.0,
  zero_shot=True,
  keeps=True,
  has_images=True,
  data=0,
  **settings,
):
  """Writes a workdir; returns its path.

  Args:
    folder: where; the images are beside it.
    seed: of the run.
    method: its acquisition.
    classes, pool, test, rounds, budget: how many.
    planned: how many rounds it was started for; None for `rounds`.
    skill: how much larger the logit of the right class is in the last round.
    zero_shot: whether there is a row without labels.
    keeps: whether the logits are kept.
    has_images: whether the images are files.
    data: another number gives other images.
    settings: other settings, by dotted names with `__` for dots.
  """
  root = folder.parent / f"photos{data}"
  names = names_of(classes)
  rng = np.random.default_rng(1000 + data)
  labels = rng.integers(classes, size=pool + test)
  ids = [f"im {number:05}.png" for number in range(pool + test)]
  paths = [str(root / id_) if has_images else "" for id_ in ids]
  pictures = [photo((n % 256, n // 256, data), (5, 4)) for n in range(len(ids))]
  if has_images and not root.exists():
    root.mkdir(parents=True)
    for path, picture in zip(paths, pictures, strict=True):
      with open(path, "wb") as file:
        file.write(picture)
  config = config_lib.base()
  config.name = "made"
  config.seed = seed
  config.rounds = planned or rounds
  config.acquisition.name = method
  config.dataset.root = str(root)
  config.model.weights = "nowhere"
  config.update_from_flattened_dict(
    {key.replace("__", "."): value for key, value in settings.items()}
  )
  values = config.to_dict()
  values["model"]["sha256"] = "0" * 64
  workdir.open_workdir(
    folder,
    config=values,
    run_keys=config_lib.RUN_KEYS,
    defaults={},
    environment={
      "classes": names,
      "weights": "nowhere",
      "weights_sha256": "0" * 64,
      "versions": {"jax": "0"},
    },
    manifest={
      "id": ids,
      "path": paths,
      "sha256": [files.sha256(x) for x in pictures],
      "split": ["train"] * pool + ["test"] * test,
      "status": ["ok"] * len(ids),
      "label": [names[x] for x in labels],
    },
  )
  draws = np.random.default_rng(seed)
  first = -1 if zero_shot else 0
  for round_ in range(first, rounds):
    if round_ >= 0:
      _select(folder, round_, ids[:pool], labels, names, draws, budget)
    row = {"round": round_, "labeled": budget * (round_ + 1)}
    if test:
      sure = skill * (round_ + 2) / (rounds + 1)
      logits = draws.normal(size=(test, classes)).astype(np.float32)
      logits[np.arange(test), labels[pool:]] += sure
      row |= SUMMARY(logits, labels[pool:], temperature=1.5)
      row["temperature"] = np.float32(1.5)
      if keeps:
        record.write_predictions(folder, round_, {"test": (ids[pool:], logits)})
    if round_ >= 0:
      row |= {"seconds_fit": 1.5, "seconds_select": 0.25}
    results.write_metrics(folder, [row])
    if round_ >= 0:
      record.mark_done(folder, round_)
  return folder


def _select(folder, round_, ids, labels, names, draws, budget):
  rows = range(round_ * budget, (round_ + 1) * budget)
  guesses = draws.integers(len(names), size=len(ids))
  record.write_selection(
    folder,
    round_,
    selection={
      "id": [ids[i] for i in rows],
      "path": [ids[i] for i in rows],
      "rank": [*range(budget)],
      "prediction": [names[guesses[i]] for i in rows],
      "confidence": [0.5] * budget,
      "reason": ["drawn"] * budget,
    },
    scores={"id": ids, "prediction": guesses.astype(np.int32)},
  )
  record.write_labels(
    folder,
    round_,
    [ids[i] for i in rows],
    [names[labels[i]] for i in rows],
    sources=["simulated"] * budget,
  )


def sweep(folder, *, methods=("random", "margin"), seeds=(1, 2), **how):
  """Writes runs of several methods and seeds; returns the folder."""
  skills = dict(zip(methods, (2.0, 3.0, 2.5, 1.5), strict=False))
  for method in methods:
    for seed in seeds:
      make(
        folder / f"{method}-seed{seed}",
        seed=seed,
        method=method,
        skill=skills[method],
        **how,
      )
  return folder
