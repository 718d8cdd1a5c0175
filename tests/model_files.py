"""Loads a folder of model files and looks at what its text tower says."""

import json
import string

import numpy as np
import tokenizers

from cpeal_jax.models import text, weights
from cpeal_jax.models.clip import Clip
from cpeal_jax.models.text_classifier import TextClassifier

TEXTS = ("a photo of the digit three.", "a photo of the digit eight.")


def load(folder):
  return weights.load_pretrained(str(folder))


def embed(own, texts=TEXTS):
  tokens = text.tokenize(texts, own.tokenizer, positions=own.config.positions)
  classifier = TextClassifier(Clip(own.config), tokens, (0.0,) * 3, (1.0,) * 3)
  return np.asarray(classifier.class_embeddings(own.params, {}))


def save_tokenizer(folder):
  """A tokenizer for the goldens' 40 tokens, the end token among the last."""
  words = ["?", "a", "photo", "of", "one", "two", ".", *string.ascii_uppercase]
  words += ["b", "c", "d", "e", "<", ">"]
  made = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(
      {word: i for i, word in enumerate(words)}, unk_token="?"
    )
  )
  made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single="< $A >", special_tokens=[("<", 37), (">", 38)]
  )
  made.add_special_tokens(["?", "<", ">"])
  made.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(
    json.dumps(
      {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<",
        "eos_token": ">",
        "pad_token": ">",
        "unk_token": "?",
      }
    )
  )
