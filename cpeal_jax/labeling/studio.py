"""Reads what Label Studio exports as JSON or JSON_MIN."""

import collections
import json
from collections.abc import Iterator, Mapping
from typing import Any

from cpeal_jax.data.reading import shown
from cpeal_jax.errors import reason
from cpeal_jax.labeling.found import Parsed, Problem, Row

# The names in `label_config.xml`, and of the id in each task's data.
CONTROL = "label"
IMAGE = "image"
TASK_ID = "cpeal_id"
EXPORT = "export JSON, JSON_MIN or CSV from Label Studio"
IMPORT = "import labelstudio_tasks.json there, instead of the images"


class _Wrong(Exception):
  """A problem of one task: what is wrong, and the remedy."""


def parse(file: str, text: str) -> Parsed:
  """Reads an export of Label Studio, or a JSON list of ids and labels.

  JSON_MIN has one flat object for each annotation. A list of objects with `id`
  and `label` is read in the same way.

  Args:
    file: the path of the file, for messages.
    text: its content.

  Returns:
    A row for each annotation, and one for each task that has none.
  """

  def refused(what: str, remedy: str = EXPORT) -> Parsed:
    return Parsed((), (Problem(file, "", what, remedy),))

  try:
    tasks = json.loads(text, object_pairs_hook=_object)
  except json.JSONDecodeError as error:
    at = f"line {error.lineno}, column {error.colno}"
    return refused(f"it is no JSON, or was cut short ({error.msg}: {at})")
  except RecursionError:
    return refused("it is nested too deep")
  except ValueError as error:  # A key twice, or a number of 5,000 digits.
    return refused(f"it cannot be used ({reason(error)})")
  if not isinstance(tasks, list):
    return refused("it holds one JSON object, where a list of tasks belongs")
  if not tasks:
    return refused("it is an empty list")
  objects = [task for task in tasks if isinstance(task, dict)]
  if not any(
    {"annotations", CONTROL, "annotation_id"} & t.keys() for t in objects
  ):
    return refused("its tasks have no annotations and no labels")
  rows: list[Row] = []
  problems = []
  for number, task in enumerate(tasks, start=1):
    place = f"entry {number}"
    try:
      if not isinstance(task, dict):
        raise _Wrong(f"it is {shown(task)} instead of a task", EXPORT)
      if type(task.get("id")) is int:
        place = f"task {task['id']}"
      read = _annotated if "annotations" in task else _flat
      rows += [Row(file, place, **fields) for fields in read(task)]
    except _Wrong as wrong:
      problems.append(Problem(file, place, *wrong.args))
  return Parsed(tuple(rows), tuple(problems))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Makes an object of JSON; refuses a key that is there twice."""
  made = dict(pairs)
  if len(made) < len(pairs):
    counts = collections.Counter(name for name, _ in pairs)
    ((twice, _),) = counts.most_common(1)
    raise ValueError(f"an object has {shown(twice)} twice")
  return made


def _flat(task: Mapping[str, Any]) -> Iterator[dict[str, str]]:
  """Yields the fields of the row that an entry of JSON_MIN is."""
  label = task.get(CONTROL)
  if isinstance(label, dict):
    raise _Wrong(f"several classes were chosen, {shown(label)}", "choose one")
  if not isinstance(label, str | None):
    raise _Wrong(f"its {CONTROL} is {shown(label)}", "choose one class")
  id_ = task.get(TASK_ID, task.get("id"))
  annotator = task.get("annotator")
  yield _fields(id_, task.get("run"), label or "", annotator)


def _annotated(task: Mapping[str, Any]) -> Iterator[dict[str, str]]:
  """Yields the fields of the rows that a task of the full JSON holds."""
  data, annotations = task.get("data"), task["annotations"]
  if not isinstance(data, dict):
    raise _Wrong(f"its data is {shown(data)}", EXPORT)
  if not isinstance(annotations, list):
    raise _Wrong(f"its annotations are {shown(annotations)}", EXPORT)
  id_, run = data.get(TASK_ID), data.get("run")
  yield _fields(id_, run, "", None)
  for annotation in annotations:
    if not isinstance(annotation, dict):
      raise _Wrong(f"an annotation is {shown(annotation)}", EXPORT)
    if annotation.get("was_cancelled") is not True:  # It is of a skipped task.
      label = _choice(annotation.get("result"))
      yield _fields(id_, run, label, annotation.get("completed_by"))


def _choice(results: Any) -> str:
  """Returns the class that an annotation chose; empty if it chose none."""
  if not isinstance(results, list):
    raise _Wrong(f"the result of an annotation is {shown(results)}", EXPORT)
  chosen: dict[str, list[str]] = {}
  for result in results:
    match result:
      case {
        "type": "choices",
        "from_name": str(control),
        "value": {"choices": list(names)},
      } if all(isinstance(name, str) for name in names):
        chosen.setdefault(control, []).extend(names)
      case {"type": str(kind)} if kind != "choices":
        pass  # A remark or a mark in the image, say.
      case _:
        raise _Wrong(f"a result of an annotation is {shown(result)}", EXPORT)
  if len(chosen) > 1 and CONTROL not in chosen:
    raise _Wrong(
      f"it has answers to {', '.join(map(shown, chosen))}, not to {CONTROL!r}",
      "use label_config.xml in Label Studio",
    )
  names = chosen.get(CONTROL) or next(iter(chosen.values()), [])
  if len(names) > 1:
    listed = ", ".join(map(shown, names[:5]))
    raise _Wrong(f"several classes were chosen, {listed}", "choose one")
  return names[0] if names else ""


def _fields(id_: Any, run: Any, label: str, annotator: Any) -> dict[str, str]:
  """Returns the fields of a row, except its place."""
  if not isinstance(id_, str) or not id_:
    raise _Wrong(f"it has no {TASK_ID} that names its image", IMPORT)
  if isinstance(annotator, dict):
    annotator = annotator.get("email", annotator.get("id"))
  return {
    "id": id_,
    "label": label,
    "annotator": str(annotator)[:80]
    if isinstance(annotator, int | str)
    else "",
    "run": run if isinstance(run, str) else "",
  }
