"""The labeling page in a real browser: its keyboard, its pixels, and kills.

The browser is the system's Chromium, without a display. Requests to any other
address than the page's are refused and counted.
"""

import json
import shutil
import threading
import time

import page_workdir
import pytest
import uvicorn
from page_person import Label, truth
from page_workdir import AUDITS, PICKS

from cpeal_jax.errors import percent
from cpeal_jax.labeling import events, folding
from cpeal_jax.labeling.page import app as apps
from cpeal_jax.labeling.page import server
from cpeal_jax.labeling.page.board import Board
from cpeal_jax.labeling.page.desk import Desk
from cpeal_jax.storage import record

sync_api = pytest.importorskip(
  "playwright.sync_api",
  reason="the labeling page in Chromium is left out: no playwright here",
)
CHROMIUM = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None
)
pytestmark = [
  pytest.mark.skipif(
    CHROMIUM is None,
    reason="the labeling page in Chromium is left out: no chromium here",
  ),
  pytest.mark.slow,
]
NAMES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KEY = {name: str(number) for number, name in enumerate(NAMES, start=1)}
KEY |= {"zero": "0"}


@pytest.fixture(scope="module")
def browser():
  with sync_api.sync_playwright() as play:
    # As root, Chromium has no sandbox. The page is ours.
    words = ["--no-sandbox", "--disable-gpu"]
    browser = play.chromium.launch(executable_path=CHROMIUM, args=words)
    yield browser
    browser.close()


class Window:
  """The page in a window, and what must not happen there."""

  def __init__(self, browser, address, **how):
    how.setdefault("viewport", {"width": 1100, "height": 760})
    self.context = browser.new_context(**how)
    self.page = self.context.new_page()
    self.faults = []
    self.page.on("pageerror", lambda error: self.faults.append(str(error)))
    self.page.on("console", self._hear)
    self.context.route("**/*", self._guard)
    self.address = address
    self.page.goto(address)

  def _guard(self, route):
    if route.request.url.startswith(self.address):
      route.continue_()
    else:
      self.faults.append(f"outside: {route.request.url}")
      route.abort()

  def _hear(self, message):
    gone = "ERR_CONNECTION_REFUSED" in message.text
    if message.type == "error" and not gone and "404" not in message.text:
      self.faults.append(message.text)

  def text(self, name):
    return self.page.inner_text(f"#{name}")

  def wait(self, name="label", timeout=90_000):
    self.page.wait_for_selector(f"#{name}:not([hidden])", timeout=timeout)

  def shown(self):
    return self.text("caption")

  def press(self, key):
    self.page.keyboard.press(key)

  def wait_until(self, check, patience=60):
    end = time.monotonic() + patience
    while not (value := check()):
      assert time.monotonic() < end, self.page.inner_text("body")
      self.page.wait_for_timeout(20)
    return value

  def close(self):
    self.context.close()
    assert self.faults == []


def standing(workdir):
  return {
    id_: event.label or event.kind
    for id_, event in folding.known_in(workdir).standing.items()
  }


