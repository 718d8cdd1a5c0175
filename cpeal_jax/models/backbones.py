"""The backbones: a new one is a file with its record and a line here."""

from cpeal_jax.models.backbone import Backbone
from cpeal_jax.models.clip_backbone import ClipBackbone
from cpeal_jax.models.dinov2_backbone import Dinov2Backbone

BACKBONES: tuple[Backbone, ...] = (
  ClipBackbone(),
  Dinov2Backbone(),
)
# Each kind of adapter and the backbone that it is trained on.
BY_ADAPTER: dict[str, Backbone] = {
  kind: backbone for backbone in BACKBONES for kind in backbone.adapters
}
