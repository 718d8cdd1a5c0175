"""The library's entry points: `load_clip` and `load_run`.

The first loads a pretrained CLIP to encode images and texts with, the second
the adapted model of a finished run.
"""

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
from cpeal_jax.models.classifier import Classifier
from cpeal_jax.models.clip import Clip
from cpeal_jax.parallel import sharding
from cpeal_jax.run import finished

# A Pillow image, uint8 pixels [H, W, 3] or the path of an image file.
Picture = Image.Image | np.ndarray | str | os.PathLike


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
  """A sequence of pictures that are preprocessed only when rows are read.

  Attributes:
    pictures: Pillow images, uint8 arrays [H, W, 3] or paths, in any mixture.
    spec: the preprocessing, with S x S pixels as its result.
  """

  pictures: Sequence[Picture]
  spec: ImageSpec

  def __len__(self) -> int:
    return len(self.pictures)

  def rows(self, start: int, stop: int) -> np.ndarray:
    """Returns pixels, uint8 [stop - start, S, S, 3].

    Raises:
      InputError: a path cannot be read as an image.
    """
    return np.stack([self._pixels(p) for p in self.pictures[start:stop]])

  def _pixels(self, picture: Picture) -> np.ndarray:
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
  """A pretrained CLIP that encodes images and texts on all devices.

  Attributes:
    pretrained: the weights, sizes and tokenizer of the CLIP.
    dtype: type that the towers compute in; results are float32.
  """

  pretrained: weights.Pretrained
  dtype: str = "float32"

  @property
  def logit_scale(self) -> float:
    """The factor that turns cosines into logits, already exponentiated."""
    return float(np.exp(self.pretrained.params["logit_scale"]))

  def encode_images(
    self, images: Sequence[Picture]
  ) -> Float[np.ndarray, "N D"]:
    """Encodes Pillow images, uint8 arrays [H, W, 3] or paths.

    Returns:
      L2-normalized features, float32 [N, D].

    Raises:
      InputError: a path cannot be read as an image.
    """
    scorer, params = self._image_encoder
    pictures = Pictures(images, image_spec(self.pretrained.preprocessor))
    features = scoring.encode_pool(scorer, params, {}, pictures)
    return sharding.fetch(features, len(pictures))

  def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "C D"]:
    """Encodes texts, each a complete prompt.

    Returns:
      L2-normalized features, float32 [C, D].
    """
    classifier = self._classifier(tuple(texts))
    embed = jax.jit(classifier.class_embeddings)
    return np.asarray(embed(self.pretrained.params, {}))

  def _classifier(self, texts: tuple[str, ...]) -> Classifier:
    """Returns the classifier whose class embeddings are those of `texts`."""
    spec, pretrained = image_spec(self.pretrained.preprocessor), self.pretrained
    tokens = text.tokenize(
      texts, pretrained.tokenizer, positions=pretrained.config.positions
    )
    model = Clip(pretrained.config, dtype=self.dtype)
    return Classifier(model, tokens, spec.mean, spec.std)

  @cached_property
  def _image_encoder(self) -> tuple[scoring.Scorer, dict]:
    """The compiled image tower and its weights, replicated on all devices.

    A scorer needs some class; the empty text stands for it, and only the image
    features are used.
    """
    mesh = sharding.make_mesh()
    scorer = scoring.make_scorer(self._classifier(("",)), mesh)
    return scorer, sharding.replicate(self.pretrained.params, mesh)


def load_clip(source: str | os.PathLike, *, dtype: str = "float32") -> Encoder:
  """Loads a CLIP in Hugging Face's or OpenCLIP's format.

  Args:
    source: a directory, or a hub id such as `openai/clip-vit-base-patch32`.
    dtype: type to compute in, `float32` or `bfloat16`; weights stay float32.

  Raises:
    InputError: there is no CLIP, its weights do not match its config.json, or
      `dtype` is another type.
  """
  one_of("dtype", dtype, ("float32", "bfloat16"))
  return Encoder(weights.load_pretrained(os.fspath(source)), dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
  """The adapted model of a finished round.

  Attributes:
    classes: the class names, in the order of the columns of `predict`.
    round: the round that trained it, counted from 0.
    scorer: the compiled encoding and scoring passes.
    params: the pretrained weights, on the devices.
    adapter: the weights that the round trained, on the devices.
    spec: the preprocessing of images.
  """

  classes: tuple[str, ...]
  round: int
  scorer: scoring.Scorer
  params: dict
  adapter: dict
  spec: ImageSpec

  def encode_images(
    self, images: Sequence[Picture]
  ) -> Float[np.ndarray, "N D"]:
    """Encodes Pillow images, uint8 arrays [H, W, 3] or paths.

    Returns:
      L2-normalized features of the adapted image tower, float32 [N, D].

    Raises:
      InputError: a path cannot be read as an image.
    """
    return sharding.fetch(self._encode(images), len(images))

  def _encode(self, images: Sequence[Picture]) -> Float[Array, "rows D"]:
    """Encodes images; the features stay on the devices, padded to more rows."""
    return scoring.encode_pool(
      self.scorer, self.params, self.adapter, Pictures(images, self.spec)
    )

  def predict(self, images: Sequence[Picture]) -> Float[np.ndarray, "N C"]:
    """Classifies Pillow images, uint8 arrays [H, W, 3] or paths.

    Returns:
      Class probabilities, float32 [N, C]; column c belongs to `classes[c]`.

    Raises:
      InputError: a path cannot be read as an image.
    """
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
  """Loads the adapted model of a run.

  Args:
    directory: the run's workdir.
    round: the round whose model to load, counted from 0, or from the end if
      negative; by default the last.

  Raises:
    InputError: there is no such round, or the pretrained weights are not those
      that the run used.
  """
  model = finished.read_round(directory, round)
  scorer = scoring.make_scorer(model.classifier, model.mesh)
  return Adapted(
    model.classes, model.number, scorer, model.params, model.adapter, model.spec
  )
