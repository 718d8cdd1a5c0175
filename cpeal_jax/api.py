"""The library's functions: load a CLIP, or the model of a finished run."""

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
from cpeal_jax.errors import InputError, one_of
from cpeal_jax.models import backbones, prompted, text
from cpeal_jax.models.backbone import Pretrained
from cpeal_jax.models.text_classifier import TextClassifier
from cpeal_jax.parallel import sharding
from cpeal_jax.run import finished
from cpeal_jax.training.gaussian import LinearHead


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
  """A list of pictures, each of which is preprocessed when its row is read."""

  pictures: list[Picture]
  spec: ImageSpec

  def __len__(self) -> int:
    return len(self.pictures)

  def rows(self, start: int, stop: int) -> np.ndarray:
    chosen = self.pictures[start:stop]
    return np.stack([open_picture(picture, self.spec) for picture in chosen])


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
  """A pretrained CLIP or SigLIP on all devices.

  Attributes:
    pretrained: its weights, sizes and tokenizer.
    dtype: the type that features are computed in; results are float32.
  """

  pretrained: Pretrained
  dtype: str = "float32"

  def __repr__(self) -> str:
    kind = backbones.backbone_of(self.pretrained).name
    return f"<{kind} {self.pretrained.source}, {self.dtype}>"

  @property
  def logit_scale(self) -> float:
    """The factor on cosine similarities, exp of the stored parameter."""
    return float(np.exp(self.pretrained.params["logit_scale"]))

  def encode_images(
    self, images: Picture | Iterable[Picture]
  ) -> Float[np.ndarray, "N D"]:
    """Returns unit features of PIL images, uint8 arrays [H, W, 3] or paths.

    One picture gives one row, and an empty list gives none.
    """
    spec = image_spec(self.pretrained.preprocessor)
    pictures = Pictures(as_pictures(images), spec)
    if not pictures:
      return np.zeros((0, self.pretrained.config.dim), np.float32)
    scorer, params = self._images
    features = scoring.encode_pool(scorer, params, {}, pictures)
    return sharding.fetch(features, len(pictures))

  def encode_texts(
    self, texts: str | Iterable[str]
  ) -> Float[np.ndarray, "C D"]:
    """Returns unit features of texts, each of which is a complete prompt.

    One text gives one row, and an empty list gives none.

    Raises:
      InputError: different texts have the same embedding, so the tokenizer
        does not know their words.
    """
    pretrained, listed = self.pretrained, as_texts(texts)
    if not listed:
      return np.zeros((0, pretrained.config.dim), np.float32)
    tokens = prompted.tokenize(pretrained, listed)
    embed = jax.jit(self._classifier(tokens).class_embeddings)
    embeddings = np.asarray(embed(pretrained.params, {}))
    text.refuse_equal(listed, embeddings)
    return embeddings

  def zero_shot(self, prompts: str | Iterable[str]) -> LinearHead:
    """Returns the pretrained model as a head on image features.

    Args:
      prompts: a complete prompt for each class, in the order of the logits.
    """
    texts = self.encode_texts(prompts)
    bias = np.zeros(len(texts), np.float32)
    return LinearHead(np.float32(self.logit_scale) * texts, bias)

  def _classifier(self, tokens: text.Tokens) -> TextClassifier:
    spec = image_spec(self.pretrained.preprocessor)
    family = prompted.family_of(self.pretrained)
    model = family.model(self.pretrained.config, dtype=self.dtype)
    return TextClassifier(model, tokens, spec.mean, spec.std)

  @cached_property
  def _images(self) -> tuple[scoring.Scorer, dict]:
    mesh = sharding.make_mesh()
    # A scorer cannot be made without texts, but encoding images needs none.
    end = self.pretrained.config.pooled_token or 0
    ids = np.full((1, 8), end, np.int32)
    no_text = text.Tokens(("",), ids, np.full_like(ids, -1))
    scorer = scoring.make_scorer(self._classifier(no_text), mesh)
    return scorer, sharding.replicate(self.pretrained.params, mesh)


