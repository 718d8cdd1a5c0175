"""Takes the pictures of the labeling page that the documents show.

  python experiments/page_pictures.py --to=docs/images

It labels the demo for a round in Chromium, which the system must have.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from page_person import Label, truth  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

WIDE, NARROW = {"width": 960, "height": 640}, {"width": 360, "height": 720}
WORDS = ("--demo", "--no_browser", "--config.oracle.audit=4")


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--to", required=True)
  to = Path(parser.parse_args().to)
  to.mkdir(parents=True, exist_ok=True)
  with (
    tempfile.TemporaryDirectory() as folder,
    Label(*WORDS, cwd=folder) as run,
    sync_playwright() as play,
  ):
    person = run.person()
    for round_ in range(2):
      questions = person.open_questions(round_)
      labels = truth(Path(folder) / "runs/demo/images")
      for question in questions:
        person.answer(question["id"], labels[question["id"]])
    person.open_questions(2)
    browser = play.chromium.launch(
      executable_path=shutil.which("chromium"), args=["--no-sandbox"]
    )

    def shoot(name, size, scheme, act=lambda page: None):
      is_phone = size == NARROW
      window = browser.new_context(
        viewport=size,
        color_scheme=scheme,
        is_mobile=is_phone,
        has_touch=is_phone,
      )
      page = window.new_page()
      page.goto(run.address)
      page.wait_for_selector("#label:not([hidden])")
      act(page)
      page.wait_for_timeout(1000)
      page.screenshot(path=to / f"{name}.png")
      window.close()

    def suggested(page):
      """Skips to an image with a suggestion."""
      while page.is_hidden("#accept"):
        page.keyboard.press("s")

    def check(page):
      page.click("#view-check")
      page.select_option("#check-class", "three")
      page.wait_for_timeout(1000)
      page.locator("#check-images button").nth(2).click()

    shoot("page-light", WIDE, "light", suggested)
    shoot("page-dark", WIDE, "dark", suggested)
    shoot("page-phone", NARROW, "light", suggested)
    shoot("page-check", WIDE, "light", check)
    browser.close()


if __name__ == "__main__":
  main()
