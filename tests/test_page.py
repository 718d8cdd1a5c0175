"""The labeling page's server: what it lets in, shows and records."""

import concurrent.futures
import io
import itertools
import json
import os
import re
import time

import page_workdir
import pytest
from page_workdir import AUDITS, CLASSES, PICKS, photo
from PIL import Image
from starlette.testclient import TestClient

from cpeal_jax.acquisition import ACQUISITIONS
from cpeal_jax.labeling import (
  answers,
  events,
  folding,
  reasons,
)
from cpeal_jax.labeling.page import access
from cpeal_jax.labeling.page import app as page_app
from cpeal_jax.labeling.page.board import Board
from cpeal_jax.labeling.page.desk import Desk
from cpeal_jax.labeling.questions import Question, for_page
from cpeal_jax.storage import markers

TOKEN = access.new_token()


@pytest.fixture
def workdir(tmp_path):
  return page_workdir.make(tmp_path)


@pytest.fixture
def desk(workdir):
  return Desk(Board(str(workdir)), phase="asking")


@pytest.fixture
def page(desk):
  return client(desk)


def client(desk, token=TOKEN, **how):
  app = page_app.make_app(desk, token=TOKEN, **how)
  return TestClient(app, base_url=f"http://127.0.0.1:80/{token}/")


numbers = itertools.count()


def send(page, *operations, tab="tab"):
  """Sends operations as the page does; returns their results."""
  numbered = [{"n": next(numbers), **operation} for operation in operations]
  body = json.dumps({"tab": tab, "operations": numbered})  # In ASCII.
  reply = page.post("record", content=body)
  assert reply.status_code == 200, reply.text
  return reply.json()["results"]


def answer(id_, label="cat", **more):
  return {"op": "answer", "id": id_, "label": label, **more}


def questions(page):
  batch = page.get("state").json()["batch"]
  return {question["id"]: question for question in batch["questions"]}


def kinds(workdir):
  return [event.kind for event in answers.read(workdir)]


# --- Who is let in


def test_the_page_loads_nothing_from_elsewhere(page):
  html = page.get("")
  assert html.status_code == 200
  for name in (None, *page_app.TYPES):
    reply = page.get(f"static/{name}" if name else "")
    assert reply.status_code == 200
    assert "default-src 'self'" in reply.headers["content-security-policy"]
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["x-frame-options"] == "DENY"
    text = reply.text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(https?:)?//[a-z]+\.|@import|data:", text), name
  # What the policy would refuse in the page is not there.
  assert not re.search(
    r"<style|<script(?! type=\"module\" src)| on\w+=| style=", html.text
  )
  # All that is used is served.
  for used in re.findall(r"static/([\w.]+)", html.text):
    assert used in page_app.TYPES
  assert page.get("static/server.py").status_code == 404
  assert page.get("static/..%2fserver.py").status_code == 404


@pytest.mark.parametrize(
  "token",
  ["", "x", TOKEN[:-1], TOKEN + "x", "%00", "é"],
  # The token is another one in each process.
  ids=["none", "x", "shorter", "longer", "null", "accent"],
)
@pytest.mark.parametrize("path", ["", "state", "image?id=im 00.png", "record"])
def test_without_the_token_nothing_is_told(desk, token, path):
  for method in ("GET", "POST"):
    reply = client(desk, token).request(method, path, follow_redirects=False)
    assert reply.status_code == 403
    assert "im 00" not in reply.text
    assert TOKEN not in reply.text + str(reply.headers)


@pytest.mark.parametrize(
  ("host", "allowed"),
  [
    ("127.0.0.1", True),
    ("127.0.0.1:8765", True),
    ("localhost:4000", True),  # As through ssh -L.
    ("LOCALHOST", True),
    ("[::1]:8765", True),
    ("evil.example", False),
    ("127.0.0.1.evil.example", False),
    ("localhost.evil.example:80", False),
    ("evil.example:127.0.0.1", False),
    ("127.0.0.1@evil.example", False),
    ("0.0.0.0", False),
    ("192.168.1.2:8765", False),
    ("", False),
  ],
)
def test_only_names_of_this_machine_are_served(page, host, allowed):
  reply = page.get("state", headers={"host": host})
  assert reply.status_code == (200 if allowed else 403)


@pytest.mark.parametrize(
  ("origin", "allowed"),
  [
    ("http://localhost:4000", True),
    ("http://127.0.0.1:8765", True),
    ("http://evil.example", False),
    ("https://localhost.evil.example", False),
    ("null", False),
  ],
)
def test_another_site_may_not_answer(page, workdir, origin, allowed):
  body = {"tab": "t", "operations": [{"n": 0, **answer(PICKS[0])}]}
  reply = page.post("record", json=body, headers={"origin": origin})
  assert reply.status_code == (200 if allowed else 403)
  assert len(answers.read(workdir)) == int(allowed)


