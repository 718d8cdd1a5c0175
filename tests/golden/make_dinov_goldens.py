"""Writes the goldens of DINOv2 and DINOv3: random models and their outputs.

The models are transformers'. Needs torch (extra `parity`).
Run: python tests/golden/make_dinov_goldens.py
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
SHAPE = {
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
}
V2 = {**SHAPE, "mlp_ratio": 2, "image_size": 70, "patch_size": 14}
V3 = {**SHAPE, "intermediate_size": 40, "image_size": 48, "patch_size": 8}
# The sides of the images: a model's own size, a smaller and a larger one; 45
# leaves out the rim.
SIDES_V2, SIDES_V3 = (70, 45, 112), (48, 45, 80)
PREPROCESSOR = {
  "do_normalize": True,
  "do_rescale": True,
  "do_resize": True,
  "image_mean": [0.485, 0.456, 0.406],
  "image_std": [0.229, 0.224, 0.225],
  "rescale_factor": 0.00392156862745098,
}
# As the published models have it, but for the sizes.
PREPROCESSOR_V2 = {
  **PREPROCESSOR,
  "crop_size": {"height": 28, "width": 28},
  "do_center_crop": True,
  "do_convert_rgb": True,
  "image_processor_type": "BitImageProcessor",
  "resample": 3,
  "size": {"shortest_edge": 32},
}
PREPROCESSOR_V3 = {
  **PREPROCESSOR,
  "crop_size": None,
  "do_center_crop": None,
  "do_convert_rgb": None,
  "image_processor_type": "DINOv3ViTImageProcessorFast",
  "resample": 2,
  "size": {"height": 32, "width": 32},
}


class Golden(NamedTuple):
  """A random model, drawn from `seed`, and the sides of images it is given."""

  name: str
  seed: int
  config: Any
  model: Any
  sides: tuple[int, ...]
  preprocessor: dict


GOLDENS = (
  Golden(
    "dinov2",
    0,
    transformers.Dinov2Config(**V2),
    transformers.Dinov2Model,
    SIDES_V2,
    PREPROCESSOR_V2,
  ),
  Golden(
    "dinov2_registers",
    1,
    transformers.Dinov2WithRegistersConfig(**V2, num_register_tokens=3),
    transformers.Dinov2WithRegistersModel,
    SIDES_V2,
    PREPROCESSOR_V2,
  ),
  # As ViT-S, B and L.
  Golden(
    "dinov3",
    0,
    transformers.DINOv3ViTConfig(**V3, num_register_tokens=4),
    transformers.DINOv3ViTModel,
    SIDES_V3,
    PREPROCESSOR_V3,
  ),
  # As the largest, whose perceptron is gated.
  Golden(
    "dinov3_gated",
    1,
    transformers.DINOv3ViTConfig(
      **V3,
      num_register_tokens=0,
      use_gated_mlp=True,
      hidden_act="silu",
      query_bias=False,
      value_bias=False,
      rope_theta=30.0,
    ),
    transformers.DINOv3ViTModel,
    SIDES_V3,
    PREPROCESSOR_V3,
  ),
)


def main() -> None:
  for golden in GOLDENS:
    torch.manual_seed(golden.seed)
    model = golden.model(golden.config).eval()
    with torch.no_grad():
      for parameter in model.parameters():  # biases and norms are flat at init
        parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(HERE / golden.name)
    arrays = {}
    for side in golden.sides:
      rng = np.random.default_rng(side)  # the tests draw the same pixels
      pixels = rng.normal(size=(2, side, side, 3)).astype(np.float32)
      with torch.no_grad():
        # NCHW, as the model wants it.
        images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        out = model(pixel_values=images).pooler_output
      arrays[str(side)] = out.numpy()
    np.savez(HERE / golden.name / "expected.npz", **arrays)
    text = json.dumps(golden.preprocessor, indent=2, sort_keys=True) + "\n"
    (HERE / golden.name / "preprocessor_config.json").write_text(text)


if __name__ == "__main__":
  main()
