"""The table of oracles: a value of `oracle.kind` is a name in it."""

from cpeal_jax.data.pools import Dataset
from cpeal_jax.labeling.files_oracle import Files
from cpeal_jax.labeling.oracle import Oracle, Simulated


def oracle_of(
  kind: str,
  dataset: Dataset,
  workdir: str,
  *,
  root: str,
  answer_file: str = "",
  document_root: str = "",
  run: str = "",
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
    run: a name of the run, which files with questions carry.
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
