"""The library's front door: a CLIP to encode with, a finished run to ask."""

import dataclasses
import os
from collections.abc import Iterable
from functools import cached_property

import jax
import numpy as np
from jaxtyping import Array, Float

from cpeal_jax import scoring
from cpeal_jax.data.images import ImageSpec, image_spec
from cpeal_jax.data.pictures import (
  Picture,
  as_pictures,
  as_texts,
  open_picture,
)
from cpeal_jax.errors import one_of
from cpeal_jax.models import text, weights
from cpeal_jax.models.clip import Clip
from cpeal_jax.models.text_classifier import TextClassifier
from cpeal_jax.parallel import sharding
from cpeal_jax.run import finished


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
  """Pictures of any kind, preprocessed when they are asked for."""

  pictures: list[Picture]
  spec: ImageSpec

  def __len__(self) -> int:
    return len(self.pictures)

  def rows(self, start: int, stop: int) -> np.ndarray:
    chosen = self.pictures[start:stop]
    return np.stack([open_picture(picture, self.spec) for picture in chosen])


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
  """A pretrained CLIP on all devices.

  Attributes:
    pretrained: its weights, sizes and tokenizer.
    dtype: compute type; what comes out is float32.
  """

  pretrained: weights.Pretrained
  dtype: str = "float32"

  def __repr__(self) -> str:
    return f"<CLIP {self.pretrained.source}, {self.dtype}>"

  @property
  def logit_scale(self) -> float:
    """What cosines are multiplied with, already exponentiated."""
    return float(np.exp(self.pretrained.params["logit_scale"]))

  def encode_images(
    self, images: Picture | Iterable[Picture]
  ) -> Float[np.ndarray, "N D"]:
    """Unit features of PIL images, uint8 arrays [H, W, 3] or paths.

    One picture gives one row, and an empty list gives none.
    """
    spec = image_spec(self.pretrained.preprocessor)
    pictures = Pictures(as_pictures(images), spec)
    if not pictures:
      return np.zeros((0, self.pretrained.config.dim), np.float32)
    scorer, params = self._images
    found = scoring.encode_pool(scorer, params, {}, pictures)
    return sharding.fetch(found, len(pictures))

  def encode_texts(
    self, texts: str | Iterable[str]
  ) -> Float[np.ndarray, "C D"]:
    """Unit features of whole prompts.

    One text gives one row, and an empty list gives none.

    Raises:
      InputError: different texts have one embedding, so the tokenizer does not
        know their words.
    """
    own, listed = self.pretrained, as_texts(texts)
    if not listed:
      return np.zeros((0, own.config.dim), np.float32)
    tokens = text.tokenize(
      listed, own.tokenizer, positions=own.config.positions
    )
    embed = jax.jit(self._classifier(tokens).class_embeddings)
    embeddings = np.asarray(embed(own.params, {}))
    text.refuse_equal(listed, embeddings)
    return embeddings

  def _classifier(self, tokens: text.Tokens) -> TextClassifier:
    spec, own = image_spec(self.pretrained.preprocessor), self.pretrained
    model = Clip(own.config, dtype=self.dtype)
    return TextClassifier(model, tokens, spec.mean, spec.std)

  @cached_property
  def _images(self) -> tuple[scoring.Scorer, dict]:
    mesh = sharding.make_mesh()
    # A scorer wants texts; images are encoded without them.
    ids = np.full((1, 8), self.pretrained.config.end_token, np.int32)
    no_text = text.Tokens(("",), ids, np.full_like(ids, -1))
    scorer = scoring.make_scorer(self._classifier(no_text), mesh)
    return scorer, sharding.replicate(self.pretrained.params, mesh)


def load_clip(source: str | os.PathLike, *, dtype: str = "float32") -> Encoder:
  """A CLIP from a Hugging Face or OpenCLIP directory or hub id.

  Args:
    source: the directory, or the id.
    dtype: compute type, `float32` or `bfloat16`; weights stay in float32.

  Raises:
    InputError: no CLIP there, weights that do not match its config.json, or
      another type.
  """
  one_of("dtype", dtype, ("float32", "bfloat16"))
  return Encoder(weights.load_pretrained(os.fspath(source)), dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
  """The model a round ended with.

  Attributes:
    classes: class names; the columns of `predict`.
    round: counted from 0.
    dim: D, the length of a feature.
  """

  classes: tuple[str, ...]
  round: int
  scorer: scoring.Scorer
  params: dict
  adapter: dict
  spec: ImageSpec
  dim: int

  def __repr__(self) -> str:
    return f"<model of round {self.round}, {len(self.classes)} classes>"

  def encode_images(
    self, images: Picture | Iterable[Picture]
  ) -> Float[np.ndarray, "N D"]:
    """Unit features of PIL images, uint8 arrays [H, W, 3] or paths."""
    pictures = as_pictures(images)
    if not pictures:
      return np.zeros((0, self.dim), np.float32)
    return sharding.fetch(self._encode(pictures), len(pictures))

  def _encode(self, images: list[Picture]) -> Float[Array, "rows D"]:
    return scoring.encode_pool(
      self.scorer, self.params, self.adapter, Pictures(images, self.spec)
    )

  def predict(
    self, images: Picture | Iterable[Picture]
  ) -> Float[np.ndarray, "N C"]:
    """Class probabilities of PIL images, uint8 arrays [H, W, 3] or paths."""
    pictures = as_pictures(images)
    if not pictures:
      return np.zeros((0, len(self.classes)), np.float32)
    scores = scoring.score_pool(
      self.scorer,
      self.params,
      self.adapter,
      self._encode(pictures),
      total=len(pictures),
    )
    logits = sharding.fetch(scores.logits, len(pictures))
    return np.asarray(jax.nn.softmax(logits))


def load_run(directory: str | os.PathLike, *, round: int = -1) -> Adapted:
  """The adapted model of a workdir.

  Args:
    directory: the run's workdir.
    round: counted from 0, or from the end where negative.

  Raises:
    InputError: no such round, or weights that are not those of the run.
  """
  own = finished.read_round(directory, round)
  scorer = scoring.make_scorer(own.classifier, own.mesh)
  return Adapted(
    classes=own.classes,
    round=own.number,
    scorer=scorer,
    params=own.params,
    adapter=own.adapter,
    spec=own.spec,
    dim=own.pretrained.config.dim,
  )
