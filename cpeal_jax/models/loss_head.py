"""Learning Loss: a small head that predicts each image's cross entropy.

Yoo and Kweon 2019 (arXiv 1905.03677), in the form C-PEAL's prompt code has
it: an MLP on the logits, trained beside the adapter.
"""

import flax.linen as nn
from jaxtyping import Array, Float

# The head's entry among the adapter's variables.
NAME = "loss_head"


class LossHead(nn.Module):
  """C -> hidden -> 1 with a ReLU between, Xavier initialisation."""

  hidden: int = 10

  @nn.compact
  def __call__(self, logits: Float[Array, "B C"]) -> Float[Array, " B"]:
    xavier = nn.initializers.xavier_uniform()
    hidden = nn.relu(nn.Dense(self.hidden, kernel_init=xavier)(logits))
    return nn.Dense(1, kernel_init=xavier)(hidden)[:, 0]


HEAD = LossHead()
