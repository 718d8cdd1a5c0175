"""A file that a person gives back is taken as a whole, or its faults are named.

The tables hold what people, Excel and Label Studio make of such files.
"""

import json
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from asked_questions import QUESTIONS as ASKED

from cpeal_jax.labeling import (
  answers,
  folding,
  found,
  label_file,
  texts,
  to_label,
)
from cpeal_jax.labeling.questions import Question

GOLDEN = Path(__file__).parent / "golden" / "label_studio"
CLASSES = ("cat", "dog", "Käse", "Emu", "emU", "=1+1")
QUESTIONS = ASKED | {"old.jpg": Question("old.jpg", 0, "dog", 0.9)}
POOL = ("a.jpg", "unasked.jpg")
TIME = "2026-11-03T12:00:00Z"
PLAIN = "id,label\n"
FULL = "id,path,prediction,confidence,label\n"


def given_back(folder, data, *, name="labels.csv", run="this run"):
  """Reads a file as a run does, and records its answers if it can be used."""
  path = folder / name
  path.write_bytes(data if isinstance(data, bytes) else data.encode())
  before = contents(folder)
  reading = label_file.read(
    [path], questions=QUESTIONS, classes=CLASSES, pool=POOL, run=run
  )
  assert contents(folder) == before, "reading changed something"
  assert not (reading.answers and reading.problems)
  events = label_file.to_events(reading.answers, time=TIME)
  state = folding.known_in(folder)
  answers.append(folder, folding.changes(state, events))
  if reading.problems:
    assert contents(folder) == before, "a refused file changed something"
  return reading


