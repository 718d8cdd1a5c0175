"""What a person is given: a table, Label Studio's files and a contact sheet."""

import base64
import csv
import hashlib
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlsplit

import pytest
from asked_questions import QUESTIONS
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cpeal_jax.errors import InputError
from cpeal_jax.labeling import (
  addresses,
  cells,
  contact_sheet,
  label_file,
  questions,
  thumbnails,
  to_label,
)
from cpeal_jax.labeling.questions import Question

CLASSES = ("cat", "dog", "Käse", "=1+1")


def contents(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


def asked_folder(tmp_path, **more):
  root = tmp_path / "root"
  for id_ in QUESTIONS:
    path = root / id_
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (320, 200), "teal").save(path)
  (root / "b.jpg").write_bytes(b"no image")
  options = {"classes": CLASSES, "root": root, "run": "this run"} | more
  written = to_label.write(
    tmp_path / "round", list(QUESTIONS.values()), **options
  )
  return tmp_path / "round", written


def test_the_files_of_a_round_are_written_once(tmp_path):
  folder, written = asked_folder(tmp_path)
  names = {to_label.TABLE, to_label.TASKS, to_label.CONFIG, to_label.SHEET}
  assert set(written) == set(contents(folder)) == names
  # It is last, so where it is, the others are.
  assert written[-1] == to_label.TABLE
  (folder / to_label.TABLE).write_text("begun to fill in")
  (folder / to_label.TASKS).unlink()
  _, again = asked_folder(tmp_path)
  assert again == (to_label.TASKS,)
  assert (folder / to_label.TABLE).read_text() == "begun to fill in"


def table(folder):
  data = (folder / to_label.TABLE).read_bytes()
  return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))


def test_the_table_comes_back_as_it_was_asked(tmp_path):
  folder, _ = asked_folder(tmp_path)
  rows = table(folder)
  assert list(rows[0]) == ["id", "path", "prediction", "confidence", "label"]
  by_id = {cells.restored(row["id"]): row for row in rows}
  assert by_id.keys() == QUESTIONS.keys()
  assert by_id["a.jpg"] == {
    "id": "a.jpg",
    "path": str(tmp_path / "root" / "a.jpg"),
    "prediction": "cat",
    "confidence": "0.5",
    "label": "",
  }
  assert by_id["=e.jpg"]["id"] == "'=e.jpg"
  assert by_id["=e.jpg"]["prediction"] == "'=1+1"
  # A person copies the prediction where it is right.
  filled = [row | {"label": row["prediction"] or "dog"} for row in rows]
  out = io.StringIO(newline="")
  writer = csv.DictWriter(out, rows[0], delimiter=";")
  writer.writeheader()
  writer.writerows(filled)
  (folder / to_label.TABLE).write_text(out.getvalue())
  reading = label_file.read(
    [folder / to_label.TABLE], questions=QUESTIONS, classes=CLASSES
  )
  assert reading.problems == reading.notes == ()
  assert {a.question.id: a.label for a in reading.answers} == {
    q.id: "dog" if q.purpose == "audit" else q.prediction
    for q in QUESTIONS.values()
  }


@pytest.mark.parametrize(
  ("name", "starts"), [("ä.jpg", b"\xef\xbb\xbfid,"), ("a.jpg", b"id,")]
)
def test_only_a_table_that_needs_it_begins_with_a_mark(name, starts):
  data = to_label.table_text([Question(name, 0)], "root").encode()
  assert data.startswith(starts)


def test_an_audit_tells_nothing_but_its_image(tmp_path):
  folder, _ = asked_folder(tmp_path)
  (row,) = [row for row in table(folder) if row["id"] == "audit.jpg"]
  assert row["prediction"] == row["confidence"] == row["label"] == ""
  tasks = json.loads((folder / to_label.TASKS).read_text())
  (audit,) = [t for t in tasks if t["data"]["cpeal_id"] == "audit.jpg"]
  assert audit["predictions"] == []
  assert audit["data"]["reason"] == ""
  # A pick without a prediction looks the same, but for its image.
  bare = json.loads(
    to_label.tasks_text(
      [Question("x.jpg", 1)], tmp_path / "root", run="this run"
    )
  )
  assert bare[0]["data"].keys() == audit["data"].keys()
  for data in contents(folder).values():
    assert b"not to be seen" not in data
    assert b"purpose" not in data
    assert b"0.875" not in data
    assert b"88 %" not in data