def test_the_browsers_address_leads_to_the_page_once(desk):
  app = page_app.make_app(desk, token=TOKEN, once="once")
  browser = TestClient(app, base_url="http://127.0.0.1")
  first = browser.get("/once", follow_redirects=False)
  assert first.headers["location"] == f"/{TOKEN}/"
  assert browser.get("/once", follow_redirects=False).status_code == 403
  assert browser.get(f"/{TOKEN}").status_code == 200


# --- Bad requests


def test_ten_megabytes_are_refused(page, workdir):
  body = b'{"tab": "t", "operations": [' + b" " * 10 * 2**20
  assert page.post("record", content=body).status_code == 413
  in_pieces = (b" " * 2**16 for _ in range(160))  # Without a length.
  assert page.post("record", content=in_pieces).status_code == 400
  assert answers.read(workdir) == []
  assert page.get("state").status_code == 200


@pytest.mark.parametrize(
  "body",
  [
    b"",
    b"{",
    b"[]",
    b"[" * 100_000,
    b'{"operations": 3}',
    b'{"operations": [3]}',
    b"\xff\xfe",
    json.dumps({"operations": [{}] * 5_001}).encode(),
  ],
)
def test_a_request_that_is_none_changes_nothing(page, workdir, body):
  assert page.post("record", content=body).status_code in (400, 413)
  assert answers.read(workdir) == []


@pytest.mark.parametrize(
  ("operation", "words"),
  [
    (answer("nothing.png"), "no image 'nothing.png'"),
    (answer("test.png"), "no image 'test.png'"),  # Of the test split.
    (answer("../photos/im 00.png"), "no image"),
    (answer(["im 00.png"]), "no image"),
    (answer(PICKS[0], "elephant"), "no class 'elephant'"),
    (answer(PICKS[0], ""), "a class, or why there is none"),
    (answer(PICKS[0], kind="cannot_tell"), "a class, or why there is none"),
    ({"op": "answer", "id": PICKS[0], "kind": "given"}, "or why there is none"),
    (answer(PICKS[0], 7), "no class 7"),
    ({"op": "undo", "id": PICKS[0]}, "no answer to take back"),
    ({"op": "class", "name": " "}, "the name of a class"),
    ({"op": "class", "name": "x" * 101}, "the name of a class"),
    ({"op": "class", "name": "a\x07b"}, "the name of a class"),
    ({"op": "class", "name": "\udcff"}, "the name of a class"),
    ({"op": "class", "name": "CAT"}, "a class 'cat' already"),
    ({"op": ["answer"]}, "the page asked for"),
    ({}, "the page asked for"),
  ],
)
def test_an_operation_that_cannot_be_done(page, workdir, operation, words):
  good = answer(PICKS[1])
  refused, taken = send(page, operation, good)
  assert not refused["ok"]
  assert words in refused["error"]
  assert taken["ok"]
  assert [event.id for event in answers.read(workdir)] == [PICKS[1]]


@pytest.mark.parametrize(
  "id_", ["", "nothing", "/etc/passwd", "../run/config.json", "test.png", "\0"]
)
def test_only_images_of_the_pool_are_shown(page, id_):
  assert page.get("image", params={"id": id_}).status_code == 404


def test_images_are_shown_upright_and_small(page, workdir, desk):
  path = desk.board.pool[PICKS[0]].path
  exif = Image.Exif()
  exif[274] = 6  # The camera was turned.
  data = photo("red", (3000, 1000), kind="JPEG", exif=exif)
  with open(path, "wb") as file:
    file.write(data)
  for side, pixels in page_app.SIDES.items():
    reply = page.get("image", params={"id": PICKS[0], "side": side})
    shown = Image.open(io.BytesIO(reply.content))
    assert reply.headers["content-type"] == "image/jpeg"
    assert max(shown.size) == shown.height == pixels
  # A few pixels come without loss.
  reply = page.get("image", params={"id": PICKS[3]})
  assert reply.headers["content-type"] == "image/png"
  assert Image.open(io.BytesIO(reply.content)).getpixel((0, 0)) == (3, 0, 0)
  # What cannot be decoded or is gone is no error of the server.
  with open(path, "wb") as file:
    file.write(b"no image")
  assert page.get("image", params={"id": PICKS[0]}).status_code == 404
  os.unlink(path)
  assert page.get("image", params={"id": PICKS[0]}).status_code == 404