def load_clip(
  source: str | os.PathLike,
  *,
  dtype: str = "float32",
  arch: str = "",
  tokenizer: str = "",
) -> Encoder:
  """Loads a CLIP or SigLIP from a directory or hub id.

  A CLIP's files may be those of Hugging Face or of OpenCLIP, a SigLIP's are
  those of Hugging Face.

  Args:
    source: the directory, or the id; with `arch` also a file of weights, here
      or on the hub as OWNER/NAME/FILE.
    dtype: the type to compute in, `float32` or `bfloat16`; weights stay in
      float32.
    arch: the architecture of weights that come without a config, by OpenCLIP's
      name, such as `ViT-B-32`.
    tokenizer: a directory or hub id with the tokenizer, if it is not beside the
      weights.

  Raises:
    InputError: there is no such model at `source`, its weights do not match its
      config.json, or `dtype` is another type.
  """
  one_of("dtype", dtype, ("float32", "bfloat16"))
  pretrained = backbones.load(
    "anchored", os.fspath(source), arch=arch, tokenizer=tokenizer
  )
  return Encoder(pretrained, dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
  """The model that a round of a run ended with.

  Attributes:
    classes: the C class names; column c of `predict` belongs to `classes[c]`.
    round: the number of the round, from 0.
    scorer: the functions that encode and score, see `scoring.make_scorer`.
    params: the pretrained weights.
    adapter: the variables that the round trained.
    spec: how images are resized, cropped and normalized.
    dim: D, the length of a feature.
    temperature: what logits are divided by for calibrated probabilities; None
      if the run is of a version that did not record it.
  """

  classes: tuple[str, ...]
  round: int
  scorer: scoring.Scorer
  params: dict
  adapter: dict
  spec: ImageSpec
  dim: int
  temperature: float | None = None

  def __repr__(self) -> str:
    return f"<model of round {self.round}, {len(self.classes)} classes>"

  def encode_images(
    self, images: Picture | Iterable[Picture]
  ) -> Float[np.ndarray, "N D"]:
    """Returns unit features of PIL images, uint8 arrays [H, W, 3] or paths."""
    pictures = as_pictures(images)
    if not pictures:
      return np.zeros((0, self.dim), np.float32)
    return sharding.fetch(self._encode(pictures), len(pictures))

  def _encode(self, images: list[Picture]) -> Float[Array, "rows D"]:
    return scoring.encode_pool(
      self.scorer, self.params, self.adapter, Pictures(images, self.spec)
    )

  def predict(
    self, images: Picture | Iterable[Picture], *, calibrated: bool = False
  ) -> Float[np.ndarray, "N C"]:
    """Returns class probabilities of PIL images, uint8 arrays or paths.

    An array has the shape [H, W, 3], as for `encode_images`.

    Args:
      images: the pictures.
      calibrated: whether the probabilities are calibrated by the run's
        temperature, which does not change their order in a row. Without it
        they are what the model says.

    Raises:
      InputError: calibrated probabilities of a run that has no temperature.
    """
    temperature = 1.0
    if calibrated:
      if self.temperature is None:
        raise InputError(
          f"round {self.round} is of an older version, which recorded no "
          "temperature. Raise rounds by one and resume the run, and load the "
          "new round."
        )
      temperature = self.temperature
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
    if calibrated:
      logits = logits / np.float32(temperature)
    return np.asarray(jax.nn.softmax(logits))


def load_run(directory: str | os.PathLike, *, round: int = -1) -> Adapted:
  """Loads the model that a round of a run ended with.

  Args:
    directory: the run's workdir.
    round: the number of the round, from 0; a negative number counts from the
      end.

  Raises:
    InputError: there is no such round, or the pretrained weights are not those
      of the run.
  """
  trained = finished.read_round(directory, round)
  scorer = scoring.make_scorer(trained.classifier, trained.mesh)
  return Adapted(
    classes=trained.classes,
    round=trained.number,
    scorer=scorer,
    params=trained.params,
    adapter=trained.adapter,
    spec=trained.spec,
    dim=trained.pretrained.config.dim,
    temperature=trained.temperature,
  )
