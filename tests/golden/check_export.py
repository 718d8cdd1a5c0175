"""Loads every export in PyTorch and compares its logits with ours.

Writes export.npz, what PyTorch said, for the tests that run without it. Needs
torch (extra `parity`) and peft. Run from the project's root:
PYTHONPATH=tests python tests/golden/check_export.py
"""

import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from export_cases import (
  DINOS,
  IMAGES,
  LORAS,
  logits,
  make,
  on_dino,
  on_open_clip,
  on_siglip,
  pictures,
)
from safetensors.numpy import load_file, save_file

from cpeal_jax import export, load_clip, quickstart
from cpeal_jax.models import weights
from cpeal_jax.models.adapters import Lora
from cpeal_jax.models.clip import Clip

LIMIT = 1e-4


def torch_logits(model, source: Path, texts) -> np.ndarray:
  """Logits [6, C] of IMAGES as the directory's own files prepare them."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(source)
  rows = [tokenizer(text)["input_ids"] for text in texts]
  ids = np.full((len(rows), max(map(len, rows))), rows[0][-1])
  for row, own in zip(ids, rows, strict=True):
    row[: len(own)] = own
  own = json.loads((source / "preprocessor_config.json").read_text())
  mean, std = np.array(own["image_mean"]), np.array(own["image_std"])
  pixels = ((IMAGES / 255 - mean) / std).transpose(0, 3, 1, 2)
  with torch.no_grad():
    out = model.eval()(
      input_ids=torch.tensor(ids),
      pixel_values=torch.tensor(pixels, dtype=torch.float32),
    )
  return out.logits_per_image.numpy()


def float32_copy(directory: Path) -> Path:
  """The embedded CLIP in float32, where merging rounds nothing away."""
  shutil.copytree(quickstart.CLIP, directory)
  file = directory / "model.safetensors"
  tensors = {k: v.astype(np.float32) for k, v in load_file(file).items()}
  save_file(tensors, file, {"format": "pt"})
  config = json.loads((directory / "config.json").read_text())
  config["dtype"] = "float32"
  (directory / "config.json").write_text(json.dumps(config))
  return directory


def other_bases(root: Path, report) -> None:
  """A file in OpenAI's naming."""
  own = on_open_clip(LORAS["vision_qv"])
  side = own.pretrained.config.image_size
  export.save(own, root / "open_clip", format="transformers")
  file = load_file(root / "open_clip" / "model.safetensors")
  config = weights.read_config(root / "open_clip" / "config.json")
  model = transformers.CLIPModel.from_pretrained(
    root / "open_clip", dtype=torch.float32
  ).eval()
  mean, std = np.array(own.spec.mean), np.array(own.spec.std)
  images = torch.tensor(
    ((pictures(side) / 255 - mean) / std).transpose(0, 3, 1, 2),
    dtype=torch.float32,
  )
  with torch.no_grad():
    got = model(
      input_ids=torch.tensor(own.classifier.tokens.ids, dtype=torch.int64),
      pixel_values=images,
    ).logits_per_image.numpy()
  # What was written is rounded to the file's types: compare that.
  params = weights.convert(file, config)
  classifier = dataclasses.replace(own.classifier, model=Clip(config))
  written = dataclasses.replace(
    own, params=params, adapter={}, classifier=classifier
  )
  want = logits(written, pictures(side))
  report("open_clip", "transformers", got, want)


def on_dinos(root: Path, report) -> None:
  """LoRA and a linear head on each golden DINOv2 and DINOv3."""
  for name in DINOS:
    tower_and_head(root / name, name, report)


def tower_and_head(root: Path, name: str, report) -> None:
  own = on_dino(Lora(rank=2, towers=("vision",)), name)
  side = own.spec.size
  mean, std = np.array(own.spec.mean), np.array(own.spec.std)
  images = torch.tensor(
    ((pictures(side) / 255 - mean) / std).transpose(0, 3, 1, 2),
    dtype=torch.float32,
  )
  for format in ("head", "transformers"):
    export.save(own, root / format, format=format)
  head = load_file(root / "head" / "head.safetensors")
  want = logits(own, pictures(side))
  base = transformers.AutoModel.from_pretrained(own.pretrained.directory)
  moved = abs(want - dino_logits(base, images, head)).max()
  print(f"{name:12} the adapter moves logits by {moved:.1f}")
  model = transformers.AutoModel.from_pretrained(root / "transformers")
  report(name, "transformers and head", dino_logits(model, images, head), want)