def test_before_the_workdir_is_there_it_says_so():
  page = client(Desk())
  assert page.get("state").json()["phase"] == "starting"
  body = {"tab": "t", "operations": [{"n": 0, "op": "class", "name": "x"}]}
  assert page.post("record", json=body).status_code == 409
  assert page.get("grid?class=cat").json() == {"total": 0, "images": []}
  assert page.get("image?id=x").status_code == 404
  assert page.get("grid?offset=x").status_code == 400


# --- What is asked


def test_nothing_tells_an_audit_from_another_image_without_a_suggestion(page):
  text = page.get("state").text
  assert "audit" not in text.lower()
  shown = json.loads(text)["batch"]["questions"]
  assert {q["id"] for q in shown} == {*PICKS, *AUDITS}
  bare = [q for q in shown if not q["suggestion"]]
  # Half as many others come without a suggestion too.
  assert len(bare) == len(AUDITS) + 2
  assert {*AUDITS} < {q["id"] for q in bare}
  assert len({json.dumps(q | {"id": ""}) for q in bare}) == 1
  # They are neither first nor last.
  order = [q["id"] in AUDITS for q in shown]
  assert order != sorted(order)
  # Nor do the answers tell.
  results = send(page, *(answer(q["id"]) for q in bare))
  assert len({json.dumps(r | {"n": 0}) for r in results}) == 1
  batch = page.get("state").json()["batch"]
  assert batch["counts"] == {"cat": len(bare)}
  found = page.get("answered").json()["images"]
  assert len({json.dumps(entry | {"id": ""}) for entry in found}) == 1


