"""Writes the CLIP goldens: random `transformers.CLIPModel`s and their outputs.

Needs torch (extra `parity`). Run: python tests/golden/make_clip_goldens.py
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

HERE = Path(__file__).parent
SHAPES = {
  "clip_small_patches": {
    "vision": {
      "hidden_size": 32,
      "num_hidden_layers": 2,
      "num_attention_heads": 4,
      "intermediate_size": 64,
      "image_size": 24,
      "patch_size": 4,
      "hidden_act": "quick_gelu",
    },
    "text": {
      "hidden_size": 24,
      "num_hidden_layers": 3,
      "num_attention_heads": 2,
      "intermediate_size": 96,
      "hidden_act": "quick_gelu",
    },
    "projection_dim": 16,
  },
  "clip_gelu": {
    "vision": {
      "hidden_size": 24,
      "num_hidden_layers": 3,
      "num_attention_heads": 3,
      "intermediate_size": 48,
      "image_size": 40,
      "patch_size": 16,  # 40 is not a multiple: the rim is left out
      "hidden_act": "gelu",
      "layer_norm_eps": 1e-6,
    },
    "text": {
      "hidden_size": 32,
      "num_hidden_layers": 2,
      "num_attention_heads": 4,
      "intermediate_size": 64,
      "hidden_act": "gelu",
      "layer_norm_eps": 1e-6,
    },
    "projection_dim": 20,
  },
}
VOCABULARY, POSITIONS = 64, 20


def main() -> None:
  for seed, (name, shape) in enumerate(SHAPES.items()):
    torch.manual_seed(seed)
    config = transformers.CLIPConfig(
      vision_config=shape["vision"],
      text_config={
        **shape["text"],
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": VOCABULARY - 1,
      },
      projection_dim=shape["projection_dim"],
    )
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
      for parameter in model.parameters():  # biases and norms are flat at init
        parameter.add_(0.1 * torch.randn_like(parameter))
    rng = np.random.default_rng(seed)
    side = shape["vision"]["image_size"]
    pixels = rng.normal(size=(5, side, side, 3)).astype(np.float32)
    ids = np.full((4, POSITIONS), VOCABULARY - 1)
    for row, length in zip(ids, (3, 7, 12, 18), strict=True):
      row[0] = VOCABULARY - 2
      row[1:length] = rng.integers(0, VOCABULARY - 2, length - 1)
    with torch.no_grad():
      # NCHW, as the model wants it.
      images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
      out = model(pixel_values=images, input_ids=torch.from_numpy(ids))
      image_features = model.get_image_features(images).pooler_output
      text_features = model.get_text_features(
        torch.from_numpy(ids)
      ).pooler_output
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config.to_json_string())
    save_file(
      {k: v.numpy() for k, v in model.state_dict().items()},
      folder / "model.safetensors",
    )
    np.savez(
      folder / "expected.npz",
      pixels=pixels,
      ids=ids.astype(np.int32),
      image_features=image_features.numpy(),
      text_features=text_features.numpy(),
      image_embeds=out.image_embeds.numpy(),
      text_embeds=out.text_embeds.numpy(),
      logits=out.logits_per_image.numpy(),
    )


if __name__ == "__main__":
  main()
