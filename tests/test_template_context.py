"""Context tokens that start as the words of the template."""

import jax
import numpy as np
import pytest

from cpeal_jax import config as config_lib
from cpeal_jax import quickstart
from cpeal_jax.data.images import image_spec
from cpeal_jax.errors import InputError
from cpeal_jax.models import weights
from cpeal_jax.run import models

CLASSES = ("zero", "forty-two", "sea_or_lake")


def classifiers(template, **prompts):
  config = config_lib.base()
  config.model.weights = str(quickstart.CLIP)
  config.model.template = template
  config.adapter.kind = "prompts"
  config.adapter.prompts.initial = "template"
  config.adapter.prompts.update(prompts)
  pretrained = weights.load_pretrained(config.model.weights)
  spec = image_spec(pretrained.preprocessor)
  both = models.classifiers(config, pretrained, spec, CLASSES)
  return *both, pretrained.params


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
  "template",
  [
    "a photo of the digit {}.",
    "a photo of {}, a digit.",
    "{} in a photo.",
    "a photo of a {}",
  ],
)
def test_training_starts_at_the_zero_shot_answers(template, shared):
  trained, zero_shot, params = classifiers(template, shared=shared)
  ids, want = np.asarray(trained.tokens.ids), np.asarray(zero_shot.tokens.ids)
  np.testing.assert_array_equal(ids, want)
  adapter = trained.init(params, jax.random.key(0))
  tokens = adapter["text"]["context"].shape
  learned = np.asarray(trained.tokens.slots).max() + 1
  assert tokens[:2] == (1 if shared else 3, learned)
  got = trained.class_embeddings(params, adapter)
  np.testing.assert_allclose(
    got, zero_shot.class_embeddings(params, {}), atol=1e-6
  )
  # They are learned: other vectors give other embeddings.
  other = jax.tree.map(lambda x: x[..., ::-1], adapter)
  assert np.abs(trained.class_embeddings(params, other) - got).max() > 1e-3


def test_a_template_without_words_is_refused():
  with pytest.raises(InputError, match="has no word around the class name"):
    classifiers("{}.")
