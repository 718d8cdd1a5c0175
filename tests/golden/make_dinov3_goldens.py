"""Writes the DINOv3 goldens: random models of transformers and their outputs.

Needs torch (extra `parity`). Run: python tests/golden/make_dinov3_goldens.py
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
SHAPE = {
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "intermediate_size": 40,
  "image_size": 48,
  "patch_size": 8,
}
MODELS = {
  # As ViT-S, B and L, and as the largest, whose perceptron is gated.
  "dinov3": {"num_register_tokens": 4},
  "dinov3_gated": {
    "num_register_tokens": 0,
    "use_gated_mlp": True,
    "hidden_act": "silu",
    "query_bias": False,
    "value_bias": False,
    "rope_theta": 30.0,
  },
}
# Its own size, a smaller and a larger one; 45 leaves out the rim.
SIDES = (48, 45, 80)
# As the published models have it, but for the sizes.
PREPROCESSOR = {
  "crop_size": None,
  "do_center_crop": None,
  "do_convert_rgb": None,
  "do_normalize": True,
  "do_rescale": True,
  "do_resize": True,
  "image_mean": [0.485, 0.456, 0.406],
  "image_processor_type": "DINOv3ViTImageProcessorFast",
  "image_std": [0.229, 0.224, 0.225],
  "resample": 2,
  "rescale_factor": 0.00392156862745098,
  "size": {"height": 32, "width": 32},
}


def main() -> None:
  for seed, (name, more) in enumerate(MODELS.items()):
    torch.manual_seed(seed)
    config = transformers.DINOv3ViTConfig(**SHAPE, **more)
    model = transformers.DINOv3ViTModel(config).eval()
    with torch.no_grad():
      for parameter in model.parameters():  # biases and norms are flat at init
        parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(HERE / name)
    arrays = {}
    for side in SIDES:
      rng = np.random.default_rng(side)  # the tests draw the same pixels
      pixels = rng.normal(size=(2, side, side, 3)).astype(np.float32)
      with torch.no_grad():
        # NCHW, as the model wants it.
        images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        out = model(pixel_values=images).pooler_output
      arrays[str(side)] = out.numpy()
    np.savez(HERE / name / "expected.npz", **arrays)
    (HERE / name / "preprocessor_config.json").write_text(
      json.dumps(PREPROCESSOR, indent=2) + "\n"
    )


if __name__ == "__main__":
  main()
