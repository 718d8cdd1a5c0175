"""Mistakes in one's own data: each is one line that says what to do."""

import json
import shutil

import pyarrow as pa
import pytest
from own_data import config, read, saved, write

from cpeal_jax import errors, main, quickstart
from cpeal_jax.errors import InputError
from cpeal_jax.labeling.oracles import oracle_of
from cpeal_jax.labeling.questions import Question


def images(root, count=3):
  for i in range(count):
    write(root / f"{i}.png", i)
  return root


def table(text, name="list.csv"):
  """A root with three images and this list."""

  def make(root):
    (images(root) / name).write_text(text)

  return make


def labels_json(content):
  def make(root):
    images(root / "data")
    (root / "labels.json").write_text(json.dumps(content))

  return make


def changed(name, content):
  """A saved dataset, one of whose files is other than it was."""

  def make(root):
    saved(root, [(0, 0), (1, 1)])
    (root / name).write_text(content)

  return make


def folders(*names):
  def make(root):
    for k, name in enumerate(names):
      write(root / name / "1.png", k)

  return make


def no_bytes(root):
  saved(root, [(0, 0), (1, 1)])
  path = root / "data-00000-of-00001.arrow"
  kept = pa.ipc.open_stream(path.read_bytes()).read_all()
  empty = [{"bytes": None, "path": "a.png"}] * 2
  column = pa.array(empty, kept.schema.field("image").type)
  with pa.ipc.new_stream(path, kept.schema) as stream:
    stream.write_table(kept.set_column(0, "image", column))


