"""LoRA in the ways that exports differ by, on the embedded CLIP."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from cpeal_jax import config as config_lib
from cpeal_jax import quickstart
from cpeal_jax.data.digits import CLASSES
from cpeal_jax.data.images import image_spec
from cpeal_jax.models import (
  dinov2_weights,
  hub,
  siglip_weights,
  text,
  text_context,
  weights,
)
from cpeal_jax.models.adapters import Lora, Prompts
from cpeal_jax.models.backbone import Pretrained, Wording
from cpeal_jax.models.backbones import backbone_of
from cpeal_jax.models.classifier import Classifier
from cpeal_jax.models.clip import Clip
from cpeal_jax.models.linear import LinearClassifier
from cpeal_jax.models.tensors import read_tensors
from cpeal_jax.models.text_classifier import TextClassifier
from cpeal_jax.parallel import sharding
from cpeal_jax.run import finished

GOLDEN = Path(__file__).parent / "golden"

TEMPLATE = "a photo of the digit {}."
LORAS = {
  "stabilized": Lora(rank=4, alpha=4.0, scaling="rank_stabilized"),
  "standard": Lora(
    rank=3, alpha=4.5, scaling="standard", matrices=("q", "k", "v", "out")
  ),
  "vision_qv": Lora(
    rank=2, towers=("vision",), matrices=("q", "v"), layers=(0, 2)
  ),
  "text_only": Lora(rank=2, towers=("text",), matrices=("k",)),
}


def make(
  adapter: Lora | Prompts,
  source: str = str(quickstart.CLIP),
  *,
  owners: tuple[int, ...] = (),
) -> finished.Finished:
  """A round on the embedded CLIP, or on the one in `source`."""
  pretrained = weights.load_pretrained(source)
  spec, sizes = image_spec(pretrained.preprocessor), pretrained.config
  lora = adapter if isinstance(adapter, Lora) else None
  prompts = adapter if isinstance(adapter, Prompts) else None
  classes = CLASSES[: max(owners) + 1] if owners else CLASSES
  names = tuple(CLASSES[i] for i in range(len(owners) or len(classes)))
  if prompts:
    context = text_context.context_of(prompts, TEMPLATE, pretrained.tokenizer)
    tokens = text_context.tokenize_with_context(
      names, pretrained.tokenizer, context, positions=sizes.positions
    )
  else:
    tokens = text.tokenize(
      text.from_template(names, TEMPLATE),
      pretrained.tokenizer,
      positions=sizes.positions,
    )
  tokens = text.Tokens(tokens.texts, tokens.ids, tokens.slots, owners)
  model = Clip(sizes, lora=lora, prompts=prompts)
  classifier = TextClassifier(model, tokens, spec.mean, spec.std)
  kind = "prompts" if prompts else "lora"
  return finish(pretrained, classifier, classes, kind)


def on_open_clip(lora: Lora) -> finished.Finished:
  """The same on a float16 file in OpenAI's naming, with exact GELU."""
  folder = GOLDEN / "laion_vit"
  layout = hub.LAYOUTS[1]
  sizes = weights.read_config(folder / layout.config)
  tensors = read_tensors(folder / layout.weights)
  pretrained = Pretrained(
    source=str(folder),
    directory=folder,
    weights=folder / layout.weights,
    config=sizes,
    params=weights.convert(tensors, sizes),
    # The golden has none, and no text is read here.
    tokenizer=weights.load_pretrained(str(quickstart.CLIP)).tokenizer,
    sha256="0" * 64,
    preprocessor=folder / layout.preprocessor,
    tokenizer_directory=folder,
  )
  ids = np.random.default_rng(1).integers(0, sizes.end_token, (3, 8))
  ids[:, -2:] = sizes.end_token
  ids = ids.astype(np.int32)
  tokens = text.Tokens(("a", "b", "c"), ids, np.full_like(ids, -1))
  spec = image_spec(pretrained.preprocessor)
  classifier = TextClassifier(
    Clip(sizes, lora=lora), tokens, spec.mean, spec.std
  )
  return finish(pretrained, classifier, ("a", "b", "c"), "lora")


def on_siglip(
  adapter: Lora | Prompts, name: str = "siglip2"
) -> finished.Finished:
  """A round on a golden SigLIP, with its own tokenizer."""
  pretrained = siglip_weights.load_siglip(str(GOLDEN / name))
  spec = image_spec(pretrained.preprocessor)
  classifier, _ = backbone_of(pretrained).classifiers(
    pretrained,
    CLASSES,
    mean=spec.mean,
    std=spec.std,
    lora=adapter if isinstance(adapter, Lora) else None,
    prompts=adapter if isinstance(adapter, Prompts) else None,
    wording=Wording(template=TEMPLATE),
    dtype="float32",
    remat=False,
  )
  kind = "lora" if isinstance(adapter, Lora) else "prompts"
  return finish(pretrained, classifier, CLASSES, kind)


DINOS = ("dinov2", "dinov2_registers", "dinov3", "dinov3_gated")


def on_dino(lora: Lora | None, name: str = "dinov2") -> finished.Finished:
  """A linear head on a golden of `DINOS`, with LoRA or without."""
  pretrained = dinov2_weights.load_dinov2(str(GOLDEN / name))
  spec = image_spec(pretrained.preprocessor)
  model = dinov2_weights.tower(pretrained.config, lora=lora)
  classifier = LinearClassifier(model, len(CLASSES), spec.mean, spec.std)
  return finish(
    pretrained, classifier, CLASSES, "lora_head" if lora else "head"
  )


def finish(
  pretrained: Pretrained,
  classifier: Classifier,
  classes: Sequence[str],
  kind: str,
) -> finished.Finished:
  """A round whose adapter is random (B as well): 0.1 N(0, 1) in key order."""
  shapes = jax.eval_shape(classifier.init, pretrained.params, jax.random.key(0))
  rng = np.random.default_rng(0)
  state = jax.tree.map(
    lambda leaf: (0.1 * rng.normal(size=leaf.shape)).astype(np.float32), shapes
  )
  config = config_lib.base()
  config.adapter.kind = kind
  return finished.Finished(
    number=0,
    classes=tuple(classes),
    config=config,
    config_sha256="0" * 64,
    backbone=backbone_of(pretrained),
    pretrained=pretrained,
    spec=image_spec(pretrained.preprocessor),
    classifier=classifier,
    params=pretrained.params,
    adapter=state,
    mesh=sharding.make_mesh(1),
  )


def pictures(side: int) -> np.ndarray:
  """Six of noise, [6, side, side, 3] uint8."""
  rng = np.random.default_rng(7)
  return rng.integers(0, 256, (6, side, side, 3), dtype=np.uint8)


IMAGES = pictures(32)


def logits(own: finished.Finished, images: np.ndarray = IMAGES) -> np.ndarray:
  """[6, C], by the adapted model as it was trained."""
  with jax.default_matmul_precision("highest"):
    texts = jax.jit(own.classifier.class_embeddings)(own.params, own.adapter)
    features = jax.jit(own.classifier.image_features)(
      own.params, own.adapter, images
    )
    scale = own.pretrained.params["logit_scale"]
    return np.asarray(own.classifier.logits(features, texts, scale))
