"""The table of oracles: a value of `oracle.kind` is a name in it."""

import os
from collections.abc import Callable
from pathlib import Path

from cpeal_jax.data import huggingface
from cpeal_jax.data.pools import Dataset, Split
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
    return OnPage(
      workdir,
      known,
      page,
      stop,
      pool.value_range,
      saved=saved_at(pool, root),
    )
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


def saved_at(pool: Split, root: str | os.PathLike) -> str:
  """Returns the folder that the page reads images from which are no files.

  It is what `save_to_disk` of Hugging Face's `datasets` wrote; empty if all
  images are files.

  Args:
    pool: the images that may be asked about.
    root: the data root.

  Raises:
    InputError: the images are neither files nor in such a folder.
  """
  if "" not in pool.paths:
    return ""
  if root and huggingface.is_saved(Path(root)):
    return os.path.abspath(root)
  raise InputError(
    "oracle.kind=page shows image files, and this data set keeps its "
    "images in another way. Write them into a folder, and label that."
  )
