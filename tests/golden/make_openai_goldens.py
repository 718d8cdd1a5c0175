"""Writes the OpenCLIP goldens: random CLIPs in OpenAI's naming, their outputs.

A second implementation in PyTorch, written from the paper (Radford et al.
2021) and the tensors' names alone; it shares no line with the one under test.
Needs torch (extra `parity`). Run: python tests/golden/make_openai_goldens.py
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent
TEXT = {
  "context_length": 12,
  "vocab_size": 40,
  "width": 16,
  "heads": 2,
  "layers": 2,
}
# name: (model_cfg, type of the file's tensors).
MODELS = {
  # float32, so that the file is compared bit for bit.
  "openai_rn_deep": (
    {
      "embed_dim": 12,
      "quick_gelu": True,
      "vision_cfg": {
        "image_size": 64,
        "layers": [2, 1, 2, 1],
        "width": 2,
        "head_width": 16,
        "patch_size": None,
      },
      "text_cfg": TEXT,
    },
    torch.float32,
  ),
  "openai_rn_rim": (
    {
      "embed_dim": 8,
      "quick_gelu": True,
      "vision_cfg": {
        "image_size": 100,  # Not a multiple of 32: rims are dropped.
        "layers": [1, 1, 1, 1],
        "width": 2,
        "head_width": 64,
        "patch_size": None,
      },
      "text_cfg": TEXT,
    },
    torch.float16,
  ),
  "laion_vit": (
    {
      "embed_dim": 12,
      "vision_cfg": {
        "image_size": 30,
        "layers": 2,
        "width": 24,
        "head_width": 8,
        "mlp_ratio": 1.5,
        "patch_size": 10,
      },
      "text_cfg": TEXT,
    },
    torch.bfloat16,
  ),
}


class QuickGelu(nn.Module):
  def forward(self, x):
    return torch.sigmoid(x * 1.702) * x


class Residual(nn.Module):
  def __init__(self, width, heads, inner, activation):
    super().__init__()
    self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
    self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
    self.mlp = nn.Sequential()
    self.mlp.add_module("c_fc", nn.Linear(width, inner))
    self.mlp.add_module("gelu", activation())
    self.mlp.add_module("c_proj", nn.Linear(inner, width))

  def forward(self, x, mask=None):
    h = self.ln_1(x)
    x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
    return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
  def __init__(self, width, layers, *rest):
    super().__init__()
    self.resblocks = nn.ModuleList(
      Residual(width, *rest) for _ in range(layers)
    )

  def forward(self, x, mask=None):
    for block in self.resblocks:
      x = block(x, mask)
    return x


class Vit(nn.Module):
  def __init__(self, c, dim, activation):
    super().__init__()
    width, patch = c["width"], c["patch_size"]
    places = (c["image_size"] // patch) ** 2 + 1
    self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
    self.class_embedding = nn.Parameter(torch.randn(width))
    self.positional_embedding = nn.Parameter(torch.randn(places, width))
    self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
    self.transformer = Tower(
      width,
      c["layers"],
      width // c["head_width"],
      int(width * c["mlp_ratio"]),
      activation,
    )
    self.proj = nn.Parameter(torch.randn(width, dim) / width**0.5)

  def forward(self, x):
    x = self.conv1(x).flatten(2).mT
    first = self.class_embedding.expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + self.positional_embedding
    return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Bottleneck(nn.Module):
  def __init__(self, before, channels, stride):
    super().__init__()
    after = 4 * channels
    self.stride = stride
    self.conv1 = nn.Conv2d(before, channels, 1, bias=False)
    self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
    self.conv3 = nn.Conv2d(channels, after, 1, bias=False)
    self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
    self.bn3 = nn.BatchNorm2d(after)
    self.downsample = None
    if stride != 1 or before != after:
      self.downsample = nn.Sequential(
        nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after)
      )

  def forward(self, x):
    y = F.relu(self.bn1(self.conv1(x)))
    y = F.relu(self.bn2(self.conv2(y)))
    y = self.bn3(self.conv3(F.avg_pool2d(y, self.stride)))
    if self.downsample is not None:
      x = self.downsample(F.avg_pool2d(x, self.stride))
    return F.relu(x + y)


class AttentionPool(nn.Module):
  def __init__(self, side, width, heads, dim):
    super().__init__()
    self.heads = heads
    self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, width))
    for name in "qkv":
      self.add_module(f"{name}_proj", nn.Linear(width, width))
    self.c_proj = nn.Linear(width, dim)

  def forward(self, x):
    x = x.flatten(2).mT
    x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
    q, k, v = (
      layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
      for layer in (self.q_proj, self.k_proj, self.v_proj)
    )
    attention = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return self.c_proj((attention @ v).transpose(1, 2).flatten(2))[:, 0]


class ResNet(nn.Module):
  def __init__(self, c, dim):
    super().__init__()
    width = c["width"]
    self.conv1 = nn.Conv2d(3, width // 2, 3, 2, 1, bias=False)
    self.conv2 = nn.Conv2d(width // 2, width // 2, 3, 1, 1, bias=False)
    self.conv3 = nn.Conv2d(width // 2, width, 3, 1, 1, bias=False)
    self.bn1, self.bn2 = (nn.BatchNorm2d(width // 2) for _ in range(2))
    self.bn3 = nn.BatchNorm2d(width)
    before = width
    for stage, count in enumerate(c["layers"]):
      blocks, channels = [], width * 2**stage
      for i in range(count):
        stride = 2 if stage > 0 and i == 0 else 1
        blocks.append(Bottleneck(before, channels, stride))
        before = 4 * channels
      self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
    heads = before // c["head_width"]
    self.attnpool = AttentionPool(c["image_size"] // 32, before, heads, dim)

  def forward(self, x):
    for conv, norm in (
      (self.conv1, self.bn1),
      (self.conv2, self.bn2),
      (self.conv3, self.bn3),
    ):
      x = F.relu(norm(conv(x)))
    x = F.avg_pool2d(x, 2)
    for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
      x = stage(x)
    return self.attnpool(x)


class Clip(nn.Module):
  def __init__(self, c):
    super().__init__()
    activation = QuickGelu if c.get("quick_gelu") else nn.GELU
    v, t, dim = c["vision_cfg"], c["text_cfg"], c["embed_dim"]
    resnet = isinstance(v["layers"], list)
    self.visual = ResNet(v, dim) if resnet else Vit(v, dim, activation)
    width = t["width"]
    self.token_embedding = nn.Embedding(t["vocab_size"], width)
    self.positional_embedding = nn.Parameter(
      torch.randn(t["context_length"], width)
    )
    self.transformer = Tower(
      width, t["layers"], t["heads"], 4 * width, activation
    )
    self.ln_final = nn.LayerNorm(width)
    self.text_projection = nn.Parameter(torch.randn(width, dim) / width**0.5)
    self.logit_scale = nn.Parameter(torch.tensor(3.0))

  def encode_text(self, ids):
    length = ids.shape[1]
    x = self.token_embedding(ids) + self.positional_embedding[:length]
    mask = torch.full((length, length), -torch.inf).triu(1)
    x = self.ln_final(self.transformer(x, mask))
    return x[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection


def main() -> None:
  for seed, (name, (model_cfg, dtype)) in enumerate(MODELS.items()):
    torch.manual_seed(seed)
    model = Clip(model_cfg).eval()
    with torch.no_grad():
      for key, x in model.state_dict().items():
        if x.dtype.is_floating_point:
          if key.endswith("running_var"):  # Flat at the start, and positive.
            x.copy_(0.5 + torch.rand_like(x))
          else:
            x.add_(0.1 * torch.randn_like(x))
            if x.ndim == 4:  # Or the pictures' differences would fade away.
              x.mul_(2.5)
          x.copy_(x.to(dtype))  # What the file will say, exactly.
    rng = np.random.default_rng(seed)
    side, text = model_cfg["vision_cfg"]["image_size"], model_cfg["text_cfg"]
    pixels = rng.normal(size=(3, side, side, 3)).astype(np.float32)
    end = text["vocab_size"] - 1
    ids = np.zeros((4, text["context_length"]), np.int64)  # Padded with 0.
    for row, length in zip(ids, (2, 5, 8, 11), strict=True):
      row[0], row[length] = end - 1, end
      row[1:length] = rng.integers(0, end - 1, length - 1)
    with torch.no_grad():
      images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
      image_features = model.visual(images)
      text_features = model.encode_text(torch.from_numpy(ids))
      image_embeds = F.normalize(image_features, dim=-1)
      text_embeds = F.normalize(text_features, dim=-1)
      logits = model.logit_scale.exp() * image_embeds @ text_embeds.T
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    save_file(
      {
        key: x.to(dtype).contiguous() if x.dtype.is_floating_point else x
        for key, x in model.state_dict().items()
      },
      folder / "open_clip_model.safetensors",
    )
    config = {
      "model_cfg": model_cfg,
      "preprocess_cfg": {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
      },
    }
    (folder / "open_clip_config.json").write_text(
      json.dumps(config, indent=2) + "\n"
    )
    np.savez_compressed(
      folder / "expected.npz",
      seed=seed,  # Of the pixels, drawn first.
      ids=ids.astype(np.int32),
      image_features=image_features.numpy(),
      text_features=text_features.numpy(),
      image_embeds=image_embeds.numpy(),
      text_embeds=text_embeds.numpy(),
      logits=logits.numpy(),
    )


if __name__ == "__main__":
  main()