def contents(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


def said(reading):
  """What each image was answered: its class, or why it has none."""
  return {a.question.id: a.label or a.kind for a in reading.answers}


def lines(reading, folder):
  """The problems and notes as a person sees them, with short paths."""
  both = (*reading.problems, *reading.notes)
  return [str(line).replace(f"{folder}/", "") for line in both]


def studio(*tasks):
  return json.dumps(tasks)


def task(id_, *words, number=1, people=(1, 2), **data):
  """A task of Label Studio's JSON with an annotation for each word."""
  annotations = [
    {
      "completed_by": who,
      "was_cancelled": False,
      "result": [
        {
          "from_name": "label",
          "to_name": "image",
          "type": "choices",
          "value": {"choices": [word] if isinstance(word, str) else word},
        }
      ],
    }
    for word, who in zip(words, people, strict=False)
  ]
  data = {"cpeal_id": id_, "image": "/data/local-files/?d=x"} | data
  return {"id": number, "annotations": annotations, "data": data}


def skipped(task_):
  """The task as it is if its annotator chose, and then skipped it."""
  for annotation in task_["annotations"]:
    annotation["was_cancelled"] = True
  return task_


# --- Files that cannot be used: what is in them, and all that is said.

CHOOSE = "write one of: cat, dog, Käse, Emu, emU, =1+1, cannot tell, unusable"
UNKNOWN_ID = "give the id as to_label.csv has it, or remove the line"
NOT_TEXT = "save it as UTF-8 (in Excel: CSV UTF-8)."
AGAIN = "export JSON, JSON_MIN or CSV from Label Studio"
QUOTED = 'put "quotes" around each cell that has a separator in it.'
ONCE = "leave the one that counts, and rename the others."
OTHER_RUN = "give the to_label.csv of a round of this run, filled in."
REFUSED = {
  "an unknown id": (
    f"{PLAIN}a.jpg,cat\nz.jpg,dog\n",
    [f"labels.csv, line 3: the id 'z.jpg' is not known; {UNKNOWN_ID}."],
  ),
  "an id in another folder": (
    f"{PLAIN}a.jpg,cat\nC D.jpg,dog\n",
    [
      f"labels.csv, line 3: the id 'C D.jpg' is not known; {UNKNOWN_ID}. Did "
      "you mean 'dir/c d.jpg'?"
    ],
  ),
  "an id that leads out of the root": (
    f"{PLAIN}a.jpg,cat\n../../etc/passwd,dog\n",
    [
      f"labels.csv, line 3: the id '../../etc/passwd' is not known; "
      f"{UNKNOWN_ID}."
    ],
  ),
  "no id": (
    f"{PLAIN}a.jpg,cat\n,dog\n",
    [f"labels.csv, line 3: it has no id; {UNKNOWN_ID}."],
  ),
  "an unknown class": (
    f"{PLAIN}a.jpg,catt\nb.jpg,dog\n",
    [
      f"labels.csv, line 2: the label 'catt' is no class; {CHOOSE}. Did you "
      "mean 'cat'?"
    ],
  ),
  "a number for a class": (
    f"{PLAIN}a.jpg,0\n",
    [f"labels.csv, line 2: the label '0' is no class; {CHOOSE}."],
  ),
  "a class that could be two": (
    f"{PLAIN}a.jpg,emu\n",
    [
      "labels.csv, line 2: the label 'emu' could be 'Emu' or 'emU'; write it "
      "as the class is written."
    ],
  ),
  "two labels for one image": (
    f"{PLAIN}a.jpg,cat\nb.jpg,dog\na.jpg,dog\n",
    [
      "labels.csv, line 4: the image 'a.jpg' has two labels, 'cat' at line 2 "
      "of labels.csv and 'dog' here; agree on one, and remove the other."
    ],
  ),
  "a class and an unknown one": (
    f"{PLAIN}a.jpg,cat\na.jpg,cannot tell\n",
    [
      "labels.csv, line 3: the image 'a.jpg' has two labels, 'cat' at line 2 "
      "of labels.csv and 'cannot tell' here; agree on one, and remove the "
      "other."
    ],
  ),
  "several problems at once, in the order of lines": (
    f"{PLAIN}a.jpg,cat,\nz.jpg,dog\nb.jpg,bat\na.jpg,cat,dog\na.jpg,dog\n",
    [
      f"labels.csv, line 3: the id 'z.jpg' is not known; {UNKNOWN_ID}.",
      f"labels.csv, line 4: the label 'bat' is no class; {CHOOSE}. Did you "
      "mean 'cat'?",
      f"labels.csv, line 5: it has 3 cells, but the first line has 2; {QUOTED}",
      "labels.csv, line 6: the image 'a.jpg' has two labels, 'cat' at line 2 "
      "of labels.csv and 'dog' here; agree on one, and remove the other.",
    ],
  ),
  "nothing": (
    "",
    [
      "labels.csv: it is empty; give the filled to_label.csv, or a file with "
      "the columns id,label."
    ],
  ),
  "nothing but a mark and blank lines": (
    "\ufeff\r\n \r\n",
    [
      "labels.csv: it is empty; give the filled to_label.csv, or a file with "
      "the columns id,label."
    ],
  ),
  "names of columns alone": (
    PLAIN,
    [
      "labels.csv: it has no line with an image; below the names of the "
      "columns, write one line for each image."
    ],
  ),
  "no names of columns": (
    "a.jpg,cat\nb.jpg,dog\n",
    [
      "labels.csv, line 1: there is no column 'id' among 'a.jpg', 'cat'; name "
      "the columns on the first line.",
      "labels.csv, line 1: there is no column 'label' among 'a.jpg', 'cat'; "
      "name the columns on the first line.",
    ],
  ),
  "a misspelled column": (
    "id,lable\na.jpg,cat\n",
    [
      "labels.csv, line 1: there is no column 'label' among 'id', 'lable'; "
      "name the columns on the first line. Did you mean 'lable'?"
    ],
  ),
  "a column twice": (
    "id,label,label\na.jpg,cat,dog\n",
    [f"labels.csv, line 1: the column 'label' is there 2 times; {ONCE}"],
  ),
  "a column twice in other cases": (
    "id,Label,LABEL\na.jpg,cat,dog\n",
    [f"labels.csv, line 1: the column 'label' is there 2 times; {ONCE}"],
  ),
  "the ids twice": (
    "id,id,label\na.jpg,b.jpg,dog\n",
    [f"labels.csv, line 1: the column 'id' is there 2 times; {ONCE}"],
  ),
  "a line with too few cells": (
    f"{FULL}a.jpg,a.jpg,cat,0.5,cat\nb.jpg,b.jpg\n",
    [f"labels.csv, line 3: it has 2 cells, but the first line has 5; {QUOTED}"],
  ),
  "a comma in a class without quotes": (
    f"{PLAIN}a.jpg,cat, black\n",
    [f"labels.csv, line 2: it has 3 cells, but the first line has 2; {QUOTED}"],
  ),
  "a quote that is never closed": (
    f'{PLAIN}a.jpg,cat\nb.jpg,"dog\na.jpg,dog\n',
    [
      "labels.csv, line 3: the quotes or cells from here on cannot be read "
      "(unexpected end of data); close each quote that is opened, and write "
      '"" for a quote in a cell.'
    ],
  ),
  "text behind a quote": (
    f'{PLAIN}a.jpg,"cat"s\n',
    [
      "labels.csv, line 2: the quotes or cells from here on cannot be read "
      "(',' expected after '\"'); close each quote that is opened, and write "
      '"" for a quote in a cell.'
    ],
  ),
  "a huge cell": (
    f"{PLAIN}a.jpg,cat\nb.jpg,{'x' * 200_000}\n",
    [
      "labels.csv, line 3: the quotes or cells from here on cannot be read "
      "(field larger than field limit (131072)); close each quote that is "
      'opened, and write "" for a quote in a cell.'
    ],
  ),
  "a long word": (
    f"{PLAIN}a.jpg,{'cat' * 1000}\n",
    [
      "labels.csv, line 2: the label 'catcatcatcatcatcatcatcatcat...tcatcatc"
      f"atcatcatcatcatcatcat' is no class; {CHOOSE}."
    ],
  ),
  "each line in quotes, as another Excel saves it": (
    '"id,path,prediction,confidence,label"\n"a.jpg,a.jpg,cat,0.5,cat"\n',
    [
      "labels.csv, line 1: each line is a single cell in quotes; open the file "
      "so that its cells are in columns, and save it again."
    ],
  ),
  "an old encoding": (
    f"{PLAIN}a.jpg,cat\nb.jpg,Käse\n".encode("latin-1"),
    [f"labels.csv, line 3: no UTF-8 text, byte 26 is 0xe4; {NOT_TEXT}"],
  ),
  "UTF-16 without a mark": (
    f"{PLAIN}a.jpg,cat\n".encode("utf-16-le"),
    [
      "labels.csv, line 1: it has a character with the code 0, as UTF-16 "
      f"without a mark has; {NOT_TEXT}"
    ],
  ),
  "UTF-16 that was cut": (
    f"{PLAIN}a.jpg,cat\n".encode("utf-16")[:-1],
    [f"labels.csv, line 2: no UTF-16 text, byte 38 is 0x0a; {NOT_TEXT}"],
  ),
  "a character with the code 0": (
    f"{PLAIN}a.jpg,cat\nb.jpg,d\0og\n",
    [
      "labels.csv, line 3: it has a character with the code 0, as UTF-16 "
      f"without a mark has; {NOT_TEXT}"
    ],
  ),
  "an Excel workbook": (
    b"PK\x03\x04\x14\x00\x06\x00",
    [
      "labels.csv: it is an Excel workbook or a zip archive; save the sheet as "
      "CSV, or unpack the archive."
    ],
  ),
  "an old Excel workbook": (
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    ["labels.csv: it is an old Excel workbook; save the sheet as CSV."],
  ),
  "a compressed file": (
    b"\x1f\x8b\x08\x00",
    ["labels.csv: it is compressed by gzip; unpack it."],
  ),
  "a formula": (
    f"{PLAIN}a.jpg,=cmd|' /C calc'!A0\n",
    [
      "labels.csv, line 2: the label \"=cmd|' /C calc'!A0\" is no class; "
      f"{CHOOSE}."
    ],
  ),
  "images that no round asked about": (
    f"{PLAIN}x/1.jpg,cat\nx/2.jpg,dog\n",
    [
      "labels.csv: no question was asked about any of its 2 images, such as "
      f"'x/1.jpg'; {OTHER_RUN}"
    ],
  ),
  "another run's name": (
    "id,label,run\na.jpg,cat,that run\n",
    [
      "labels.csv, line 2: it is of another run, 'that run', and this is 'this "
      "run'; give a file that this run has written."
    ],
  ),
  "line ends and colors of a terminal in a class": (
    f'{PLAIN}a.jpg,"cat\x1b[31m\ndog"\n',
    [
      "labels.csv, line 2: the label 'cat\\x1b[31m\\ndog' is no class; "
      f"{CHOOSE}."
    ],
  ),
  "Label Studio's CSV of other tasks": (
    "annotation_id,id,image,label\n1,1,/data/upload/1/a.jpg,cat\n",
    [
      "labels.csv, line 1: it is an export of Label Studio without the column "
      "cpeal_id; import labelstudio_tasks.json there, instead of the images."
    ],
  ),
  "several choices in Label Studio's CSV": (
    'annotation_id,cpeal_id,id,label\n1,a.jpg,1,"{""choices"": [""cat"", '
    '""dog""]}"\n',
    [
      'labels.csv, line 2: several classes were chosen, \'{"choices": '
      '["cat", "dog"]}\'; choose one.'
    ],
  ),
  "JSON that was cut": (
    studio(task("a.jpg", "cat"))[:-20],
    [
      "labels.csv: it is no JSON, or was cut short (Unterminated string "
      f"starting at: line 1, column 219); {AGAIN}."
    ],
  ),
  "JSON that is nested deeply": (
    "[" * 200_000,
    [f"labels.csv: it is nested too deep; {AGAIN}."],
  ),
  "a number of 5,000 digits": (
    f'[{{"id": {"9" * 5_000}, "label": "cat"}}]',
    [
      "labels.csv: it cannot be used (Exceeds the limit (4300 digits) for "
      "integer string conversion: value has 5000 digits; use "
      f"sys.set_int_max_str_digits() to increase the limit); {AGAIN}."
    ],
  ),
  "a key twice in JSON": (
    '[{"id": "a.jpg", "label": "cat", "label": "dog"}]',
    [f"labels.csv: it cannot be used (an object has 'label' twice); {AGAIN}."],
  ),
  "an object of JSON": (
    '{"a.jpg": "cat"}',
    [
      "labels.csv: it holds one JSON object, where a list of tasks belongs; "
      f"{AGAIN}."
    ],
  ),
  "an empty list": ("[]", [f"labels.csv: it is an empty list; {AGAIN}."]),
  "the tasks, not annotated": (
    '[{"data": {"cpeal_id": "a.jpg"}, "predictions": []}]',
    [f"labels.csv: its tasks have no annotations and no labels; {AGAIN}."],
  ),
  "people who disagree": (
    studio(
      task("a.jpg", "cat", "dog", number=12, people=(1, {"email": "b@x.org"})),
      task("b.jpg", "dog", number=13),
    ),
    [
      "labels.csv, task 12: the image 'a.jpg' has two labels, 'cat' by "
      "annotator 1 at task 12 of labels.csv and 'dog' by annotator b@x.org "
      "here; agree on one, and remove the other."
    ],
  ),
  "several choices": (
    studio(task("a.jpg", ["cat", "dog"], number=7)),
    [
      "labels.csv, task 7: several classes were chosen, 'cat', 'dog'; choose "
      "one."
    ],
  ),
  "several choices in JSON_MIN": (
    '[{"cpeal_id": "a.jpg", "id": 7, "label": {"choices": ["cat", "dog"]}}]',
    [
      "labels.csv, task 7: several classes were chosen, {'choices': ['cat', "
      "'dog']}; choose one."
    ],
  ),
  "tasks that are not ours": (
    studio({"id": 3, "annotations": [], "data": {"image": "/x.jpg"}}),
    [
      "labels.csv, task 3: it has no cpeal_id that names its image; import "
      "labelstudio_tasks.json there, instead of the images."
    ],
  ),
  "tasks of another run": (
    studio(task("a.jpg", "cat", run="that run")),
    [
      "labels.csv, task 1: it is of another run, 'that run', and this is 'this "
      "run'; give a file that this run has written."
    ],
  ),
  "what is no task, and what is no annotation": (
    studio(
      7,
      {"id": 8, "annotations": {}, "data": {}},
      {"id": 9, "annotations": [], "data": []},
      {"id": 10, "annotations": [None], "data": {"cpeal_id": "a.jpg"}},
      {"id": 11, "annotations": [{}], "data": {"cpeal_id": "a.jpg"}},
      {
        "id": 12,
        "annotations": [{"result": [{"type": "choices"}]}],
        "data": {"cpeal_id": "a.jpg"},
      },
      {"id": 13, "cpeal_id": "a.jpg", "label": 3},
    ),
    [
      f"labels.csv, entry 1: it is 7 instead of a task; {AGAIN}.",
      f"labels.csv, task 8: its annotations are {{}}; {AGAIN}.",
      f"labels.csv, task 9: its data is []; {AGAIN}.",
      f"labels.csv, task 10: an annotation is None; {AGAIN}.",
      f"labels.csv, task 11: the result of an annotation is None; {AGAIN}.",
      "labels.csv, task 12: a result of an annotation is {'type': 'choices'}; "
      f"{AGAIN}.",
      "labels.csv, task 13: its label is 3; choose one class.",
    ],
  ),
  "two kinds of choices, neither of them ours": (
    studio(
      {
        "id": 1,
        "data": {"cpeal_id": "a.jpg"},
        "annotations": [
          {
            "result": [
              {
                "from_name": name,
                "type": "choices",
                "value": {"choices": ["cat"]},
              }
              for name in ("kind", "age")
            ]
          }
        ],
      }
    ),
    [
      "labels.csv, task 1: it has answers to 'kind', 'age', not to 'label'; "
      "use label_config.xml in Label Studio."
    ],
  ),
  "half a character in JSON": (
    '[{"id": "a.jpg", "label": "\\ud800"}]',
    ["labels.csv, entry 1: the label '\\ud800' is no class; " + f"{CHOOSE}."],
  ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_malformed_file_is_refused_with_every_reason(name, tmp_path):
  data, want = REFUSED[name]
  answers.append(
    tmp_path, [answers.Event("given", TIME, "given", -1, "a", "b")]
  )
  reading = given_back(tmp_path, data)
  assert lines(reading, tmp_path) == want
  assert reading.answers == ()
  assert all(line.isprintable() for line in want)


def test_the_table_is_long():
  assert len(REFUSED) >= 30


# --- Files that can be used: what is in them, what they say, and the notes.

UNREAD = "edited predictions were passed over; the label counts"
USED = {
  "a list": (
    f"{PLAIN}a.jpg,cat\nb.jpg,dog\n",
    {"a.jpg": "cat", "b.jpg": "dog"},
    [],
  ),
  "other columns": (
    "when,label,id,confidence\nnow,cat,a.jpg,high\n",
    {"a.jpg": "cat"},
    [],
  ),
  "a mark and Windows line ends": (
    "\ufeffid,label\r\nä.jpg,Käse\r\n",
    {"ä.jpg": "Käse"},
    [],
  ),
  "old line ends": ("id,label\ra.jpg,cat\r", {"a.jpg": "cat"}, []),
  "semicolons": ("id;label\na.jpg;cat\n", {"a.jpg": "cat"}, []),
  "tabs": ("id\tlabel\na.jpg\tcat\n", {"a.jpg": "cat"}, []),
  "Excel's Unicode text": (
    "id\tlabel\r\nä.jpg\tKäse\r\n".encode("utf-16"),
    {"ä.jpg": "Käse"},
    [],
  ),
  "UTF-32": ("id,label\nä.jpg,Käse\n".encode("utf-32"), {"ä.jpg": "Käse"}, []),
  "Excel's first line": ("sep=;\nid;label\na.jpg;cat\n", {"a.jpg": "cat"}, []),
  "Excel's quotes": (
    '"id";"label"\n"dir/c d.jpg";"cat"\n',
    {"dir/c d.jpg": "cat"},
    [],
  ),
  "blank lines, and cells behind the last column": (
    "\n,,\nid,label,\n\na.jpg,cat,,,\n,,\n",
    {"a.jpg": "cat"},
    [],
  ),
  "another case and spaces around": (
    f"{PLAIN}a.jpg,CAT\nb.jpg, dog \n",
    {"a.jpg": "cat", "b.jpg": "dog"},
    [
      "labels.csv, line 2: labels were read in another form (2), such as 'CAT' "
      "as 'cat'."
    ],
  ),
  "another normal form": (
    f"{PLAIN}a\u0308.jpg,Ka\u0308se\n",
    {"ä.jpg": "Käse"},
    [
      "labels.csv, line 2: ids were read in another spelling (1), such as "
      "'a\u0308.jpg' as 'ä.jpg'.",
      "labels.csv, line 2: labels were read in another form (1), such as "
      "'Ka\u0308se' as 'Käse'.",
    ],
  ),
  "backslashes and spaces in ids": (
    f"{PLAIN}dir\\c d.jpg,cat\n a.jpg,cat\n",
    {"dir/c d.jpg": "cat", "a.jpg": "cat"},
    [
      "labels.csv, line 2: ids were read in another spelling (2), such as "
      "'dir\\\\c d.jpg' as 'dir/c d.jpg'."
    ],
  ),
  "exactly one of two classes": (
    f"{PLAIN}a.jpg,Emu\nb.jpg,emU \n",
    {"a.jpg": "Emu", "b.jpg": "emU"},
    [
      "labels.csv, line 3: labels were read in another form (1), such as 'emU "
      "' as 'emU'."
    ],
  ),
  "answers that are no class": (
    f"{PLAIN}a.jpg,cannot tell\nb.jpg,unusable\n",
    {"a.jpg": "cannot_tell", "b.jpg": "unusable"},
    [],
  ),
  "other words for these": (
    f"{PLAIN}a.jpg,?\nb.jpg,Can't tell\n=e.jpg,UNUSABLE\n",
    {"a.jpg": "cannot_tell", "b.jpg": "cannot_tell", "=e.jpg": "unusable"},
    [
      "labels.csv, line 2: labels were read in another form (3), such as '?' "
      "as 'cannot tell'."
    ],
  ),
  "the same twice": (
    f"{PLAIN}a.jpg,cat\na.jpg,cat\na.jpg,\n",
    {"a.jpg": "cat"},
    [],
  ),
  "an edited prediction": (
    f"{FULL}a.jpg,a.jpg,dog,0.5,cat\nb.jpg,b.jpg,,,dog\n"
    "audit.jpg,audit.jpg,cat,,dog\n",
    {"a.jpg": "cat", "b.jpg": "dog", "audit.jpg": "dog"},
    [f"labels.csv, line 2: {UNREAD} (2), such as 'dog' instead of 'cat'."],
  ),
  "cells that could be formulas": (
    "id,prediction,label\n'=e.jpg,'=1+1,'=1+1\n",
    {"=e.jpg": "=1+1"},
    [],
  ),
  "the same without apostrophes": (
    "id,prediction,label\n=e.jpg,=1+1,=1+1\n",
    {"=e.jpg": "=1+1"},
    [],
  ),
  "another name of the columns": (
    "ID,Class\na.jpg,cat\n",
    {"a.jpg": "cat"},
    [
      "labels.csv, line 1: the column 'ID' was read as 'id'.",
      "labels.csv, line 1: the column 'Class' was read as 'label'.",
    ],
  ),
  "images that no round asked about": (
    f"{PLAIN}a.jpg,cat\nunasked.jpg,dog\n",
    {"a.jpg": "cat"},
    [
      "labels.csv, line 3: images that no round asked about were passed over "
      "(1), such as 'unasked.jpg'."
    ],
  ),
  "an earlier round's image": (f"{PLAIN}old.jpg,cat\n", {"old.jpg": "cat"}, []),
  "this run's name": (
    "id,label,run\na.jpg,cat,this run\n",
    {"a.jpg": "cat"},
    [],
  ),
  "a list in JSON": ('[{"id": "a.jpg", "label": "cat"}]', {"a.jpg": "cat"}, []),
  "people who agree, and one who skipped": (
    studio(task("a.jpg", "cat", "cat"), skipped(task("b.jpg", "dog"))),
    {"a.jpg": "cat"},
    [],
  ),
  "another name of the choices, and a remark": (
    studio(
      {
        "id": 1,
        "data": {"cpeal_id": "a.jpg"},
        "annotations": [
          {
            "result": [
              {
                "from_name": "kind",
                "type": "choices",
                "value": {"choices": ["cat"]},
              },
              {
                "from_name": "note",
                "type": "textarea",
                "value": {"text": ["!"]},
              },
            ]
          }
        ],
      }
    ),
    {"a.jpg": "cat"},
    [],
  ),
}


@pytest.mark.parametrize("name", USED)
def test_an_unusual_file_is_used_with_a_note(name, tmp_path):
  data, want, notes = USED[name]
  reading = given_back(tmp_path, data)
  assert lines(reading, tmp_path) == notes
  assert said(reading) == want
  known = folding.known_in(tmp_path).standing
  assert {id_: e.label or e.kind for id_, e in known.items()} == want
  assert {e.source for e in known.values()} == {"files:labels.csv"}


def test_an_empty_label_waits_and_is_counted(tmp_path):
  text = f"{FULL}a.jpg,a.jpg,cat,0.5,\nb.jpg,b.jpg,dog,0.3, \n=e.jpg,,,,dog\n"
  reading = given_back(tmp_path, text)
  assert said(reading) == {"=e.jpg": "dog"}
  assert reading.waiting == 2
  assert reading.problems == reading.notes == ()


def test_an_answer_knows_its_question(tmp_path):
  given_back(tmp_path, f"{PLAIN}audit.jpg,cat\nold.jpg,dog\n")
  audit, old = answers.read(tmp_path)
  assert (audit.purpose, audit.round_) == ("audit", 1)
  assert (old.purpose, old.round_) == ("train", 0)


def test_a_file_given_twice_adds_nothing_and_a_new_one_corrects(tmp_path):
  given_back(tmp_path, f"{PLAIN}a.jpg,cat\nb.jpg,dog\n")
  before = answers.read(tmp_path)
  given_back(tmp_path, f"{PLAIN}a.jpg,cat\nb.jpg,dog\n")
  assert answers.read(tmp_path) == before
  given_back(tmp_path, f"{PLAIN}a.jpg,dog\nb.jpg,dog\n", name="second.csv")
  (last,) = answers.read(tmp_path)[len(before) :]
  assert (last.kind, last.label) == ("correction", "dog")
  assert last.source == "files:second.csv"


def test_a_file_whose_name_is_not_utf8_is_recorded(tmp_path):
  name = os.fsdecode(b"labels\xff.csv")
  given_back(tmp_path, f"{PLAIN}a.jpg,cat\n", name=name)
  (event,) = answers.read(tmp_path)
  assert event.source == "files:labels\\udcff.csv"


def test_several_files_are_checked_together(tmp_path):
  first, second = tmp_path / "1.csv", tmp_path / "2.json"
  first.write_text(f"{PLAIN}a.jpg,cat\nb.jpg,bat\n")
  second.write_text('[{"id": "a.jpg", "label": "dog"}]')
  reading = label_file.read(
    [first, second], questions=QUESTIONS, classes=CLASSES
  )
  assert [(p.file, p.place) for p in reading.problems] == [
    (str(first), "line 3"),
    (str(second), "entry 1"),
  ]
  assert "'cat' at line 2 of " in reading.problems[1].what


@pytest.mark.parametrize(
  ("name", "why"),
  [("missing.csv", "No such file or directory"), (".", "it is a directory")],
)
def test_what_is_no_file_is_a_problem(tmp_path, name, why):
  path = tmp_path / name
  reading = label_file.read([path], questions=QUESTIONS, classes=CLASSES)
  (problem,) = reading.problems
  assert problem.what.startswith(why)
  assert problem.file == str(path)


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
  path = tmp_path / "labels.csv"
  with path.open("wb") as file:
    file.truncate(100 * 2**20)
  reading = label_file.read([path], questions=QUESTIONS, classes=CLASSES)
  assert lines(reading, tmp_path) == [
    "labels.csv: it has 104857600 bytes, at most 67108864 are allowed; give a "
    "file with labels, a large one in parts."
  ]
  assert texts.MAX_BYTES == 67108864


def test_the_report_shows_the_first_and_counts_the_rest():
  one = found.Problem("f.csv", "line 1", "it is wrong", "mend it")
  assert found.report([one]) == [
    "f.csv, line 1: it is wrong; mend it.",
    "No answer was taken. Mend this problem, and give the file again.",
  ]
  many = found.report([one] * 53)
  assert len(many) == 52
  assert many[50:] == [
    "3 more problems are not shown.",
    "No answer was taken. Mend these problems, and give the file again.",
  ]


def test_a_class_called_unusable_is_a_class(tmp_path):
  classes = ("cat", "Unusable")
  path = tmp_path / "labels.csv"
  path.write_text(f"{PLAIN}a.jpg,Unusable\nb.jpg,unusable\n")
  reading = label_file.read([path], questions=QUESTIONS, classes=classes)
  assert {(a.kind, a.label) for a in reading.answers} == {
    ("answer", "Unusable")
  }
  choices = ElementTree.fromstring(to_label.config_text(classes)).iter("Choice")
  values = [choice.get("value") for choice in choices]
  assert values == ["cat", "Unusable", "cannot tell"]


def test_many_unknown_words_take_no_longer_than_few(tmp_path, monkeypatch):
  """Comparing each with each of many classes would take minutes."""
  compared = []
  nearest = label_file.checks.Words.suggestion
  monkeypatch.setattr(
    label_file.checks.Words,
    "suggestion",
    lambda self, cell: compared.append(cell) or nearest(self, cell),
  )
  rows = "".join(f"a.jpg,word{number}\n" for number in range(500))
  reading = given_back(tmp_path, PLAIN + rows)
  assert len(reading.problems) == 500
  assert len(compared) == 20


# --- What a real Label Studio exported, see golden/make_label_studio_goldens.py

ASKED = json.loads((GOLDEN / "asked.json").read_text())
IN_STUDIO = {q["id"]: Question(**q) for q in ASKED["questions"]}
EXPORTS = ("json", "min.json", "csv")


def exported(name):
  return label_file.read(
    [GOLDEN / name],
    questions=IN_STUDIO,
    classes=ASKED["classes"],
    run=ASKED["run"],
  )


@pytest.mark.parametrize("suffix", EXPORTS)
def test_an_export_of_label_studio_is_read(suffix):
  reading = exported(f"answered.{suffix}")
  want = {
    id_: {"cannot tell": "cannot_tell"}.get(word, word)
    for id_, word in ASKED["answers"].items()
    if word
  }
  assert reading.problems == reading.notes == ()
  assert said(reading) == want
  # JSON has the skipped task too, the others have only the open one.
  assert reading.waiting == (2 if suffix == "json" else 1)


@pytest.mark.parametrize("suffix", EXPORTS)
def test_two_labels_in_label_studio_are_a_problem(suffix):
  (problem,) = exported(f"disputed.{suffix}").problems
  assert "'plain.jpg' has two labels" in problem.what
  assert "'cat' by annotator 1" in problem.what
  assert "'a;b' by annotator 1" in problem.what


def test_label_studio_was_given_what_is_written_now(tmp_path):
  """Else the exports would be of other tasks than ours."""
  to_label.write(
    tmp_path / "round",
    list(IN_STUDIO.values()),
    classes=ASKED["classes"],
    root=tmp_path / "my photos",
    run=ASKED["run"],
  )
  for name in (to_label.TASKS, to_label.CONFIG):
    assert (tmp_path / "round" / name).read_text() == (
      GOLDEN / name
    ).read_text()
