"""`cpeal report --watch`: a report that follows runs."""

import shutil

import made_runs
import pytest

from cpeal_jax.errors import InputError
from cpeal_jax.report import bundle, command, watching


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  """A cache with the JavaScript, which takes seconds to make."""
  folder = tmp_path_factory.mktemp("cache")
  bundle.bundle(folder)
  return folder


class Time:
  """A sleep in which a run goes on: at each call the next thing happens."""

  def __init__(self, *happenings):
    self.happenings = [*happenings]

  def __call__(self, seconds):
    assert seconds == watching.EVERY
    self.happenings.pop(0)()


def goes_on(folder, rounds):
  def happen():
    shutil.rmtree(folder, ignore_errors=True)
    made_runs.make(folder, rounds=rounds, planned=3)

  return happen


def nothing():
  pass


def test_a_report_is_written_after_each_round_until_the_run_is_over(
  tmp_path, cache, monkeypatch, capsys
):
  runs = tmp_path / "runs"
  page = tmp_path / "page.html"
  pages = []

  def looks():
    pages.append(page.read_text())

  clock = Time(
    nothing,
    goes_on(runs / "a", 1),
    looks,
    goes_on(runs / "a", 2),
    looks,
    goes_on(runs / "a", 3),
  )
  follow = watching.follow
  monkeypatch.setattr(
    watching, "follow", lambda *args: follow(*args, sleep=clock)
  )
  written = command.report(
    [str(runs)],
    to=str(page),
    changes=[f"--config.cache_dir={cache}"],
    watch=True,
  )
  assert written == [page, tmp_path / "page_files"]
  assert not clock.happenings
  said = capsys.readouterr()
  assert (said.out + said.err).count("waiting for the first") == 1
  assert len({*pages}) == 2
  # A browser loads the page again while the run goes on, and then no more.
  assert all(command.RELOAD in text for text in pages)
  assert command.RELOAD not in page.read_text()
  assert command.MARK in page.read_text()


def test_a_page_is_written_only_when_there_is_something_new(tmp_path):
  made_runs.make(tmp_path / "a", rounds=1, planned=3)
  writes = []
  clock = Time(nothing, nothing, goes_on(tmp_path / "a", 3))
  watching.follow([str(tmp_path)], writes.append, sleep=clock)
  assert writes == [[str(tmp_path)]] * 2


def test_a_run_that_a_person_labels_for_is_never_over(tmp_path):
  made_runs.make(tmp_path / "a", rounds=3, oracle__kind="page")
  now = watching.state([str(tmp_path / "a")])
  assert now.rounds == {str(tmp_path / "a"): 3}
  assert not now.is_over


def test_ctrl_c_ends_the_watch_and_leaves_the_page(
  tmp_path, cache, monkeypatch
):
  made_runs.make(tmp_path / "a", rounds=1, planned=3)

  def interrupted(_):
    raise KeyboardInterrupt

  follow = watching.follow
  monkeypatch.setattr(
    watching, "follow", lambda *args: follow(*args, sleep=interrupted)
  )
  page, _ = command.report(
    [str(tmp_path / "a")], changes=[f"--config.cache_dir={cache}"], watch=True
  )
  assert command.RELOAD not in page.read_text()


def test_a_file_is_not_watched(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(InputError, match="is a file; give the workdir"):
    command.report([str(tmp_path / "notes.txt")], watch=True)
