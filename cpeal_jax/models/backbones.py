"""The list of all backbones; each is an instance from a file of its own."""

from cpeal_jax.models.backbone import Backbone
from cpeal_jax.models.clip_backbone import ClipBackbone
from cpeal_jax.models.dinov2_backbone import Dinov2Backbone

BACKBONES: tuple[Backbone, ...] = (
  ClipBackbone(),
  Dinov2Backbone(),
)
# The backbone of each kind of adapter, a value of `adapter.kind`.
BY_ADAPTER: dict[str, Backbone] = {
  kind: backbone for backbone in BACKBONES for kind in backbone.adapters
}
