"""The documentation as a site: it builds, its links lead somewhere, it is true.

`tests/test_doc_blocks.py` runs the code on its pages.
"""

import ast
import functools
import html.parser
import importlib.util
import json
import re
import subprocess
import sys
import urllib.parse

import pytest
from doc_blocks import ROOT, pages

from cpeal_jax import acquisition, config

DOCS = ROOT / "docs"
RESULTS = (DOCS / "results.md").read_text()
# Stands in a quoted message for what differs from case to case.
GAP = "…"


class Found(html.parser.HTMLParser):
  """What a page has: ids, links, and what a browser loads by itself."""

  def __init__(self, text):
    super().__init__()
    self.ids, self.links, self.loaded = set(), [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    named = dict(attrs)
    self.ids |= {named[name] for name in ("id", "name") if named.get(name)}
    if tag == "a" and named.get("href"):
      self.links.append(named["href"])
    if tag in ("img", "script", "iframe", "source") and named.get("src"):
      self.loaded.append(named["src"])
    if tag == "link" and named.get("rel") not in ("index", "search", "next"):
      self.loaded.append(named["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """The built site; a warning is an error."""
  folder = tmp_path_factory.mktemp("site")
  done = subprocess.run(
    [
      *(sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"),
      *("-d", str(folder / "trees"), str(DOCS), str(folder / "html")),
    ],
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return folder / "html"


@pytest.fixture(scope="module")
def found(site):
  return {
    path: Found(path.read_text()) for path in sorted(site.rglob("*.html"))
  }


@pytest.mark.slow
def test_every_page_is_built_and_can_be_reached(site, found):
  sources = [page for page in pages() if page.startswith("docs/")]
  built = {site / page.removeprefix("docs/") for page in sources}
  notebooks = DOCS.glob("notebooks/*.ipynb")
  built |= {site / path.relative_to(DOCS) for path in notebooks}
  built = {path.with_suffix(".html") for path in built}
  assert built <= {*found}
  start = site / "index.html"
  # Pages in the menu of the first page, and those in theirs.
  reached, left = set(), [start]
  while left:
    page = left.pop()
    if page not in reached:
      reached.add(page)
      links = [link.partition("#")[0] for link in found[page].links]
      left += [
        (page.parent / link).resolve()
        for link in links
        if link.endswith(".html") and "://" not in link
      ]
  assert built <= reached


@pytest.mark.slow
def test_links_lead_to_pages_and_places(site, found):
  for page, has in found.items():
    for link in [*has.links, *has.loaded]:
      parts = urllib.parse.urlsplit(link)
      if parts.scheme or link == "#":
        continue
      target = page
      if parts.path:
        target = (page.parent / urllib.parse.unquote(parts.path)).resolve()
      assert target.is_file(), f"{page.name}: {link}"
      place = urllib.parse.unquote(parts.fragment)
      if place and target in found:
        assert place in found[target].ids, f"{page.name}: {link}"


@pytest.mark.slow
def test_names_of_pages_in_the_text_are_links(site, found):
  pattern = re.compile(r'<span class="pre">(?:docs/|\.\./)?([\w-]+)\.md</span>')
  for page in found:
    for name in pattern.findall(page.read_text()):
      assert name == page.stem or not (DOCS / f"{name}.md").exists(), page


@pytest.mark.slow
def test_nothing_is_loaded_from_another_address(site, found):
  for page, has in found.items():
    assert len(has.loaded) > 3, page
    for address in has.loaded:
      # The picture of a notebook's output is in the page.
      if address.startswith("data:image/png;base64,"):
        continue
      assert "//" not in address, f"{page.name}: {address}"
  for path in site.rglob("*.css"):
    for address in re.findall(
      r"url\(([^)]*)\)|@import ([^;]*)", path.read_text()
    ):
      assert "//" not in "".join(address).replace("http://www.w3.org/", "")


@pytest.mark.slow
def test_equations_settings_and_the_api_are_there(site, found):
  methods = (site / "api" / "methods.html").read_text()
  assert methods.count("<math") > 5
  assert "$" not in re.sub(r"<script.*?</script>|<pre>.*?</pre>", "", methods)
  for name in acquisition.ACQUISITIONS:
    assert f'id="{name.replace("_", "-")}"' in methods, name
  ids = found[site / "settings.html"].ids
  assert {f"confval-{key.name}" for key in config.KEYS} <= ids
  for module in ("losses", "metrics"):
    public = ast.parse((ROOT / "cpeal_jax" / f"{module}.py").read_text())
    names = {
      f"cpeal_jax.{module}.{node.name}"
      for node in public.body
      if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    assert names <= found[site / "api" / f"{module}.html"].ids


# --- What the pages say


@functools.cache
def messages():
  """Every text in the package, with `GAP` where a value is put in."""
  found = set()
  for path in (ROOT / "cpeal_jax").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      found |= {*_texts(node)}
  return found


def _texts(node):
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    yield node.value
  elif isinstance(node, ast.JoinedStr):
    yield "".join(
      part.value if isinstance(part, ast.Constant) else GAP
      for part in node.values
    )


def test_quoted_messages_are_those_of_the_code():
  page = (DOCS / "faq.md").read_text().partition("## Messages")[2]
  quoted = re.findall(r"^> `(.*)`$", page, re.M)
  assert len(quoted) > 20
  for message in quoted:
    # A gap in the page stands for any text, one or several values.
    pattern = ".*".join(map(re.escape, message.split(GAP)))
    assert len(message.replace(GAP, "").split()) > 2, message
    assert any(re.search(pattern, text, re.S) for text in messages()), message


def table(text, first):
  """Rows of the table whose head begins with `first`, as lists of cells."""
  lines = text[text.index(f"| {first} |") :].splitlines()
  rows = []
  for line in lines:
    if not line.startswith("|"):
      break
    rows.append([cell.strip() for cell in line.strip("|").split("|")])
  return rows[2:]


def measured(heading):
  """The rows of a table of `results.md` by method, on the anchored head."""
  section = RESULTS.partition(f"\n### {heading}\n")[2]
  rows = {row[1]: row for row in table(section, "adapter")}
  assert len(rows) == 12, heading
  return rows


def test_the_table_of_methods_is_that_of_the_results():
  page = (DOCS / "choose-a-method.md").read_text()
  rows = table(page, "method")
  sets = [
    measured(name)
    for name in (
      *("EuroSAT", "EuroSAT with a long tail, 20 to 1"),
      *("Digits", "CIFAR-10"),
    )
  ]
  assert {row[0] for row in rows} == {*sets[0]} - {"random"}
  for method, *cells, _ in rows:
    for cell, results in zip(cells, sets, strict=True):
      difference = results[method][4].split()[0]
      p = float(results[method][5])
      want = f"**{difference}**" if p < 0.05 else difference
      assert cell == want, (method, results[method])


def test_what_to_train_is_that_of_the_results():
  page = (DOCS / "choose-a-method.md").read_text()
  eurosat = measured("EuroSAT")
  appendix = (DOCS / "results-appendix.md").read_text()
  by_labels = {
    row[0]: row for row in table(RESULTS, "adapter, labels | 10 | 20")
  }
  held = {
    (row[0], row[1]): row
    for row in table(RESULTS, "set | method | mean | difference [95 %]")
  }
  lora = {row[0]: row for row in table(appendix, "labels | 0 | 10")}
  logistic = table(RESULTS, "set | method | logistic regression: mean")[0]
  want = {
    "anchored head, uherding": eurosat["uherding margin"][6:9:2],
    "anchored head, random": eurosat["random"][6:9:2],
    "prompts with": held["EuroSAT", "uherding margin"][5:8:2],
    "prompts, random": by_labels["prompts, random, 10 seeds"][1::9],
    "LoRA with": by_labels["LoRA+anchor, uherding margin, 5 seeds"][1::9],
    "LoRA, random": [x.split()[0] for x in lora["lora random"][2::9]],
    "logistic": logistic[3:5],
  }
  rows = table(page, "what is trained")
  assert len(rows) == len(want)
  for row in rows:
    name = row[0].replace("uncertainty herding", "uherding")
    (numbers,) = [want[start] for start in want if name.startswith(start)]
    assert row[2:4] == numbers, row


@pytest.mark.parametrize(
  "page", ["choose-a-method.md", "papers.md", "calibration.md", "index.md"]
)
def test_numbers_stand_in_the_records(page):
  records = RESULTS + (DOCS / "results-appendix.md").read_text()
  records += (DOCS / "own-images.md").read_text()
  known = {*re.findall(r"\d*\.\d+", records)}
  text = re.sub(r"```.*?```", "", (DOCS / page).read_text(), flags=re.S)
  # Papers, levels and the arguments of commands are no results.
  text = re.sub(r"arxiv.org/abs/[\d.]+|(arXiv |p < |\[)[\d.]+", "", text)
  text = re.sub(r"`[^`]*`|(share|least) 0\.\d+", "", text)
  found = {*re.findall(r"(?<![\d.])\d*\.\d+(?![\d.])", text)}
  assert found <= known, found - known


def test_the_picture_shows_the_numbers_of_the_results():
  path = DOCS / "images" / "learning_curve.py"
  spec = importlib.util.spec_from_file_location("learning_curve", path)
  curve = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(curve)
  picture = (DOCS / "images" / "learning-curve.svg").read_text()
  (shown,) = re.findall(r"<dc:description>(.*?)</dc:description>", picture)
  assert json.loads(html.unescape(shown)) == curve.numbers(RESULTS)


@pytest.mark.parametrize("page", ["README.md", *pages()])
def test_files_that_are_named_exist(page):
  text = (ROOT / page).read_text()
  folders = "benchmarks|configs|cpeal_jax|docs|experiments|launch|tests"
  for name in re.findall(rf"`((?:{folders})/[\w/.-]+)`", text):
    # NAME stands for any name, and one file is OpenCLIP's.
    if "NAME" not in name and name != "docs/model_profile.csv":
      assert (ROOT / name.rstrip("/.")).exists(), f"{page}: {name}"
  # Links, read in a checkout; within the site Sphinx looks at them.
  folder = (ROOT / page).parent
  text = re.sub(r"```.*?```", "", text, flags=re.S)
  for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
    if "://" not in link:
      assert (folder / link).exists(), f"{page}: {link}"