def dino_logits(model, images, head) -> np.ndarray:
  with torch.no_grad():
    feature = model.eval()(images).pooler_output
  unit = torch.nn.functional.normalize(feature).numpy()
  return unit @ head["weight"].T + head["bias"]


def on_siglips(root: Path, report) -> dict[str, np.ndarray]:
  """LoRA on both golden SigLIPs; returns what PyTorch says of PEFT's export."""
  answers = {}
  for name in ("siglip", "siglip2"):
    own = on_siglip(LORAS["standard"], name)
    side, base = own.spec.size, own.pretrained.directory
    want = logits(own, pictures(side))
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    rows = tokenizer(
      list(own.classifier.prompts),
      padding="max_length",
      max_length=own.pretrained.config.positions,
      return_tensors="pt",
    )
    mean, std = np.array(own.spec.mean), np.array(own.spec.std)
    pixels = ((pictures(side) / 255 - mean) / std).transpose(0, 3, 1, 2)

    def torch_says(model, ids=rows["input_ids"], pixels=pixels):
      with torch.no_grad():
        out = model.eval()(
          input_ids=ids, pixel_values=torch.tensor(pixels, dtype=torch.float32)
        )
      # The bias is the same for all classes, and no part of our logits.
      return (out.logits_per_image - model.logit_bias.detach()).numpy()

    load = transformers.SiglipModel.from_pretrained
    moved = abs(want - torch_says(load(base))).max()
    print(f"{name:12} the adapter moves logits by {moved:.1f}")
    export.save(own, root / name / "hf", format="transformers")
    got = torch_says(load(root / name / "hf"))
    report(name, "transformers", got, want)
    # The processor's tokenizer came along.
    again = transformers.AutoTokenizer.from_pretrained(root / name / "hf")
    texts = list(own.classifier.prompts)
    assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    export.save(own, root / name / "peft", format="peft")
    model = peft.PeftModel.from_pretrained(load(base), root / name / "peft")
    answers[name] = torch_says(model).astype(np.float32)
    report(name, "peft on the base", answers[name], want)
    report(name, "peft, merged", torch_says(model.merge_and_unload()), want)
  return answers


def main() -> int:
  root, worst, golden = Path(tempfile.mkdtemp()), 0.0, {}
  base = float32_copy(root / "base")
  clip = transformers.CLIPModel.from_pretrained

  def report(case: str, what: str, got: np.ndarray, want: np.ndarray) -> None:
    nonlocal worst
    gap = float(np.abs(got - want).max())
    worst = max(worst, gap)
    print(f"{case:12} {what:34} max|a-b| {gap:.1e} of {np.abs(want).max():.1f}")

  for case, lora in LORAS.items():
    own = make(lora, str(base))
    texts, ours = own.classifier.tokens.texts, logits(own)
    plain = torch_logits(clip(base), base, texts)
    print(
      f"{case:12} the adapter moves logits by {abs(ours - plain).max():.1f}"
    )

    export.save(own, root / case / "hf", format="transformers")
    got = torch_logits(clip(root / case / "hf"), root / case / "hf", texts)
    report(case, "transformers, float32 base", got, ours)

    export.save(own, root / case / "peft", format="peft")
    model = peft.PeftModel.from_pretrained(clip(base), root / case / "peft")
    answers = torch_logits(model, base, texts)
    report(case, "peft on the base", answers, ours)
    named = {
      name.replace(".default", ""): value.detach().numpy()
      for name, value in model.named_parameters()
      if ".lora_" in name
    }
    file = load_file(root / case / "peft" / "adapter_model.safetensors")
    assert named.keys() == file.keys(), "target_modules wraps other modules"
    report(
      case,
      "peft, merge_and_unload",
      torch_logits(model.merge_and_unload(), base, texts),
      ours,
    )
    # In float16 the merged weights are rounded: compare what was written.
    export.save(make(lora), root / case / "half", format="transformers")
    half = load_clip(str(root / case / "half"))
    scale = half.logit_scale
    want = scale * half.encode_images(list(IMAGES)) @ half.encode_texts(texts).T
    model = clip(root / case / "half", dtype=torch.float32)
    got = torch_logits(model, root / case / "half", texts)
    report(case, "transformers, float16 base", got, want)
    golden[case] = answers.astype(np.float32)
  other_bases(root, report)
  on_dinos(root, report)
  golden |= on_siglips(root, report)
  np.savez_compressed(Path(__file__).with_name("export.npz"), **golden)
  shutil.rmtree(root)
  print(
    f"peft {peft.__version__}, torch {torch.__version__}, worst {worst:.1e}"
  )
  return int(worst > LIMIT)


if __name__ == "__main__":
  sys.exit(main())