def test_audits_are_at_random_places_among_the_others():
  picks = [Question(f"{n}.jpg", 0) for n in range(100)]
  audits = [Question(f"audit{n}.jpg", 0, purpose="audit") for n in range(50)]
  order = questions.mixed(picks + audits, run="one")
  assert [q for q in order if q.purpose == "train"] == picks
  assert order == questions.mixed(audits + picks, run="one")
  places = [n for n, q in enumerate(order) if q.purpose == "audit"]
  for quarter in range(4):
    inside = sum(quarter * 37 <= place < (quarter + 1) * 37 for place in places)
    assert 4 <= inside <= 21
  assert order != questions.mixed(picks + audits, run="two")
  assert questions.mixed(audits, run="one") != audits


def test_predictions_can_be_left_out(tmp_path):
  folder, _ = asked_folder(tmp_path, suggest=False)
  assert {row["prediction"] + row["confidence"] for row in table(folder)} == {
    ""
  }
  tasks = json.loads((folder / to_label.TASKS).read_text())
  assert all(task_["predictions"] == [] for task_ in tasks)
  assert "The model says" not in (folder / to_label.SHEET).read_text()


def test_predictions_are_pre_annotations(tmp_path):
  folder, _ = asked_folder(tmp_path)
  tasks = json.loads((folder / to_label.TASKS).read_text())
  (first,) = [t for t in tasks if t["data"]["cpeal_id"] == "a.jpg"]
  assert first == {
    "data": {
      "image": "/data/local-files/?d=root/a.jpg",
      "cpeal_id": "a.jpg",
      "run": "this run",
      "round": 1,
      "reason": "near a border",
    },
    "predictions": [
      {
        "model_version": "cpeal_jax round 1",
        "result": [
          {
            "from_name": "label",
            "to_name": "image",
            "type": "choices",
            "value": {"choices": ["cat"]},
          }
        ],
        "score": 0.5,
      }
    ],
  }


@pytest.mark.parametrize(
  "id_", ["../x.jpg", "a/../../x.jpg", "/etc/passwd", "", "a\0b"]
)
def test_an_id_outside_of_the_root_is_refused(tmp_path, id_):
  with pytest.raises(InputError, match="is outside of the data root"):
    to_label.write(
      tmp_path / "round", [Question(id_, 0)], classes=CLASSES, root=tmp_path
    )
  assert not (tmp_path / "round").exists()


def test_an_image_is_asked_about_once(tmp_path):
  with pytest.raises(InputError, match=r"'a\.jpg' is asked about twice"):
    to_label.write(
      tmp_path, [Question("a.jpg", 0)] * 2, classes=CLASSES, root=tmp_path
    )


# --- Label Studio's configuration and addresses


@given(
  st.lists(
    st.text(min_size=1).filter(
      lambda name: name.isprintable() and name.strip()
    ),
    unique=True,
  )
)
@settings(derandomize=True, database=None, deadline=None)
def test_any_class_survives_the_xml(classes):
  page = ElementTree.fromstring(to_label.config_text(classes))
  values = [choice.get("value") for choice in page.iter("Choice")]
  assert values[: len(classes)] == classes


@pytest.mark.parametrize("name", ["a\x07b", "a\nb", "\ud800"])
def test_a_class_that_xml_cannot_hold_is_refused(name):
  with pytest.raises(InputError, match="Label Studio's XML cannot hold"):
    to_label.config_text(["cat", name])


@pytest.mark.parametrize(
  "id_", ["a b.jpg", "100%25.jpg", "deep/ü#1.jpg", "q?x=1&d=2+3;.jpg"]
)
def test_an_address_leads_to_the_image(tmp_path, id_):
  root = tmp_path / "my photos"
  parts = urlsplit(addresses.address(id_, root))
  assert parts.path == "/data/local-files/"
  assert parse_qs(parts.query) == {"d": [f"my photos/{id_}"]}
  wider = addresses.address(id_, root, document_root=tmp_path.parent)
  (path,) = parse_qs(urlsplit(wider).query)["d"]
  assert tmp_path.parent / path == root / id_


def test_the_three_settings(tmp_path):
  root = tmp_path / "my photos"
  said_ = addresses.settings(root)
  assert said_ == (
    "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true",
    f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={tmp_path}",
    str(root),
  )
  text = "\n".join(said_.lines())
  assert all(setting in text for setting in said_)
  spaced = addresses.settings(root / "deep")
  assert spaced.document_root.endswith(f"='{root}'")


@pytest.mark.parametrize("above", ["", "other", "root/deep"])
def test_a_document_root_that_label_studio_refuses(tmp_path, above):
  root = "/" if above == "" else tmp_path / "root"
  with pytest.raises(InputError, match="Give a folder above the data root"):
    addresses.settings(root, document_root=above and tmp_path / above)


