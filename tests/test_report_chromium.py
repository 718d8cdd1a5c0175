"""The page of a report in a real browser: no error, no request, all in reach.

The browser is the system's Chromium, without a display.
"""

import shutil

import made_runs
import pytest

from cpeal_jax.report import command

sync_api = pytest.importorskip(
  "playwright.sync_api",
  reason="reports in Chromium are left out: no playwright here",
)
axe = pytest.importorskip(
  "axe_playwright_python.sync_playwright",
  reason="reports in Chromium are left out: no axe-playwright-python here",
)
CHROMIUM = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None
)
pytestmark = [
  pytest.mark.skipif(
    CHROMIUM is None,
    reason="reports in Chromium are left out: no chromium here",
  ),
  pytest.mark.slow,
]
CHARTS = {
  *("curves", "gaps", "reliability", "counts", "balance", "confusion"),
  *("classes", "time"),
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  """A report of two arms with three seeds."""
  folder = tmp_path_factory.mktemp("report")
  made_runs.sweep(folder / "runs", seeds=(1, 2, 3))
  made_runs.make(folder / "runs" / "unfinished", planned=9, seed=5)
  to = folder / "report.html"
  cache = f"--config.cache_dir={folder / 'cache'}"
  command.report([str(folder / "runs")], to=str(to), changes=[cache])
  return to


@pytest.fixture(scope="module")
def browser():
  with sync_api.sync_playwright() as play:
    # As root, Chromium has no sandbox. The page is ours.
    words = ["--no-sandbox", "--disable-gpu"]
    browser = play.chromium.launch(executable_path=CHROMIUM, args=words)
    yield browser
    browser.close()


@pytest.fixture
def shown(browser, page):
  """Opens the page in a window; ends with a check that nothing went wrong."""
  faults, contexts = [], []

  def show(width=1280, **how):
    context = browser.new_context(
      viewport={"width": width, "height": 900}, **how
    )
    contexts.append(context)
    window = context.new_page()
    window.on("pageerror", lambda error: faults.append(str(error)))
    window.on("console", lambda message: faults.append(message.text))
    window.on("request", lambda request: requests.append(request.url))
    window.goto(page.as_uri())
    window.wait_for_selector("body[data-drawn]")
    return window

  requests = []
  yield show
  for context in contexts:
    context.close()
  assert faults == []
  outside = [x for x in requests if not x.startswith(("data:", page.as_uri()))]
  assert outside == []


def marks(window, chart):
  """The shapes of a chart, as they are drawn."""
  return window.eval_on_selector_all(
    f"#chart-{chart} svg [d]", "all => all.map((one) => one.getAttribute('d'))"
  )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_every_chart_is_drawn_and_fits(shown, width, scheme):
  window = shown(width, color_scheme=scheme)
  names = window.eval_on_selector_all(
    "[data-chart]", "all => all.map((one) => one.dataset.chart)"
  )
  assert {*names} == CHARTS
  for name in names:
    assert marks(window, name), name
    box = window.locator(f"#chart-{name}").bounding_box()
    assert box["width"] > 250
    assert box["height"] > 40
    svg = window.locator(f"#chart-{name} svg").bounding_box()
    assert svg["width"] <= box["width"] + 1, name
  assert window.evaluate("document.documentElement.scrollWidth") <= width
  assert "unfinished" in window.inner_text(".warning")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(shown, scheme):
  window = shown(color_scheme=scheme)
  window.eval_on_selector_all("details", "all => all.map((x) => x.open = true)")
  found = axe.Axe().run(window).response["violations"]
  serious = [
    (violation["id"], [node["html"][:200] for node in violation["nodes"]])
    for violation in found
    if violation["impact"] in ("serious", "critical")
  ]
  assert serious == []


def test_controls_change_the_charts_of_their_section(shown):
  window = shown()
  curves, bins = marks(window, "curves"), marks(window, "reliability")
  metric = window.locator("select[data-section=curves]")
  metric.select_option(label="NLL (nats)")
  window.wait_for_timeout(200)
  nll = marks(window, "curves")
  assert nll != curves
  assert marks(window, "reliability") == bins
  window.uncheck("input[type=checkbox][value=margin]")
  window.wait_for_timeout(200)
  assert len(marks(window, "curves")) < len(nll)
  # By the keyboard alone: one round back.
  slider = window.locator("input[type=range][data-section=calibration]")
  slider.focus()
  assert slider.get_attribute("aria-valuetext") == "round 2"
  window.keyboard.press("ArrowLeft")
  window.wait_for_timeout(200)
  assert slider.get_attribute("aria-valuetext") == "round 1"
  assert marks(window, "reliability") != bins


def test_the_keyboard_reaches_everything(shown):
  window = shown()
  wanted = window.evaluate(
    """() => [...document.querySelectorAll(
      "a, select, input, summary, [tabindex='0']")]
      .filter((one) => one.checkVisibility()).length"""
  )
  reached = set()
  for _ in range(wanted + 5):
    window.keyboard.press("Tab")
    reached.add(
      window.evaluate(
        """() => {
          const one = document.activeElement;
          const all = [...document.querySelectorAll("*")];
          return one === document.body ? -1 : all.indexOf(one);
        }"""
      )
    )
  assert len(reached - {-1}) >= wanted


def test_paper_is_light_and_without_controls(shown):
  window = shown(color_scheme="dark")
  window.emulate_media(media="print", color_scheme="dark")
  assert not window.is_visible(".controls >> nth=0")
  assert window.is_visible("#chart-curves svg")
  window.wait_for_timeout(1000)
  color = window.evaluate("getComputedStyle(document.body).backgroundColor")
  assert color == "rgb(252, 252, 251)"