def test_twenty_by_keyboard_two_taken_back_and_a_kill(browser, tmp_path, env):
  words = ("--demo", "--no_browser")
  workdir = tmp_path / "runs/demo/run"
  with Label(*words, cwd=tmp_path, env=env) as run:
    window = Window(browser, run.address)
    window.wait("wait")  # Open while the rest is encoded.
    window.wait()
    labels = truth(tmp_path / "runs/demo/images")
    given = {}

    def label_one():
      id_ = window.shown()
      suggestion = window.page.evaluate(
        "document.querySelector('#accept').hidden ? '' :"
        " document.querySelector('#suggestion').textContent.split(',')[0]"
      )
      right = suggestion == labels[id_]
      window.press("Enter" if right else KEY[labels[id_]])
      given[id_] = labels[id_]
      return id_

    for _ in range(7):
      label_one()
    last, before = [*given][-1], [*given][-2]
    for id_ in (last, before):
      window.press("u")
      assert window.shown() == id_
      window.press("1")  # A wrong key, which is taken back again.
      window.press("u")
      window.wait_until(lambda id_=id_: window.shown() == id_)
      given.pop(id_)
    window.press("?")
    assert window.shown() == last
    window.press("s")
    given[before] = events.CANNOT_TELL
    for _ in range(3):
      label_one()
    assert window.shown() == last  # What was skipped comes at the end.
    label_one()
    # The next batch comes without leaving the page.
    window.wait_until(lambda: "Round 2" in window.text("where"))
    window.wait()
    for _ in range(9):
      label_one()
    window.press("n")
    window.wait_until(lambda: "Round 3" in window.text("where"))
    window.wait()
    given = standing(workdir)
    assert len(given) == 20
    assert [*given.values()].count(events.CANNOT_TELL) == 1
    assert [*given.values()].count(events.UNUSABLE) == 1
    # In the middle of the third batch all is killed.
    for _ in range(4):
      label_one()
    saved = given
    window.wait_until(lambda: len(standing(workdir)) == 24)
    window.wait_until(lambda: "24 of" in window.text("where"))
    assert window.faults == []
    run.kill()
    window.press("1")  # Nobody hears this one, and the page says so.
    window.wait_until(lambda: "1 not saved yet" in window.text("trouble"))
    window.context.close()
    # What was being loaded may be cut off.
    assert all("net::ERR" in fault for fault in window.faults)

  with Label(*words, cwd=tmp_path, env=env) as run:
    window = Window(browser, run.address)
    window.wait()
    assert standing(workdir).items() >= saved.items()
    assert len(standing(workdir)) == 24
    assert window.text("where").startswith("Round 3: 4 of 10")
    for _ in range(6):
      label_one()
    window.wait_until(lambda: "Round 4" in window.text("where"))
    window.page.click("#stop")
    window.page.click("#really-stop")
    window.wait_until(lambda: window.text("wait-title") == "Stopped")
    assert "cpeal predict runs/demo/run writes" in window.text("wait-text")
    window.close()
    assert run.end()[0] == 3
  for id_, label in standing(workdir).items():
    assert label in (labels[id_], events.CANNOT_TELL, events.UNUSABLE)
  assert record.finished_rounds(workdir) == 3


@pytest.fixture(scope="module")
def run(tmp_path_factory, env):
  cwd = tmp_path_factory.mktemp("run")
  with Label(
    "--demo", "--no_browser", "--config.budget=30", cwd=cwd, env=env
  ) as label:
    label.workdir = cwd / "runs/demo/run"
    yield label


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
def test_all_is_on_the_screen_and_readable(browser, run, scheme, width):
  size = {"width": width, "height": 760}
  window = Window(browser, run.address, viewport=size, color_scheme=scheme)
  window.wait()
  # Nothing is wider than the window.
  assert window.page.evaluate("document.body.scrollWidth") <= width
  for name in ("image", "accept", "classes", "skip", "undo", "unusable"):
    box = window.page.locator(f"#{name}").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
  image = window.page.locator("#image")
  window.wait_until(lambda: image.evaluate("i => i.naturalWidth") == 8)
  assert "tiny" in image.get_attribute("class")
  for name, least in (("where", 4.5), ("why", 4.5), ("question", 7)):
    assert contrast(window.page, f"#{name}") >= least, name
  for view in ("check", "answers", "label"):
    window.page.click(f"#view-{view}")
    window.wait(view)
    assert window.page.evaluate("document.body.scrollWidth") <= width
  window.close()


