"""Writes the files that a person labels a round with.

There are three ways to answer: to fill the last column of `to_label.csv`, to
import `labelstudio_tasks.json` and `label_config.xml` into Label Studio, or to
look at `to_label.html` beside either.
"""

import json
import os
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from cpeal_jax.data import formats
from cpeal_jax.errors import InputError
from cpeal_jax.labeling import addresses, contact_sheet, studio
from cpeal_jax.labeling.cells import neutralized
from cpeal_jax.labeling.questions import Question, check_ids, mixed, shown
from cpeal_jax.labeling.words import offered
from cpeal_jax.storage import files

TABLE = "to_label.csv"
TASKS = "labelstudio_tasks.json"
CONFIG = "label_config.xml"
SHEET = "to_label.html"
COLUMNS = ("id", "path", "prediction", "confidence", "label")
# Excel takes a CSV file without this mark for an old encoding.
MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"


def write(
  folder: str | os.PathLike,
  questions: Sequence[Question],
  *,
  classes: Sequence[str],
  root: str | os.PathLike,
  document_root: str | os.PathLike = "",
  run: str = "",
  suggest: bool = True,
  value_range: formats.Range = None,
) -> tuple[str, ...]:
  """Writes the files of a round that are not there yet.

  A file that is there stays, since a person may have begun to fill it in.
  Audits are put at random places among the other images. The files show no
  prediction, confidence or reason for them.

  Args:
    folder: the folder of the round.
    questions: the images, best first; audits anywhere.
    classes: the names of the classes.
    root: the data root, below which the images are.
    document_root: the folder that Label Studio's addresses are relative to; the
      parent of the data root if empty.
    run: a name of this run. Label Studio gives it back with the answers, so
      that another run refuses them.
    suggest: whether predictions are shown.
    value_range: black and white of deep images, see `formats.to_eight_bits`.

  Returns:
    The names of the files that were written now.

  Raises:
    InputError: an id leads out of the data root or is asked twice, a class has
      a name that XML cannot hold, or a file cannot be written.
  """
  check_ids(questions)
  asked = [shown(q, suggest=suggest) for q in mixed(questions, run=run)]
  contents = {
    CONFIG: lambda: config_text(classes),
    TASKS: lambda: tasks_text(
      asked, root, document_root=document_root, run=run
    ),
    SHEET: lambda: contact_sheet.text(
      asked, classes=classes, root=root, value_range=value_range
    ),
    # The table is written last: where it is, the other files are too.
    TABLE: lambda: table_text(asked, root),
  }
  written = []
  for name, content in contents.items():
    path = os.path.join(folder, name)
    if not os.path.lexists(path):
      files.write_atomic(path, content())
      written.append(name)
  return tuple(written)


def table_text(questions: Sequence[Question], root: str | os.PathLike) -> str:
  """Returns the content of `to_label.csv`, with an empty column `label`.

  No program takes a cell of it for a formula, see `cells`.

  Args:
    questions: the images, as a person may see them.
    root: the data root, from which the column `path` leads to the image.
  """
  rows = [
    (
      neutralized(question.id),
      neutralized(os.path.join(root, question.id)),
      neutralized(question.prediction),
      question.confidence,
      "",
    )
    for question in questions
  ]
  text = files.csv_text(COLUMNS, rows)
  return text if text.isascii() else MARK + text


def tasks_text(
  questions: Sequence[Question],
  root: str | os.PathLike,
  *,
  document_root: str | os.PathLike = "",
  run: str = "",
) -> str:
  """Returns the content of `labelstudio_tasks.json`.

  Label Studio shows the prediction of a task as its pre-annotation, if the
  project's settings say so, and can sort by the prediction's score.

  Args:
    questions: the images, as a person may see them.
    root: the data root.
    document_root: the folder that addresses are relative to, see `addresses`.
    run: the name of this run.

  Raises:
    InputError: the data root is not below the document root.
  """
  tasks = []
  for question in questions:
    address = addresses.address(question.id, root, document_root=document_root)
    data = {
      studio.IMAGE: address,
      studio.TASK_ID: question.id,
      "run": run,
      "round": question.round_,
      "reason": question.reason,
    }
    predictions = [_prediction(question)] if question.prediction else []
    tasks.append({"data": data, "predictions": predictions})
  return json.dumps(tasks, ensure_ascii=False, indent=1) + "\n"


def _prediction(question: Question) -> dict[str, Any]:
  """Returns the pre-annotation of a task."""
  chosen = {
    "from_name": studio.CONTROL,
    "to_name": studio.IMAGE,
    "type": "choices",
    "value": {"choices": [question.prediction]},
  }
  prediction = {
    "model_version": f"cpeal_jax round {question.round_}",
    "result": [chosen],
  }
  if question.confidence is not None:
    prediction["score"] = float(question.confidence)
  return prediction


def config_text(classes: Sequence[str]) -> str:
  """Returns the content of `label_config.xml`, Label Studio's page.

  Raises:
    InputError: a class has a name that XML cannot hold.
  """
  for name in classes:
    if not name.isprintable():
      raise InputError(
        f"class {name!r} has a character that Label Studio's XML cannot hold; "
        "give it another name with dataset.class_names=FILE."
      )
  choices = "\n".join(
    f"    <Choice value={quoteattr(word)}/>" for word in offered(classes)
  )
  return f"""<View>
  <Image name="{studio.IMAGE}" value="${studio.IMAGE}"/>
  <Choices name="{studio.CONTROL}" toName="{studio.IMAGE}" choice="single">
{choices}
  </Choices>
</View>
"""
