"""Writes PyTorch's answers for the shared CLIP `clip-tiny64`.

Needs torch (extra `parity`) and the shared models beside the checkout.
Run: python tests/golden/make_clip_tiny64.py
"""

from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
MODEL = HERE.parents[2] / "shared" / "models" / "clip-tiny64"
TEXTS = ["a photo of a cat.", "a centered satellite photo of sea or lake."]


def main() -> None:
  model = transformers.CLIPModel.from_pretrained(MODEL, dtype=torch.float32)
  tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
  ids = tokenizer(TEXTS, padding="max_length", return_tensors="np")
  ids = ids["input_ids"].astype(np.int64)
  seed = np.random.default_rng(0)
  pixels = seed.normal(size=(3, 64, 64, 3)).astype(np.float32)
  with torch.no_grad():
    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    out = model.eval()(pixel_values=images, input_ids=torch.from_numpy(ids))
    image_features = model.get_image_features(images).pooler_output
    text_features = model.get_text_features(torch.from_numpy(ids)).pooler_output
  np.savez(
    HERE / "clip_tiny64.npz",
    ids=ids.astype(np.int32),
    image_features=image_features.numpy(),
    text_features=text_features.numpy(),
    image_embeds=out.image_embeds.numpy(),
    text_embeds=out.text_embeds.numpy(),
    logits=out.logits_per_image.numpy(),
  )


if __name__ == "__main__":
  main()
