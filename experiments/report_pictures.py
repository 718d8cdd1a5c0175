"""Takes the pictures of a report that the documents show.

  python experiments/report_pictures.py --to=docs/images [--runs=DIR]

It sweeps three methods with five seeds over the embedded digits (into DIR,
where what is finished is not run again), and looks at the report in Chromium,
which the system must have.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402

from cpeal_jax.report.command import report  # noqa: E402

WORDS = (
  "--configs=quickstart:anchored",
  "--methods=random,uherding,entropy",
  "--seeds=1-5",
  "--no_report",
)
WIDTH, MARGIN = 920, 16


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--to", required=True)
  parser.add_argument("--runs", default="")
  options = parser.parse_args()
  to = Path(options.to)
  to.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as folder:
    runs = options.runs or f"{folder}/runs"
    sweep = str(ROOT / "launch" / "sweep.py")
    subprocess.run([sys.executable, sweep, *WORDS, f"--out={runs}"], check=True)
    page = Path(folder) / "report.html"
    report([runs], to=str(page))
    with sync_playwright() as play:
      browser = play.chromium.launch(
        executable_path=shutil.which("chromium"), args=["--no-sandbox"]
      )
      window = browser.new_page(viewport={"width": WIDTH, "height": 800})
      window.goto(page.as_uri())
      window.wait_for_selector("body[data-drawn]")
      shoot(window, "body", "#chart-curves", to / "report-curves.png")
      window.set_viewport_size({"width": 620, "height": 800})
      window.wait_for_timeout(500)
      figures = "figure:has(#chart-{})"
      shoot(
        window,
        figures.format("reliability"),
        figures.format("counts"),
        to / "report-reliability.png",
      )
      window.set_viewport_size({"width": WIDTH, "height": 800})
      window.wait_for_timeout(500)
      shoot(
        window,
        figures.format("map"),
        "#bought .thumbs >> nth=0",
        to / "report-bought.png",
      )
      browser.close()


def shoot(window: Page, first: str, last: str, path: Path):
  """Takes a picture from the top of one element to the end of another."""
  window.evaluate("scrollTo(0, 0)")
  top, end = (
    window.locator(name).first.bounding_box() for name in (first, last)
  )
  assert top
  assert end
  start = max(0, top["y"] - MARGIN)
  window.screenshot(
    path=path,
    full_page=True,
    clip={
      "x": 0,
      "y": start,
      "width": window.evaluate("innerWidth"),
      "height": end["y"] + end["height"] + MARGIN - start,
    },
  )
  # A table of colors takes a third of the room.
  with Image.open(path) as picture:
    small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
  small.save(path, optimize=True)
  print(path, path.stat().st_size)


if __name__ == "__main__":
  main()
