"""Writes the SigLIP goldens: random `SiglipModel`s and what they answer.

Each folder is a whole checkpoint, as `save_pretrained` writes it: `siglip` with
a sentencepiece model as the first SigLIP has, `siglip2` with a tokenizer of
Gemma's class. Needs torch (extra `parity`) and sentencepiece (extra `siglip`).
Run: python tests/golden/make_siglip_goldens.py
"""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers
import torch
import transformers

HERE = Path(__file__).parent
SHAPES = {
  "siglip": {
    "vision": {
      "hidden_size": 32,
      "num_hidden_layers": 2,
      "num_attention_heads": 4,
      "intermediate_size": 64,
      "image_size": 24,
      "patch_size": 8,
    },
    # The towers of the first SigLIPs are equally wide.
    "text": {
      "hidden_size": 32,
      "num_hidden_layers": 3,
      "num_attention_heads": 2,
      "intermediate_size": 96,
      "max_position_embeddings": 64,
    },
  },
  "siglip2": {
    "vision": {
      "hidden_size": 36,
      "num_hidden_layers": 3,
      "num_attention_heads": 3,
      "intermediate_size": 44,
      "image_size": 30,
      "patch_size": 14,  # 30 is not a multiple: the rim is left out
    },
    # As in the giant one, where texts are projected to the images' width.
    "text": {
      "hidden_size": 24,
      "num_hidden_layers": 2,
      "num_attention_heads": 4,
      "intermediate_size": 64,
      "max_position_embeddings": 40,
      "projection_size": 36,
    },
  },
}
TEXTS = (
  "a photo of the digit three.",
  "A photo of the Digit EIGHT!",
  "cat",
  "the small grey dog, which has a very long tail, in the middle of a road",
)
CORPUS = (
  *TEXTS,
  "a photo of a cat. a photo of a dog. zero one two three four five six seven",
  "eight nine. the digit seven of a photo. it's a picture in black and white.",
)


def sentence_tokenizer() -> transformers.PreTrainedTokenizerBase:
  """A small sentencepiece model with the ids of SigLIP's special tokens."""
  file = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([line.lower() for line in CORPUS]),
    model_writer=file,
    vocab_size=90,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    normalization_rule_name="identity",  # the table of another takes 240 KB
  )
  folder = HERE / "siglip"
  (folder / "spiece.model").write_bytes(file.getvalue())
  return transformers.SiglipTokenizer(
    str(folder / "spiece.model"), model_max_length=64
  )


def gemma_tokenizer() -> transformers.PreTrainedTokenizerBase:
  """A small BPE of Gemma's class, with the settings of SigLIP 2."""
  special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
  special += [f"<0x{byte:02X}>" for byte in range(256)]
  made = tokenizers.Tokenizer(
    tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True)
  )
  made.normalizer = tokenizers.normalizers.Replace(" ", "▁")
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=len(special) + 100, special_tokens=special, show_progress=False
  )
  # No piece reaches over a space or has letters and marks, as in
  # sentencepiece's training.
  made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Split("▁", "merged_with_next"),
      tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(r"[^\w\s▁]"), "isolated"
      ),
    ]
  )
  made.train_from_iterator([line.lower() for line in CORPUS], trainer)
  raw = json.loads(made.to_str())["model"]
  return transformers.GemmaTokenizer(
    vocab=raw["vocab"],
    merges=[tuple(merge) for merge in raw["merges"]],
    add_bos_token=False,
    add_eos_token=True,
    padding_side="right",
    model_input_names=["input_ids"],
  )


TOKENIZERS = {"siglip": sentence_tokenizer, "siglip2": gemma_tokenizer}


def main() -> None:
  for seed, (name, shape) in enumerate(SHAPES.items()):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tokenizer = TOKENIZERS[name]()
    torch.manual_seed(seed)
    config = transformers.SiglipConfig(
      vision_config=shape["vision"],
      text_config={**shape["text"], "vocab_size": len(tokenizer)},
    )
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():
      for parameter in model.parameters():  # biases and norms are flat at init
        parameter.add_(0.1 * torch.randn_like(parameter))
      model.logit_scale.fill_(2.5)
      model.logit_bias.fill_(-3.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = shape["vision"]["image_size"]
    transformers.SiglipImageProcessor(
      size={"height": side, "width": side},
      image_mean=[0.5, 0.5, 0.5],
      image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(folder)
    rng = np.random.default_rng(seed)
    pixels = rng.normal(size=(5, side, side, 3)).astype(np.float32)
    rows = transformers.AutoTokenizer.from_pretrained(folder)(
      # SigLIP 2 was trained on lower case, which Gemma's tokenizer leaves out.
      [text.lower() for text in TEXTS],
      padding="max_length",
      max_length=shape["text"]["max_position_embeddings"],
      return_tensors="pt",
    )
    ids = rows["input_ids"]
    with torch.no_grad():
      # NCHW, as the model wants it.
      images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
      out = model(pixel_values=images, input_ids=ids)
      image_features = model.get_image_features(images).pooler_output
      text_features = model.get_text_features(ids).pooler_output
    np.savez(
      folder / "expected.npz",
      pixels=pixels,
      texts=np.array(TEXTS),
      ids=ids.numpy().astype(np.int32),
      image_features=image_features.numpy(),
      text_features=text_features.numpy(),
      image_embeds=out.image_embeds.numpy(),
      text_embeds=out.text_embeds.numpy(),
      logits=out.logits_per_image.numpy(),
    )


if __name__ == "__main__":
  main()
