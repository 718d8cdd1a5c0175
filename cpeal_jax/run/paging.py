"""Keeps the labeling page open while a run goes on, and says how it ended."""

import contextlib
import os
import shlex
from collections.abc import Iterator

import jax

from cpeal_jax import config as config_lib
from cpeal_jax import progress
from cpeal_jax.errors import InputError
from cpeal_jax.labeling.oracle import Waiting
from cpeal_jax.labeling.page.handle import Page
from cpeal_jax.run.fitting import Preempted
from cpeal_jax.storage import files, record
from cpeal_jax.storage import workdir as workdirs

SAVED = "All answers are saved."
# The page's headings for how a run ended.
STOPPED, DONE, ENDED = "Stopped", "Done", "The run has ended"


def next_steps(workdir: str | os.PathLike) -> str:
  """Returns what a person who stopped on the page can do next."""
  return f"To go on, run the same command again.{_predict(workdir)}"


def _predict(workdir: str | os.PathLike) -> str:
  """Returns how to predict, if the run has a model to predict with."""
  if not record.finished_rounds(workdir):
    return ""
  words = f"cpeal predict {shlex.quote(os.fspath(workdir))}"
  return f" `{words}` writes predictions for all images."


@contextlib.contextmanager
def for_certificate(config: config_lib.Config) -> Iterator[Page]:
  """Serves the page while questions for a certificate are asked.

  Raises:
    InputError: the port is taken.
  """
  page = Page(port=config.oracle.port, browser=config.oracle.browser)
  try:
    yield page
  finally:
    page.end(
      f"No more is asked for the certificate for now. {SAVED}",
      heading=STOPPED if page.stopped() else DONE,
    )


@contextlib.contextmanager
def opened(
  config: config_lib.Config,
  workdir: str | os.PathLike,
  page: Page | None = None,
) -> Iterator[Page | None]:
  """Holds the workdir and serves the page, if that is where a person answers.

  The workdir is held from the start, so that a second run is refused before it
  reads the images.

  Args:
    config: every setting of the run.
    workdir: of the run.
    page: a page that is open already; None opens one.

  Yields:
    The page; None if the run has none.

  Raises:
    InputError: the workdir is in use or in a bucket, there are several
      processes, or the port is taken.
    Waiting: the person asked on the page to stop.
  """
  if config.oracle.kind != "page":
    yield None
    return
  text, heading = SAVED, ENDED
  try:
    if files.is_remote(workdir) or jax.process_count() > 1:
      raise InputError(
        "oracle.kind=page needs a run of one process with a --workdir on this "
        "machine. Use oracle.kind=files, or a local --workdir."
      )
    with workdirs.lock(workdir):
      page = page or Page(
        port=config.oracle.port, browser=config.oracle.browser
      )
      progress.listen(page.progress)
      yield page
      text = f"Nothing is left to ask. {SAVED}{_predict(workdir)}"
      heading = DONE
  except Waiting as waiting:
    text = waiting.lines[0]
    raise
  except Preempted:
    if page is None or not page.stopped():
      text = f"The run was stopped. {SAVED} Run the same command again."
      raise
    text, heading = f"{SAVED} {next_steps(workdir)}", STOPPED
    raise Waiting([f"Stopped on the page. {text}"]) from None
  except Exception as error:
    text = f"The run ended with an error: {error} {SAVED}"
    raise
  finally:
    progress.listen(None)
    if page is not None:
      page.end(text, heading=heading)
