"""Learning Loss: a small head that predicts each image's cross entropy.

Yoo and Kweon 2019 (arXiv 1905.03677), in the variant of C-PEAL's prompt code:
an MLP on the class logits, trained together with the adapter.
"""

import flax.linen as nn
from jaxtyping import Array, Float

# The key of the head's weights in the collection `adapter`.
NAME = "loss_head"


class LossHead(nn.Module):
  """MLP from class logits [B, C] to one predicted loss per image [B].

  One hidden layer with a ReLU; Xavier-uniform initialization.
  """

  hidden: int = 10

  @nn.compact
  def __call__(self, logits: Float[Array, "B C"]) -> Float[Array, " B"]:
    xavier = nn.initializers.xavier_uniform()
    hidden = nn.relu(nn.Dense(self.hidden, kernel_init=xavier)(logits))
    return nn.Dense(1, kernel_init=xavier)(hidden)[:, 0]


HEAD = LossHead()
