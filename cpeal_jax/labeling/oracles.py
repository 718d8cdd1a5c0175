"""The table of oracles: a value of `oracle.kind` is a name in it."""

from collections.abc import Callable

from cpeal_jax.data.pools import Dataset
from cpeal_jax.errors import InputError
from cpeal_jax.labeling.files_oracle import Files
from cpeal_jax.labeling.oracle import Oracle, Simulated
from cpeal_jax.labeling.page.handle import Page
from cpeal_jax.labeling.page_oracle import OnPage


def oracle_of(
  kind: str,
  dataset: Dataset,
  workdir: str,
  *,
  root: str,
  answer_file: str = "",
  document_root: str = "",
  run: str = "",
  page: Page | None = None,
  stop: Callable[[], bool] = lambda: False,
) -> Oracle:
  """Returns the oracle of a run.

  Args:
    kind: a value of the setting `oracle.kind`.
    dataset: whose pool is labeled. The labels that it has are the simulated
      oracle's answers. For a person they are given, unless all images have one,
      as in a benchmark: then they stay hidden, and the person is asked.
    workdir: of the run.
    root: the data root.
    answer_file: a file with answers beside those in the workdir; empty for
      none.
    document_root: as in `addresses.settings`.
    run: the name of the run, as in `files_oracle.Files`.
    page: the page that is open, for `oracle.kind=page`.
    stop: asked again and again while a person has not answered, whether to
      stop waiting.
  """
  pool = dataset.train
  known = {
    id_: dataset.classes[label]
    for id_, label in zip(pool.ids, pool.labels.tolist(), strict=True)
    if label >= 0
  }
  if kind == "simulated":
    return Simulated(known)
  if len(known) == len(pool):
    known = {}
  if kind == "page":
    assert page is not None
    if "" in pool.paths:
      raise InputError(
        "oracle.kind=page shows image files, and this data set keeps its "
        "images in another way. Write them into a folder, and label that."
      )
    return OnPage(workdir, known, page, stop, pool.value_range)
  return Files(
    workdir=workdir,
    root=root,
    classes=dataset.classes,
    given=known,
    answers=(answer_file,) if answer_file else (),
    run=run,
    document_root=document_root,
    value_range=pool.value_range,
    pool=frozenset(pool.ids),
  )
