"""Says in plain words why an image was chosen."""

import re

# For each acquisition function a sentence for a person who labels.
SENTENCES = {
  "random": "It was drawn at random.",
  "entropy": "The model is unsure between several classes.",
  "least_confidence": "The model is unsure of its answer.",
  "margin": "The model is torn between two classes.",
  "cec": "The model is unsure here, and among the images that look like it.",
  "coreset": "It is unlike all images that have a label.",
  "badge": "Its label would change the model much.",
  "clue": "It stands for many images that the model is unsure about.",
  "alfa_mix": "Small changes of the image would change the model's answer.",
  "bald": "The model contradicts itself when it looks several times.",
  "gcnal": "It is unlike the labeled images in its neighborhood.",
  "featdist": "It is far from the labeled images of its class.",
  "learning_loss": "The model expects to be wrong here.",
  "typiclust": "It is typical of a group of images without a label.",
  "probcover": "Many images without a label look like it.",
  "cb": "It is typical of a class that has few labels.",
  "uherding": "It stands for many images that the model is unsure about.",
  "dropquery": "The model changes its answer when it sees only a part.",
  "tcm": "It is typical of a group, or the model is torn between two classes.",
}


def in_words(reason: str) -> str:
  """Returns a sentence about why an image was chosen; empty if it is not known.

  Args:
    reason: a cell of the column `reason` in selection.csv. It begins with the
      name of the method, and numbers of that method may follow.
  """
  name = re.match(r"\w*", reason)
  return SENTENCES.get(name[0] if name else "", reason)
