"""Folder names made readable, and display names from a person's file."""

import json

import pytest

from cpeal_jax.data.class_names import (
  display_name,
  display_names,
  every_class,
  read_class_names,
)
from cpeal_jax.errors import InputError


@pytest.mark.parametrize(
  ("label", "name"),
  [
    ("AnnualCrop", "Annual Crop"),
    ("SeaLake", "Sea Lake"),
    ("annual_crop", "annual crop"),
    ("HerbaceousVegetation", "Herbaceous Vegetation"),
    ("CTScan", "CT Scan"),
    ("type2Diabetes", "type2 Diabetes"),
    ("__ dog__", "dog"),
    ("tabby cat", "tabby cat"),
    ("McLaren MP4", "McLaren MP4"),
    ("USA", "USA"),
    ("cat", "cat"),
    ("Äpfel_Grün", "Äpfel Grün"),
  ],
)
def test_a_folder_name_becomes_a_phrase(label, name):
  assert display_name(label) == name


@pytest.mark.parametrize(
  "text",
  [
    "AnnualCrop,annual crop land\nForest\n",
    "\ufefflabel,name\r\nAnnualCrop,annual crop land\r\nForest,Forest\r\n",
    '\n"AnnualCrop", "annual crop land"\nForest\n',
    json.dumps({"AnnualCrop": "annual crop land", "Forest": "Forest"}),
    "\ufeff"
    + json.dumps({"AnnualCrop": "annual crop land", "Forest": "Forest"}),
  ],
)
def test_every_form_of_the_file_says_the_same(tmp_path, text):
  path = tmp_path / "names.txt"
  path.write_bytes(text.encode())
  names = read_class_names(path)
  assert names == {"AnnualCrop": "annual crop land", "Forest": "Forest"}
  shown = display_names(["AnnualCrop", "Forest", "SeaLake"], source=str(path))
  assert list(shown.values()) == ["annual crop land", "Forest", "Sea Lake"]


def test_a_list_of_names_is_its_own_labels(tmp_path):
  path = tmp_path / "names.json"
  path.write_text('["cat", "dog"]')
  assert read_class_names(path) == {"cat": "cat", "dog": "dog"}


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b"", "names no class"),
    (b"\n\n", "names no class"),
    (b"a,b,c\n", "line 1 has 3 columns"),
    (b"a,b\nb\na,c\n", "line 3: 'a' is named twice"),
    (b'a,"b\nc"\n', "line 2: a class needs a label and a name without control"),
    (b"b\nlabel,name\nlabel,x\n", "line 3: 'label' is named twice"),
    (b"a,\n", "line 1: a class needs"),
    (b"a,x\x07y\n", "line 1: a class needs"),
    (b"\xff\xfe", "is not UTF-8"),
    (b'{"a": 1}', "object from labels to names"),
    (b'["a", "a"]', "object from labels to names"),
    (b"[1, 2]", "object from labels to names"),
    (b'{"a": "b"', "is not JSON"),
    (b"[" * 100_000, "is not JSON"),
    (b"nothing here,x\n", "'nothing here', which is no class"),
  ],
)
def test_a_bad_file_is_one_line(tmp_path, content, words):
  path = tmp_path / "names"
  path.write_bytes(content)
  with pytest.raises(InputError) as error:
    display_names(["a", "b", "nothing"], source=str(path))
  assert words in str(error.value)
  assert "\n" not in str(error.value)


def test_what_is_no_file_is_refused(tmp_path):
  for path in (tmp_path, tmp_path / "absent"):
    with pytest.raises(InputError, match=r"dataset\.class_names="):
      read_class_names(path)


def test_two_folders_of_one_name_are_refused():
  with pytest.raises(InputError, match=r"'annual_crop' and 'AnnualCrop'"):
    display_names(["annual_crop", "AnnualCrop"])


@pytest.mark.parametrize(
  ("text", "names"),
  [
    ('"car, truck"\nbus\n', ["car, truck", "bus"]),
    ("label,name\ncar,truck\nbus\n", ["truck", "bus"]),
    ('{"car": "truck"}', ["truck"]),
  ],
)
def test_commas_that_can_mean_one_thing(tmp_path, text, names):
  path = tmp_path / "names"
  path.write_text(text)
  assert [*every_class((), source=str(path)).values()] == names


def test_a_comma_is_refused_where_no_image_has_a_label(tmp_path):
  """It could be a name with a comma, two classes, or LABEL,NAME."""
  path = tmp_path / "names"
  path.write_text("bus\ncar, truck\n")
  with pytest.raises(InputError) as caught:
    every_class((), source=str(path))
  said = str(caught.value)
  assert "line 2 would be read as the label 'car' with the name 'truck'" in said
  assert 'in quotes, as in "car, truck"' in said
  assert "label,name into the first line" in said
  # A label in the images tells what is meant.
  assert every_class(["car"], source=str(path)) == {
    "bus": "bus",
    "car": "truck",
  }
