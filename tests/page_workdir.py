"""A workdir that asks a person about its first round, made by hand."""

import io

import numpy as np
from PIL import Image

from cpeal_jax.labeling.events import AUDIT, TRAIN
from cpeal_jax.storage import files, record

CLASSES = ("cat", "dog", "cow")
POOL = 30
# The images of the first round: picks, then audits.
PICKS = tuple(f"im {i:02}.png" for i in range(8))
AUDITS = ("im 20.png", "im 21.png", "im 22.png")


def photo(color, size=(6, 4), **how):
  out = io.BytesIO()
  Image.new("RGB", size, color).save(out, how.pop("kind", "PNG"), **how)
  return out.getvalue()


def make(folder, *, rounds=1, asked=PICKS, audits=AUDITS, label=lambda i: ""):
  """Writes a pool of images and a workdir; returns the workdir's path."""
  root, workdir = folder / "photos", folder / "run"
  root.mkdir()
  ids = [f"im {i:02}.png" for i in range(POOL)]
  for number, id_ in enumerate(ids):
    (root / id_).write_bytes(photo((number, 0, 0)))
  columns = {
    "id": [*ids, "test.png"],
    "path": [*(str(root / i) for i in ids), str(root / ids[0])],
    "sha256": ["0" * 64] * (POOL + 1),
    "split": ["train"] * POOL + ["test"],
    "status": ["ok"] * (POOL + 1),
    "label": [*map(label, range(POOL)), ""],
  }
  workdir.mkdir()
  files.write_json(workdir / "environment.json", {"classes": list(CLASSES)})
  files.write_parquet(workdir / "manifest.parquet", columns)
  files.write_json(workdir / "config.json", {})
  for round_ in range(rounds):
    select(workdir, round_, ids, asked, audits)
  return workdir


def select(workdir, round_, ids, asked, audits):
  rows = [*asked, *audits]
  predictions = np.arange(len(ids)) % len(CLASSES)
  confidence = np.linspace(0.99, 0.4, len(ids))

  def of_picks(values):
    return [*(values[ids.index(i)] for i in asked), *([None] * len(audits))]

  record.write_selection(
    workdir,
    round_,
    selection={
      "id": rows,
      "path": rows,
      "rank": list(range(len(rows))),
      "prediction": of_picks([CLASSES[i] for i in predictions]),
      "confidence": of_picks(confidence),
      "reason": of_picks([f"margin rank {i} of 30" for i in range(len(ids))]),
      "purpose": [TRAIN] * len(asked) + [AUDIT] * len(audits),
    },
    scores={"id": ids, "prediction": predictions, "confidence": confidence},
  )
