"""What others read about the project agrees with the project."""

import re
import tomllib

import pytest
import yaml
from doc_blocks import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CI = (ROOT / ".ci" / "run").read_text()


def read(path):
  return yaml.safe_load((ROOT / path).read_text())


def test_the_citation_is_of_this_version():
  citation = read("CITATION.cff")
  required = {"cff-version", "message", "title", "authors"}
  assert required <= {*citation}
  assert str(citation["version"]) == PROJECT["version"]
  assert citation["license"] == PROJECT["license"]
  assert citation["repository-code"] == PROJECT["urls"]["Repository"]


def test_the_changelog_has_this_version():
  text = (ROOT / "CHANGELOG.md").read_text()
  versions = re.findall(r"^## (\d+\.\d+\.\d+)", text, re.M)
  assert PROJECT["version"] in versions
  assert versions == sorted(versions, reverse=True)


def test_pre_commit_runs_what_ci_lints():
  ((hooks,),) = [[x["hooks"]] for x in read(".pre-commit-config.yaml")["repos"]]
  lint = re.search(r"^lint\(\) \{\n(.*?)^\}", CI, re.M | re.S)[1]
  run = [line.strip(" &\\") for line in lint.splitlines()]
  run = [
    line.removeprefix(".venv/bin/").split(" --pythonpath")[0] for line in run
  ]
  assert [hook["entry"] for hook in hooks] == run


def test_the_public_ci_runs_the_same_command():
  (job,) = read(".github/workflows/ci.yml")["jobs"].values()
  steps = [step.get("run", step.get("uses")) for step in job["steps"]]
  assert "bash .ci/run" in steps
  (python,) = [
    step["with"]["python-version"]
    for step in job["steps"]
    if step.get("uses", "").startswith("actions/setup-python")
  ]
  # The last is the default, and its suite is the whole one.
  assert python.split()[-1] == "3.11"
  for minor in python.split():
    assert (
      f"Programming Language :: Python :: {minor}" in PROJECT["classifiers"]
    )
  (site,) = [step for step in steps if "sphinx" in step]
  assert " -W " in site


@pytest.mark.parametrize("name", ["bug", "request"])
def test_issue_forms_have_what_github_asks_for(name):
  form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
  assert {"name", "description", "body"} <= {*form}
  ids = [field["id"] for field in form["body"]]
  assert len(ids) == len({*ids})
  for field in form["body"]:
    assert field["type"] in ("checkboxes", "dropdown", "input", "textarea")
    assert field["attributes"]["label"]


def test_the_classifiers_are_the_versions_that_are_allowed():
  low, high = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
  named = [
    int(text.rpartition(".")[2])
    for text in PROJECT["classifiers"]
    if re.search(r":: 3\.\d+$", text)
  ]
  assert named == [*range(int(low), int(high))]