@pytest.mark.parametrize(("picks", "audits"), [(0, 3), (1, 3), (8, 0), (3, 9)])
def test_most_questions_keep_their_suggestion(picks, audits):
  asked = [Question(f"p{i}", 0, "cat", 0.5, "r") for i in range(picks)]
  asked += [Question(f"a{i}", 0, "cat", purpose="audit") for i in range(audits)]
  shown = for_page(asked)
  assert sorted(q.id for q in shown) == sorted(q.id for q in asked)
  hidden = [q for q in shown if not q.prediction]
  assert all(q.confidence is None and not q.reason for q in hidden)
  others = len(hidden) - audits
  assert others == min((audits + 1) // 2, picks // 2)
  assert for_page(asked) == shown


def test_every_method_has_a_reason_in_words():
  assert {*reasons.SENTENCES} == {*ACQUISITIONS}
  words = reasons.in_words("uherding: score 178.8; class 3 was due")
  assert words == reasons.SENTENCES["uherding"]
  assert reasons.in_words("margin rank 1 of 30").endswith("two classes.")
  assert reasons.in_words("") == ""
  assert reasons.in_words("new_method 3") == "new_method 3"


def test_a_page_that_knows_the_state_is_told_no_more(page):
  first = page.get("state").json()
  same = page.get("state", params={"version": first["version"]}).json()
  assert "batch" not in same
  send(page, answer(PICKS[0]))
  changed = page.get("state", params={"version": first["version"]}).json()
  assert changed["open"] == first["open"] - 1
  assert changed["batch"]["answered"] == 1


# --- What is recorded


def test_an_answer_is_on_the_disk_when_it_is_acknowledged(page, workdir):
  assert send(page, answer(AUDITS[0], "dog"))[0]["ok"]
  (event,) = answers.read(workdir)
  assert (event.kind, event.id, event.label) == ("answer", AUDITS[0], "dog")
  assert (event.source, event.round_, event.purpose) == ("page", 0, "audit")
  assert questions(page)[AUDITS[0]]["answer"] == {"label": "dog"}
  # Another server over the same workdir knows it.
  again = client(Desk(Board(str(workdir))))
  assert questions(again)[AUDITS[0]]["answer"] == {"label": "dog"}


def test_undo_correct_cannot_tell_and_none_of_these(page, workdir):
  one, two, three = PICKS[:3]
  send(page, answer(one), {"op": "undo", "id": one})
  assert questions(page)[one]["answer"] is None
  send(page, answer(one, "dog"), answer(one, "cow"))
  assert questions(page)[one]["answer"] == {"label": "cow"}
  send(page, {"op": "undo", "id": one})  # The answer before counts again.
  assert questions(page)[one]["answer"] == {"label": "dog"}
  send(page, {"op": "answer", "id": two, "kind": "cannot_tell"})
  send(page, {"op": "answer", "id": three, "kind": "unusable"})
  assert questions(page)[two]["answer"] == {"kind": "cannot_tell"}
  assert kinds(workdir) == [
    *("answer", "withdrawn", "answer", "correction", "withdrawn"),
    *("cannot_tell", "unusable"),
  ]
  found = page.get("answered", params={"class": "unusable"}).json()
  assert found == {
    "total": 1,
    "images": [{"id": three, "round": 0, "kind": "unusable"}],
  }
  assert page.get("answered").json()["images"][0]["id"] == three


def test_the_same_answer_again_adds_nothing(page, workdir):
  send(page, answer(PICKS[0]), answer(PICKS[0]))
  assert kinds(workdir) == ["answer"]


def test_a_class_that_is_added_can_be_chosen(page, workdir):
  added, chosen = send(
    page, {"op": "class", "name": " wild  goat"}, answer(PICKS[0], "wild goat")
  )
  assert added["ok"]
  assert chosen["ok"]
  batch = page.get("state").json()["batch"]
  assert batch["classes"] == [*CLASSES, "wild goat"]
  assert batch["counts"] == {"wild goat": 1}
  assert folding.known_in(workdir).added == ("wild goat",)


def test_two_tabs_are_both_recorded_and_the_later_one_is_told(page, workdir):
  first = send(page, answer(PICKS[0], seen=None), tab="one")
  second = send(page, answer(PICKS[0], "dog", seen=None), tab="two")
  assert first[0]["note"] == ""
  assert "another page had answered 'cat'" in second[0]["note"]
  assert kinds(workdir) == ["answer", "correction"]
  send(page, {"op": "undo", "id": PICKS[0]}, tab="one")
  send(page, {"op": "undo", "id": PICKS[0]}, tab="one")
  (third,) = send(page, answer(PICKS[0], seen={"label": "dog"}), tab="two")
  assert "taken the earlier answer back" in third["note"]
  known = {"label": "cat"}
  assert send(page, answer(PICKS[0], "cow", seen=known))[0]["note"] == ""


def test_a_request_that_is_sent_again_does_nothing_twice(page, workdir):
  send(page, answer(PICKS[0]), answer(PICKS[0], "dog"))
  body = {"tab": "t", "operations": [{"n": 7, "op": "undo", "id": PICKS[0]}]}
  for _ in range(2):
    reply = page.post("record", json=body).json()
    assert reply["results"] == [{"ok": True, "note": "", "n": 7}]
  assert kinds(workdir) == ["answer", "correction", "withdrawn"]


def test_answers_of_other_processes_are_seen(page, workdir):
  send(page, answer(PICKS[0]))
  event = events.Event("answer", events.now(), "x", 0, PICKS[1], "dog")
  answers.append(workdir, [event])
  assert questions(page)[PICKS[1]]["answer"] == {"label": "dog"}
  # The same file with less in it, as if it were restored from a copy.
  lines = (workdir / answers.FILE).read_bytes().splitlines(keepends=True)
  (workdir / answers.FILE).write_bytes(lines[0])
  assert questions(page)[PICKS[1]]["answer"] is None


def test_an_answer_that_cannot_be_written_is_not_acknowledged(page, workdir):
  (workdir / answers.FILE).mkdir()
  body = {"tab": "t", "operations": [{"n": 0, **answer(PICKS[0])}]}
  reply = page.post("record", json=body)
  assert reply.status_code in (500, 507)
  assert answers.FILE in reply.json()["error"]
  (workdir / answers.FILE).rmdir()
  # Sent again, it is taken.
  assert page.post("record", json=body).json()["results"][0]["ok"]
  assert kinds(workdir) == ["answer"]


def test_a_thousand_keys_at_once(page, workdir):
  """Each in a request of its own, from eight tabs."""
  ids = [*PICKS, *AUDITS]

  def press(number):
    label = CLASSES[number % 3]
    (result,) = send(page, answer(ids[number % 11], label), tab=str(number % 8))
    return result["ok"] or result

  start = time.monotonic()
  with concurrent.futures.ThreadPoolExecutor(8) as people:
    assert list(people.map(press, range(1000))) == [True] * 1000
  assert time.monotonic() - start < 60
  standing = folding.known_in(workdir).standing
  assert {*standing} == {*ids}
  assert page.get("state").json()["open"] == 0


# --- Many at a time


def test_the_grid_leaves_out_what_is_asked_and_what_is_known(page, workdir):
  def grid(label, **more):
    return page.get("grid", params={"class": label, **more}).json()

  found = grid("cat")
  ids = [entry["id"] for entry in found["images"]]
  # Every third image is predicted as the first class.
  all_cats = {f"im {i:02}.png" for i in range(0, 30, 3)}
  assert {*ids} == all_cats - {*PICKS, *AUDITS}
  confidence = [entry["confidence"] for entry in found["images"]]
  assert confidence == sorted(confidence, reverse=True)
  page_two = grid("cat", offset=2, count=1)
  assert page_two["total"] == len(ids)
  assert [entry["id"] for entry in page_two["images"]] == [ids[2]]
  assert grid("elephant") == {"total": 0, "images": []}

  confirmed = [answer(i, grid=True, seen=None) for i in ids[:3]]
  assert all(result["ok"] for result in send(page, *confirmed))
  assert kinds(workdir) == ["given"] * 3
  assert [entry["id"] for entry in grid("cat")["images"]] == ids[3:]
  # What is being asked about has to be answered as a question.
  (refused,) = send(page, answer(AUDITS[0], grid=True))
  assert "is being asked about now" in refused["error"]
  # A label that is confirmed may be corrected.
  send(page, answer(ids[0], "dog"))
  assert kinds(workdir)[-1] == "correction"


def test_a_label_beside_a_prediction_answers_no_audit(page, workdir):
  event = events.Event("given", events.now(), "page", -1, AUDITS[0], "cat")
  answers.append(workdir, [event])
  assert questions(page)[AUDITS[0]]["answer"] is None
  send(page, answer(AUDITS[0], "cat"))
  assert questions(page)[AUDITS[0]]["answer"] == {"label": "cat"}
  assert answers.read(workdir)[-1].purpose == "audit"


def test_labels_of_the_data_set_count_unless_all_have_one(tmp_path):
  for name, first in (("some", 25), ("all", 0)):
    (tmp_path / name).mkdir()
    workdir = page_workdir.make(
      tmp_path / name, label=lambda i, first=first: "cow" if i >= first else ""
    )
    page = client(Desk(Board(str(workdir))))
    counts = page.get("state").json()["batch"]["counts"]
    total = page.get("grid?class=cat").json()["total"]
    assert (counts, total) == (({"cow": 5}, 5) if first else ({}, 6))


# --- Rounds


def test_an_answer_of_an_earlier_round_that_is_taken_back_is_asked_again(
  tmp_path,
):
  workdir = page_workdir.make(tmp_path)
  page = client(Desk(Board(str(workdir))))
  send(page, *(answer(i) for i in (*PICKS, *AUDITS)))
  ids = [f"im {i:02}.png" for i in range(30)]
  page_workdir.select(workdir, 1, ids, ids[10:14], ["im 25.png"])
  assert page.get("state").json()["batch"]["round"] == 1
  assert len(questions(page)) == 5
  send(page, {"op": "undo", "id": PICKS[2]})
  first, *rest = questions(page)
  assert first == PICKS[2]
  assert len(rest) == 5
  send(page, answer(PICKS[2], "cow"))
  assert answers.read(workdir)[-1].round_ == 0
  assert len(questions(page)) == 5


def test_the_estimate_is_shown_where_there_is_one(page, workdir):
  def estimate():
    return page.get("state").json()["batch"]["estimate"]

  path = markers.round_dir(workdir, 0) / "estimate.json"
  assert estimate() is None
  for text in ("", "[]", "{", '{"accuracy": "high"}', '{"accuracy": [1]}'):
    path.write_text(text)
    assert estimate() is None
  path.write_text(json.dumps({"accuracy": 0.9, "low": 0.8, "audits": 60}))
  assert estimate() == {
    "round": 0,
    "accuracy": 0.9,
    "low": 0.8,
    "high": None,
    "audits": 60.0,
    "certified_share": None,
    "sentence": "",
  }


def test_the_run_tells_what_it_does_and_how_it_ended(desk, page):
  desk.hear({"phase": "working"})
  desk.hear({"stage": "encode", "done": 3, "total": 9, "unit": "images"})
  state = page.get("state").json()
  assert state["phase"] == "working"
  assert state["progress"]["done"] == 3
  desk.hear({"stage": "encode", "done": 9, "total": 9, "unit": "images"})
  assert page.get("state").json()["progress"] == {}
  # The page says that the first training takes longer.
  fit = {"stage": "fit round 0", "total": 9, "unit": "steps"}
  desk.hear({**fit, "done": 3})
  assert not page.get("state").json()["trained"]
  desk.hear({**fit, "done": 9})
  assert page.get("state").json()["trained"]
  desk.hear({"ended": "All is saved.", "heading": "Stopped"})
  assert desk.waits()  # The page that is open has to hear of it.
  state = page.get("state").json()
  assert (state["ended"], state["heading"]) == ("All is saved.", "Stopped")
  assert not desk.waits()