# --- Cells


@given(st.text(alphabet="'=+-@\t\r\n,;a", max_size=12))
@settings(derandomize=True, database=None, deadline=None, max_examples=500)
def test_a_neutral_cell_is_no_formula_and_comes_back(text):
  cell = cells.neutralized(text)
  assert cells.restored(cell) == text
  for separator in (None, ",", ";", "\t"):
    for part in cell.split(separator) if separator else [cell]:
      assert not part.startswith(("=", "+", "-", "@", "\r", "\n"))


@pytest.mark.parametrize(
  "text", ["", "a", "a=b", "x - y", "it's", "a, -b", "'a"]
)
def test_a_harmless_cell_stays_as_it_is(text):
  assert cells.neutralized(text) == text
  assert cells.restored(text) == text


# --- The contact sheet


class Sheet(HTMLParser):
  """Collects the tags, their attributes, and the text of a page."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.words = [], []
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.words.append(data)

  def all(self, tag):
    return [attrs for name, attrs in self.tags if name == tag]

  @property
  def text(self):
    return re.sub(r"[ \n]+", " ", " ".join(self.words))


def test_the_sheet_shows_every_image_and_needs_no_network(tmp_path):
  folder, _ = asked_folder(tmp_path)
  page = (folder / to_label.SHEET).read_text()
  sheet = Sheet(page)
  images = sheet.all("img")
  # One of the files is no image.
  assert {image["alt"] for image in images} == QUESTIONS.keys() - {"b.jpg"}
  assert "This file cannot be shown." in sheet.text
  for image in images:
    kind, _, data = image["src"].partition(";base64,")
    assert kind == "data:image/jpeg"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (160, 100)
  assert "The model says cat, 50 %. Why: near a border" in sheet.text
  assert not re.search(r"https?:|url\(|@import|=\"//|src=\"(?!data:)", page)
  assert not {"script", "link", "iframe"} & {tag for tag, _ in sheet.tags}
  (policy,) = [m for m in sheet.all("meta") if "http-equiv" in m]
  assert policy["http-equiv"] == "Content-Security-Policy"
  style = re.search("<style>(.*?)</style>", page, re.DOTALL)[1]
  digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
  assert policy["content"] == (
    f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'"
  )
  assert "color-scheme: light dark" in page
  assert "cannot tell" in sheet.text


HOSTILE = "<img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}</figure>"


def test_the_sheet_escapes_everything(tmp_path):
  question = Question(HOSTILE, 0, HOSTILE, 0.5, HOSTILE)
  page = contact_sheet.text([question], classes=[HOSTILE], root=tmp_path)
  sheet = Sheet(page)
  assert sheet.all("img") == []
  assert page.count("</figure>") == 1
  assert sheet.text.count(HOSTILE) == 4
  with_picture = tmp_path / HOSTILE.replace("/", "")
  Image.new("RGB", (4, 4)).save(with_picture, "PNG")
  page = contact_sheet.text(
    [Question(with_picture.name, 0)], classes=["a"], root=tmp_path
  )
  (image,) = Sheet(page).all("img")
  assert image["alt"] == with_picture.name
  assert image.keys() == {"src", "alt"}


def test_a_long_sheet_is_cut_and_says_so(tmp_path, monkeypatch):
  monkeypatch.setattr(contact_sheet, "MOST_SHOWN", 2)
  asked = [Question(f"{n}.jpg", 0) for n in range(5)]
  sheet = Sheet(contact_sheet.text(asked, classes=["a"], root=tmp_path))
  assert "This page shows the first 2 images. 3 others are in" in sheet.text
  assert len(sheet.all("figure")) == 2


def test_a_turned_photo_is_shown_upright():
  """The left half is red; the camera says to turn it to the right."""
  photo = Image.new("RGB", (400, 200), "blue")
  photo.paste("red", (0, 0, 200, 200))
  exif = Image.Exif()
  exif[0x0112] = 6
  out = io.BytesIO()
  photo.save(out, "JPEG", exif=exif)
  uri = thumbnails.data_uri(out.getvalue())
  data = base64.b64decode(uri.partition("base64,")[2])
  shown = Image.open(io.BytesIO(data))
  assert shown.size == (80, 160)
  red, _, blue = shown.getpixel((40, 20))
  assert red > 200 > 50 > blue


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_has_no_thumbnail(data):
  assert thumbnails.data_uri(data) == ""
