"""The library's front door: a CLIP to encode with, a finished run to ask."""

import dataclasses
import os
from collections.abc import Sequence
from functools import cached_property

import jax
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from cpeal_jax import scoring
from cpeal_jax.data.images import ImageSpec, image_spec, preprocess
from cpeal_jax.errors import InputError, one_of
from cpeal_jax.models import text, weights
from cpeal_jax.models.clip import Clip
from cpeal_jax.models.text_classifier import TextClassifier
from cpeal_jax.parallel import sharding
from cpeal_jax.run import finished

Picture = Image.Image | np.ndarray | str | os.PathLike


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
  """Pictures of any kind, preprocessed when they are asked for."""

  pictures: Sequence[Picture]
  spec: ImageSpec

  def __len__(self) -> int:
    return len(self.pictures)

  def rows(self, start: int, stop: int) -> np.ndarray:
    return np.stack([self._one(x) for x in self.pictures[start:stop]])

  def _one(self, picture: Picture) -> np.ndarray:
    if isinstance(picture, np.ndarray):
      return preprocess(Image.fromarray(picture), self.spec)
    if isinstance(picture, Image.Image):
      return preprocess(picture, self.spec)
    try:
      with Image.open(picture) as image:
        return preprocess(image, self.spec)
    except OSError as error:
      raise InputError(f"cannot read image {picture}: {error}") from error


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
    self, images: Sequence[Picture]
  ) -> Float[np.ndarray, "N D"]:
    """Unit features of PIL images, uint8 arrays [H, W, 3] or paths."""
    scorer, params = self._images
    pictures = Pictures(images, image_spec(self.pretrained.preprocessor))
    found = scoring.encode_pool(scorer, params, {}, pictures)
    return sharding.fetch(found, len(pictures))

  def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "C D"]:
    """Unit features of whole prompts."""
    classifier = self._classifier(tuple(texts))
    embed = jax.jit(classifier.class_embeddings)
    return np.asarray(embed(self.pretrained.params, {}))

  def _classifier(self, texts: tuple[str, ...]) -> TextClassifier:
    spec, own = image_spec(self.pretrained.preprocessor), self.pretrained
    tokens = text.tokenize(texts, own.tokenizer, positions=own.config.positions)
    model = Clip(own.config, dtype=self.dtype)
    return TextClassifier(model, tokens, spec.mean, spec.std)

  @cached_property
  def _images(self) -> tuple[scoring.Scorer, dict]:
    mesh = sharding.make_mesh()
    scorer = scoring.make_scorer(self._classifier(("",)), mesh)
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
  """

  classes: tuple[str, ...]
  round: int
  scorer: scoring.Scorer
  params: dict
  adapter: dict
  spec: ImageSpec

  def __repr__(self) -> str:
    return f"<model of round {self.round}, {len(self.classes)} classes>"

  def encode_images(
    self, images: Sequence[Picture]
  ) -> Float[np.ndarray, "N D"]:
    """Unit features of PIL images, uint8 arrays [H, W, 3] or paths."""
    return sharding.fetch(self._encode(images), len(images))

  def _encode(self, images: Sequence[Picture]) -> Float[Array, "rows D"]:
    return scoring.encode_pool(
      self.scorer, self.params, self.adapter, Pictures(images, self.spec)
    )

  def predict(self, images: Sequence[Picture]) -> Float[np.ndarray, "N C"]:
    """Class probabilities of PIL images, uint8 arrays [H, W, 3] or paths."""
    scores = scoring.score_pool(
      self.scorer,
      self.params,
      self.adapter,
      self._encode(images),
      total=len(images),
    )
    logits = sharding.fetch(scores.logits, len(images))
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
    own.classes, own.number, scorer, own.params, own.adapter, own.spec
  )
