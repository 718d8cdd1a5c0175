"""Keeps the labeling page open while a run goes on, and says how it ended."""

import contextlib
import os
from collections.abc import Iterator

import jax

from cpeal_jax import config as config_lib
from cpeal_jax import progress
from cpeal_jax.errors import InputError
from cpeal_jax.labeling.oracle import Waiting
from cpeal_jax.labeling.page.handle import Page
from cpeal_jax.run.fitting import Preempted
from cpeal_jax.storage import files
from cpeal_jax.storage import workdir as workdirs

STOPPED = (
  "Stopped on the page. All answers are saved; to go on, run the same command "
  "again."
)
SAVED = "All answers are saved."


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
    page.end(f"No more is asked for the certificate for now. {SAVED}")


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
  text = SAVED
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
      text = f"The run has ended: all its rounds are done. {SAVED}"
  except Waiting as waiting:
    text = waiting.lines[0]
    raise
  except Preempted:
    if page is None or not page.stopped():
      text = f"The run was stopped. {SAVED} Run the same command again."
      raise
    text = STOPPED
    raise Waiting([STOPPED]) from None
  except Exception as error:
    text = f"The run ended with an error: {error} {SAVED}"
    raise
  finally:
    progress.listen(None)
    if page is not None:
      page.end(text)