def contrast(page, selector):
  """The ratio of brightness of text and ground, as WCAG defines it."""
  colors = page.evaluate(
    """selector => {
      const draw = document.createElement("canvas").getContext("2d");
      const pixel = (color) => {
        draw.fillStyle = color;
        draw.fillRect(0, 0, 1, 1);
        return [...draw.getImageData(0, 0, 1, 1).data].slice(0, 3);
      };
      const text = getComputedStyle(document.querySelector(selector)).color;
      return [text, getComputedStyle(document.body).backgroundColor].map(pixel);
    }""",
    selector,
  )

  def luminance(rgb):
    parts = [x / 255 for x in rgb]
    linear = [
      x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

  light, dark = sorted(map(luminance, colors), reverse=True)
  return (light + 0.05) / (dark + 0.05)


def test_everything_has_a_name_for_a_screen_reader(browser, run):
  window = Window(browser, run.address)
  window.wait()
  nameless = window.page.evaluate(
    """() => [...document.querySelectorAll("button, input, select, img")]
      .filter((e) => e.checkVisibility())
      .filter((e) => !(e.textContent.trim() || e.getAttribute("aria-label")
        || e.alt || e.labels?.length))
      .map((e) => e.outerHTML)"""
  )
  assert nameless == []
  assert window.page.get_attribute("html", "lang") == "en"
  # What happens is said: the answer, how many are left, the next suggestion.
  assert window.page.get_attribute("#said", "aria-live") == "polite"
  window.press("4")
  window.wait_until(lambda: "Answered: four. " in window.text("said"))
  assert " left." in window.text("said")
  window.press("u")
  window.close()


def test_by_the_tab_key_alone(browser, run):
  """A class button keeps the focus from image to image."""
  window = Window(browser, run.address)
  window.wait()
  before = window.shown()
  for _ in range(40):
    window.press("Tab")
    focused = window.page.evaluate("document.activeElement.dataset.name")
    if focused == "three":
      break
  assert focused == "three"
  window.press("Enter")
  window.wait_until(lambda: window.shown() != before)
  assert window.page.evaluate("document.activeElement.dataset.name") == "three"
  window.wait_until(lambda: standing(run.workdir).get(before) == "three")
  # After a click, Enter accepts the suggestion and does not click again.
  window.page.click("#classes button >> nth=0")
  second = window.shown()
  suggestion = window.text("suggestion").split(",")[0]
  window.press("Enter")
  window.wait_until(lambda: standing(run.workdir).get(second) == suggestion)
  window.close()


def test_a_key_that_is_held_down_answers_once(browser, run):
  window = Window(browser, run.address)
  window.wait()
  count = len(standing(run.workdir))
  for _ in range(5):
    window.page.keyboard.down("2")
  window.page.keyboard.up("2")
  window.wait_until(lambda: len(standing(run.workdir)) == count + 1)
  window.page.wait_for_timeout(300)
  assert len(standing(run.workdir)) == count + 1
  window.close()


def test_two_windows(browser, run):
  one, two = (Window(browser, run.address) for _ in range(2))
  one.wait()
  two.wait()
  two.context.set_offline(True)  # So that it does not hear of the answer.
  id_ = one.shown()
  assert two.shown() == id_
  one.press("5")
  one.wait_until(lambda: standing(run.workdir).get(id_) == "five")
  two.press("6")
  two.context.set_offline(False)
  two.wait_until(lambda: "answered 'five'" in two.text("said"))
  assert standing(run.workdir)[id_] == "six"
  # Both go on with the same image.
  two.wait_until(lambda: one.shown() == two.shown())
  for window in (one, two):
    window.context.close()


def test_a_class_is_checked_at_a_glance_and_an_answer_is_corrected(
  browser, run
):
  window = Window(browser, run.address)
  window.wait()
  window.page.click("#view-check")
  window.page.select_option("#check-class", "three")
  first = window.page.locator("#check-images button").first
  window.wait_until(lambda: window.text("confirm").endswith(" as three"))
  # By the arrow keys and the space bar.
  window.page.focus("#check-class")
  first.focus()
  window.press("ArrowRight")
  window.press("Space")
  ids = window.page.eval_on_selector_all(
    "#check-images button", "buttons => buttons.map((b) => b.dataset.id)"
  )
  assert window.text("confirm") == f"Confirm {len(ids) - 1} as three"
  window.page.click("#confirm")
  window.wait_until(lambda: ids[0] in standing(run.workdir))
  window.wait_until(lambda: standing(run.workdir).get(ids[-1]) == "three")
  assert ids[1] not in standing(run.workdir)

  window.page.click("#view-answers")
  window.page.click(f"#answers-images button[data-id='{ids[0]}']")
  window.wait()
  assert window.text("question") == "Your answer was: three"
  window.press("8")
  window.wait_until(lambda: standing(run.workdir)[ids[0]] == "eight")
  # Back among the answers, for the next one.
  window.wait("answers")
  thumbnail = window.page.locator(f"#answers-images [data-id='{ids[0]}']")
  assert thumbnail.inner_text() == "eight"
  thumbnail.click()
  window.wait()
  assert window.text("question") == "Your answer was: eight"
  assert window.page.get_attribute("#view-answers", "aria-pressed") == "true"
  window.page.click("#cancel")
  window.wait("answers")
  assert standing(run.workdir)[ids[0]] == "eight"
  window.page.click("#view-label")
  assert window.text("question") == "What is this?"
  window.close()


def test_more_classes_than_digits_are_found_by_typing(browser, run):
  window = Window(browser, run.address)
  window.wait()
  window.page.click("summary")
  for name in ("snow leopard", "747-400"):
    window.page.fill("#name", name)
    window.page.click("#add button")
    window.wait_until(lambda name=name: name in window.text("classes"))
  window.page.mouse.click(5, 5)
  id_ = window.shown()
  count = len(standing(run.workdir))
  # Small letters are no commands now, and digits may be of a name.
  window.page.keyboard.type("sn")
  assert window.page.input_value("#filter") == "sn"
  window.press("Escape")
  window.page.keyboard.type("747")
  window.press("Enter")
  window.wait_until(lambda: standing(run.workdir).get(id_) == "747-400")
  assert len(standing(run.workdir)) == count + 1
  assert window.page.input_value("#filter") == ""
  # The second of those that match.
  id_ = window.shown()
  window.page.keyboard.type("ne")
  listed = window.text("classes").split("\n")
  window.press("ArrowDown")
  window.press("Enter")
  second = [name for name in listed if "ne" in name][1]
  window.wait_until(lambda: standing(run.workdir).get(id_) == second)
  id_ = window.shown()
  window.press("Shift+N")
  window.wait_until(lambda: standing(run.workdir).get(id_) == "unusable")
  window.press("Shift+U")
  window.wait_until(lambda: id_ not in standing(run.workdir))
  assert window.shown() == id_
  window.close()


def test_an_image_that_cannot_be_shown_says_so(browser, run):
  window = Window(browser, run.address)
  window.wait()
  # As if the disk had lost them. The next ones are there already.
  window.context.route(
    "**/image?**", lambda route: route.fulfill(status=404, body="")
  )
  for _ in range(8):
    window.page.click("#skip")
  window.wait("broken", timeout=5_000)
  window.close()


# --- On a workdir made by hand, while the test says what the run does


class Served:
  """A page without a run."""

  def __init__(self, folder):
    self.workdir = page_workdir.make(folder)
    self.desk = Desk(Board(str(self.workdir)), phase="asking")
    app = apps.make_app(self.desk, token="token")
    config = uvicorn.Config(app, log_level="critical", lifespan="off")
    listener = server.listen(0)
    self.address = f"http://127.0.0.1:{listener.getsockname()[1]}/token/"
    self.server = uvicorn.Server(config)
    self.thread = threading.Thread(target=self.server.run, args=([listener],))
    self.thread.start()

  def estimate(self, **numbers):
    path = record.round_dir(self.workdir, 0) / "estimate.json"
    path.write_text(json.dumps(numbers))

  def end(self):
    self.server.should_exit = True
    self.thread.join()


@pytest.fixture
def served(tmp_path):
  page = Served(tmp_path)
  yield page
  page.end()


def test_a_skip_and_an_answer_of_an_earlier_round_are_taken_back(
  browser, served
):
  window = Window(browser, served.address)
  window.wait()
  total = len(PICKS) + len(AUDITS)
  first = window.shown()
  window.press("s")
  assert window.shown() != first
  window.press("u")
  assert window.shown() == first
  assert window.text("said").startswith(f"Skip taken back. {total} left.")
  for _ in range(total):
    last = window.shown()
    window.press("2")
  window.wait_until(lambda: len(standing(served.workdir)) == total)
  ids = [f"im {i:02}.png" for i in range(page_workdir.POOL)]
  page_workdir.select(served.workdir, 1, ids, ids[10:14], ["im 25.png"])
  window.wait_until(lambda: "Round 2: 0 of 5" in window.text("where"))
  window.press("u")
  assert window.text("said") == "Taken back your answer of round 1. 6 left."
  # As many as are left, before the server says so and after.
  for _ in range(2):
    assert window.shown() == last
    assert "Round 2: 0 of 6" in window.text("where")
    window.wait_until(lambda: last not in standing(served.workdir))
    window.page.wait_for_timeout(500)
  window.close()


def test_the_page_writes_percents_as_the_commands_do(browser, served):
  window = Window(browser, served.address)
  window.wait()
  shares = [0.0, 0.0001, 0.004, 0.01, 0.485, 0.99, 0.995, 0.99999, 1.0]
  there = window.page.evaluate(
    """async (shares) => {
      const address = new URL("static/link.js", document.baseURI);
      const { percent } = await import(address);
      return shares.map((share) => `${percent(share)} %`);
    }""",
    shares,
  )
  assert there == [percent(share) for share in shares]


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_no_button_moves_and_the_estimate_is_in_sight(browser, served, size):
  numbers = {"accuracy": 0.693, "low": 0.487, "high": 0.8465, "audits": 29}
  served.estimate(**numbers, certified_share=0.0)
  size = dict(zip(("width", "height"), size, strict=True))
  window = Window(browser, served.address, viewport=size)
  window.wait()
  places, suggested = set(), set()
  for _ in range(len(PICKS) + len(AUDITS)):
    suggested.add(window.page.is_visible("#accept"))
    boxes = map(window.page.locator, ("#classes", "#undo"))
    places.add(tuple(box.bounding_box()["y"] for box in boxes))
    window.press("s")
  assert suggested == {True, False}
  assert len(places) == 1
  assert window.text("short") == "69 % right (49 to 85)"
  box = window.page.locator("#short").bounding_box()
  assert box["y"] + box["height"] < 200
  assert window.text("accuracy") == (
    "The model is right on 69 % (49 to 85 %, with 95 % confidence) of the "
    "images not picked for training, judged by 29 audits."
  )
  assert window.text("certified").startswith("About 0 % could be taken as")
  # No word touches the edge of its button.
  room = window.page.evaluate(
    """() => [...document.querySelectorAll("#others button")].map((button) => {
      const words = document.createRange();
      words.selectNodeContents(button);
      const right = button.getBoundingClientRect().right;
      return right - words.getBoundingClientRect().right;
    })"""
  )
  assert min(room) >= 10
  assert window.page.evaluate("document.body.scrollWidth") <= size["width"]
  window.close()


def test_what_the_run_does_is_said_in_words(browser, served):
  window = Window(browser, served.address)
  window.wait()
  certified = "197 of 1,939 predictions are certified so far"
  served.desk.hear({"certified": certified})
  window.wait_until(lambda: f" {certified}. " in window.text("where"))
  for _ in range(len(PICKS) + len(AUDITS)):
    window.press("1")
  window.wait_until(lambda: not served.desk.board.open_questions())
  served.desk.hear({"phase": "working"})
  first = "The first time takes up to a minute."
  window.wait_until(lambda: window.text("wait-text") == first)
  fit = {"stage": "fit round 0", "total": 9, "unit": "steps"}
  served.desk.hear({**fit, "done": 3})
  said = f"Training on your answers: 3 of 9 steps. {first}"
  window.wait_until(lambda: window.text("wait-text") == said)
  served.desk.hear({**fit, "done": 9})
  window.wait_until(lambda: window.text("wait-text") == "")
  images = {"done": 1, "total": 4, "unit": "images"}
  served.desk.hear({"stage": "encode train", **images})
  said = "Encoding the images: 1 of 4 images."
  window.wait_until(lambda: window.text("wait-text") == said)
  served.desk.hear({"stage": "another one", **images})
  said = "another one: 1 of 4 images."
  window.wait_until(lambda: window.text("wait-text") == said)
  window.page.click("#stop")
  window.page.click("#really-stop")
  assert window.text("said") == "Stopping."
  served.desk.hear({"ended": "All is saved.", "heading": "Stopped"})
  window.wait_until(lambda: window.text("wait-title") == "Stopped")
  assert window.text("wait-text") == "All is saved."
  assert window.text("said") == ""
  assert window.page.locator("header button:not(:disabled)").count() == 0
  window.close()
