"""The stages of `accelerator.py`, in the order of their worth."""

from typing import NamedTuple


class Stage(NamedTuple):
  """A part of the measurement, which runs in a process of its own.

  Attributes:
    name: what it is called on the command line and in the figures.
    module: the file in this folder; its `measure` is called with a `Setting`
      and `argument`.
    argument: what tells stages of one module apart.
    least: the seconds without which it is not begun.
    most: the seconds after which it is ended.
    peers: whether it compares with PyTorch.
  """

  name: str
  module: str
  argument: str
  least: float
  most: float
  peers: bool = False


STAGES = (
  Stage("device", "device", "", 10, 90),
  Stage("scoring B/16", "pool_scoring", "ViT-B/16", 25, 130),
  Stage("LoRA step", "steps", "lora", 30, 150),
  Stage("scoring L/14", "pool_scoring", "ViT-L/14", 35, 130),
  Stage("prompt step", "steps", "prompts", 25, 120),
  Stage("profile", "top_ten", "", 20, 150),
  Stage("neighbors", "neighbor_search", "", 20, 150),
  Stage("head 200k", "heads", "200000", 20, 60),
  Stage("trajectory", "trajectory", "", 40, 120),
  Stage("same picks", "same_picks", "", 25, 90),
  Stage("attention", "fused", "", 15, 60),
  Stage("head 1M", "heads", "1000000", 40, 90),
  Stage("memory", "step_memory", "", 15, 60),
  Stage("scoring B/16 and PyTorch", "pool_scoring", "ViT-B/16", 60, 200, True),
  Stage("LoRA step and PyTorch", "steps", "lora", 60, 240, True),
  Stage("scoring L/14 and PyTorch", "pool_scoring", "ViT-L/14", 60, 200, True),
  Stage("prompt step and PyTorch", "steps", "prompts", 60, 240, True),
)