CLASSES = "cat\ndog\nbarn owl\n"
CASES = {
  "no root": (lambda root: None, {}, "does not exist; give the folder"),
  "an empty root": (lambda root: root.mkdir(), {}, "no image that can be read"),
  "neither labels nor names": (
    images,
    {"class_names": ""},
    r"dataset\.class_names is not set: .*one a line.*class_names=FILE.* "
    r"\(dataset.layout=auto took images, since there are no class folders\)",
  ),
  "no such file of names": (
    images,
    {"class_names": "/no/such/file"},
    "cannot be read: No such file",
  ),
  "a folder that is no class": (
    folders("cat", "dgo", "unlabeled"),
    {},
    r"class folder 'dgo' in .* is not among .*Did you mean 'dog'\? They are: "
    "cat, dog, barn owl",
  ),
  "FiftyOne's layout without its files": (
    folders("1", "2"),
    {"layout": "fiftyone"},
    "no labels.json beside a folder data",
  ),
  "no column of paths": (
    table("image,label\n0.png,cat\n", "manifest.csv"),
    {},
    "manifest.csv has no column path or file_name; its columns are image, lab",
  ),
  "an empty list": (table("", "manifest.csv"), {}, "its columns are none"),
  "a list of nothing": (table("path\n"), {}, "lists no image"),
  "no list": (images, {"layout": "manifest"}, "no list of images in"),
  "two lists": (
    lambda root: table("path\n0.png\n")(root) or table("path\n", "b.csv")(root),
    {},
    r"several lists of images \(b.csv, list.csv\); choose one",
  ),
  "a list that is not there": (
    images,
    {"split_file": "lost.csv"},
    "cannot read the list of images from .*lost.csv: No such file",
  ),
  "an unknown label": (
    table("path,label\n0.png,cat\n1.png,barnowl\n2.png,barnowl\n"),
    {},
    r"list.csv, line 3: the label 'barnowl' is not among the class names .*"
    r"Did you mean 'barn owl'\?",
  ),
  "two labels of one image": (
    table("path,label\n0.png,cat\n1.png,\n./0.png,dog\n"),
    {},
    r"line 4: '0.png' has the label 'dog' here and 'cat' in .*, line 2; keep",
  ),
  "an image twice": (
    table("path,label\n0.png,cat\n0.png,cat\n"),
    {},
    "line 3: '0.png' is listed already, in .*list.csv, line 2; list it once",
  ),
  "a path above the root": (
    table("path,label\n../0.png,cat\n"),
    {},
    r"line 2: '\.\./0.png' is not a file inside .*relative to this folder",
  ),
  "a path elsewhere": (
    table("path\n/etc/passwd\n"),
    {},
    "'/etc/passwd' is not a file inside",
  ),
  "a path of another system": (
    table("path\nC:\\photos\\0.png\n"),
    {},
    "is not a file inside",
  ),
  "the root as an image": (table("path\n.\n"), {}, "is not a file inside"),
  "a missing file": (
    table("path,label\n0.png,cat\n9.png,dog\n"),
    {},
    "lacks 1 of 2 files named in .*list.csv, e.g. 9.png; put the",
  ),
  "a row without a path": (
    table("path,label\n0.png,cat\n,dog\n"),
    {},
    "line 3 has no path",
  ),
  "too many columns": (
    table("path,label\n0.png,a, b\n"),
    {},
    "line 2 has 3 columns and the first line has 2; put a text with a ','",
  ),
  "an unknown split": (
    table("path,label,split\n0.png,cat,left\n"),
    {},
    "line 2: the split is 'left'; write train, val or test",
  ),
  "no image for the pool": (
    table("path,label,split\n0.png,cat,val\n1.png,dog,test\n"),
    {},
    "no training image",
  ),
  "a line that is no JSON": (
    table('{"path": "0.png"}\n{"path": \n', "list.jsonl"),
    {},
    "list.jsonl, line 2 is not JSON",
  ),
  "a line that is no object": (
    table('["0.png"]\n', "metadata.jsonl"),
    {},
    r"line 1 is \['0.png'\]; each line must be a JSON object",
  ),
  "a label that is a list": (
    table('{"path": "0.png", "label": ["cat"]}\n', "list.jsonl"),
    {},
    r"line 1: the label is \['cat'\]; give a text or a number",
  ),
  "a broken Parquet file": (
    table("nothing of the kind", "metadata.parquet"),
    {},
    "metadata.parquet is not a Parquet file",
  ),
  "a list of another kind": (
    table("path\n", "list.xlsx"),
    {"layout": "manifest", "split_file": "list.xlsx"},
    r"its name must end in \.csv, \.jsonl, \.parquet",
  ),
  "no labels in labels.json": (
    labels_json({"classes": ["a"]}),
    {},
    "labels is None; it must be an object",
  ),
  "a number beyond the classes": (
    labels_json({"classes": ["cat", "dog"], "labels": {"0": 2}}),
    {"class_names": ""},
    "the label of '0' is 2; give a number from 0 to 1",
  ),
  "labels of an image that is not there": (
    labels_json({"classes": ["cat", "dog"], "labels": {"0": 1, "9": 0}}),
    {"class_names": ""},
    "data lacks 1 of 2 images named in .*labels.json, e.g. '9'",
  ),
  "two files of one stem": (
    lambda root: (
      labels_json({"classes": None, "labels": {"0": "cat"}})(root),
      shutil.copy(root / "data/0.png", root / "data/0.jpg"),
    ),
    {},
    "cannot tell 'data/0.jpg' and 'data/0.png' apart",
  ),
  "a name that is no class of labels.json": (
    labels_json({"classes": ["cat", "dog"], "labels": {"0": 1}}),
    {},
    "names 'barn owl', which is no class here",
  ),
  "no features": (changed("dataset_info.json", "{}"), {}, "has no features"),
  "no image in the features": (
    changed("dataset_info.json", '{"features": {"a": {"_type": "Value"}}}'),
    {},
    "no column of the feature Image",
  ),
  "a column that is not in the file": (
    changed("dataset_info.json", '{"features": {"photo": {"_type": "Image"}}}'),
    {},
    "unknown column of .* 'photo'; choose from: image, label",
  ),
  "files elsewhere": (
    changed("state.json", '{"_data_files": [{"filename": "../a.arrow"}]}'),
    {},
    "must be a list of objects with a filename in this folder",
  ),
  "a broken arrow file": (
    changed("data-00000-of-00001.arrow", "nothing of the kind"),
    {},
    "data-00000-of-00001.arrow cannot be read",
  ),
  "rows without bytes": (no_bytes, {}, "row 0 has no bytes of an image"),
  "shares of images without labels": (
    images,
    {"shares": "0.5,0.2,0.3"},
    r"dataset.shares=0.5,0.2,0.3 has no meaning with dataset.layout=images",
  ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_mistake_is_one_line(tmp_path, case):
  make, settings, words = CASES[case]
  (tmp_path / "classes.txt").write_text(CLASSES)
  make(tmp_path / "data")
  settings = {"class_names": str(tmp_path / "classes.txt")} | settings
  with pytest.raises(InputError, match=words) as error:
    read(tmp_path / "data", **settings)
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("", "names no class"),
    ("cat\n", "there must be at least 2"),
    ("cat\ndog\ncat\n", "line 3: 'cat' is named twice"),
    ("label,name\na,cat\nb,Cat\n", "'a' and 'b' would both be called 'Cat'"),
    ('["cat", "cat"]', "'cat' is named twice"),
    ('{"a": "cat", "b": "dog", "a": "owl"}', "'a' is named twice"),
  ],
)
def test_a_file_of_names_that_is_wrong(tmp_path, text, words):
  images(tmp_path / "data")
  (tmp_path / "names").write_text(text)
  with pytest.raises(InputError, match=words):
    read(tmp_path / "data", class_names=str(tmp_path / "names"))


def test_a_file_is_no_root(tmp_path):
  (tmp_path / "list.csv").write_text("path\n")
  with pytest.raises(InputError, match=r"list.csv is not a folder; give the f"):
    read(tmp_path / "list.csv")


def test_the_command_ends_with_one_line_and_code_2(tmp_path, capsys):
  images(tmp_path / "data")
  flags = [f"--config.dataset.root={tmp_path / 'data'}", "--dry_run"]
  flags += [f"--config.model.weights={quickstart.CLIP}"]
  assert main.main(["main", "--config=own_images", *flags]) == errors.USAGE
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: no image has a label, and dataset.class_names")


def test_the_simulated_oracle_says_what_to_do(tmp_path):
  images(tmp_path / "data")
  (tmp_path / "names").write_text(CLASSES)
  data = read(tmp_path / "data", class_names=str(tmp_path / "names"))
  oracle = oracle_of("simulated", data, str(tmp_path / "run"), root="")
  with pytest.raises(InputError, match=r"'1.png' has no label.*Label it in"):
    oracle.ask([Question("1.png", 0)])


def test_the_config_is_that_of_the_preset_anchored(tmp_path):
  made = config(tmp_path)
  assert made.variant == "anchored"
  assert made.adapter.kind == "anchored"
  assert made.acquisition.name == "uherding"
  assert made.model.template == "a photo of a {}."
  assert (made.dataset.name, made.dataset.layout) == ("", "auto")
