"""Writes the DINOv2 goldens: random models of transformers and their outputs.

Needs torch (extra `parity`). Run: python tests/golden/make_dinov2_goldens.py
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
  "mlp_ratio": 2,
  "image_size": 70,
  "patch_size": 14,
}
MODELS = {
  "dinov2": (transformers.Dinov2Config, transformers.Dinov2Model, {}),
  "dinov2_registers": (
    transformers.Dinov2WithRegistersConfig,
    transformers.Dinov2WithRegistersModel,
    {"num_register_tokens": 3},
  ),
}
# Its own size, a smaller and a larger one; 45 leaves out the rim.
SIDES = (70, 45, 112)
# As facebook/dinov2-base has it, but for the sizes.
PREPROCESSOR = {
  "crop_size": {"height": 28, "width": 28},
  "do_center_crop": True,
  "do_convert_rgb": True,
  "do_normalize": True,
  "do_rescale": True,
  "do_resize": True,
  "image_mean": [0.485, 0.456, 0.406],
  "image_processor_type": "BitImageProcessor",
  "image_std": [0.229, 0.224, 0.225],
  "resample": 3,
  "rescale_factor": 0.00392156862745098,
  "size": {"shortest_edge": 32},
}


def main() -> None:
  for seed, (name, (make, build, more)) in enumerate(MODELS.items()):
    torch.manual_seed(seed)
    model = build(make(**SHAPE, **more)).eval()
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
