"""Small pictures of images, as long as the data set is at hand."""

import base64
import os
from collections.abc import Callable, Iterable

from cpeal_jax.config import ranges
from cpeal_jax.data.pools import Dataset
from cpeal_jax.data.reading import read_bytes
from cpeal_jax.errors import InputError, counted
from cpeal_jax.labeling import thumbnails
from cpeal_jax.report.reading import Run
from cpeal_jax.storage import files

SIDE = 96
QUALITY = 75
# Pictures take at most so many bytes of a page; later ones are left out.
MOST_BYTES = 1_900_000
# A data set that has no files of its own is only read again up to this size.
MOST_READ = 100_000


class Pictures:
  """Makes the pictures of a report, each once, until they take too much room.

  Attributes:
    missing: why some pictures are not there, one sentence each.
  """

  def __init__(self, root: str, load: Callable[[Run], Dataset]):
    """Says where images may be.

    Args:
      root: where the data set is now; empty takes the recorded paths.
      load: reads a run's data set again, for images that are no files.
    """
    self._root, self._load = root, load
    self._made: dict[tuple[str, str], str] = {}
    self._bytes = 0
    self._readers: dict[str, Callable[[str], bytes]] = {}
    self.missing: dict[str, int] = {}

  def of(self, run: Run, ids: Iterable[str]) -> dict[str, str]:
    """Returns `data:` addresses by id, of those images that can be shown."""
    return {id_: uri for id_ in ids if (uri := self._picture(run, id_))}

  def sentences(self) -> list[str]:
    """Returns why pictures are missing, and how many."""
    return [
      f"{counted(count, 'picture is', 'pictures are')} not shown: {why}."
      for why, count in self.missing.items()
    ]

  def _picture(self, run: Run, id_: str) -> str:
    key = id_, run.images.get(id_, {}).get("sha256", "")
    if key not in self._made:
      self._made[key] = self._make(run, id_)
    return self._made[key]

  def _make(self, run: Run, id_: str) -> str:
    if self._bytes > MOST_BYTES:
      return self._without("the page would become too large")
    row = run.images.get(id_)
    if row is None:
      return self._without("the run does not list them")
    try:
      data = self._read(run, id_, row["path"])
    except InputError as error:
      return self._without(f"the data set is not at hand ({error})")
    if data is None:
      return self._without(
        "the image files are not where they were; if they have moved, give "
        "--config.dataset.root=DIR"
      )
    if row["sha256"] and files.sha256(data) != row["sha256"]:
      return self._without("the image files have changed since the run")
    picture, kind = thumbnails.picture(
      data,
      side=SIDE,
      value_range=ranges.parse_range(run.settings.get("dataset.range", "")),
      quality=QUALITY,
      lossless_side=32,
    )
    if not picture:
      return self._without("they cannot be decoded")
    uri = f"data:{kind};base64,{base64.b64encode(picture).decode()}"
    self._bytes += len(uri)
    return uri

  def _read(self, run: Run, id_: str, path: str) -> bytes | None:
    """Returns the bytes of an image; None if its file is not there."""
    if path:
      places = [path]
      if self._root:
        places.insert(0, os.path.join(self._root, id_))
      for place in places:
        if os.path.isfile(place):
          return read_bytes(place, "an image")
      return None
    if run.workdir not in self._readers:
      if len(run.images) > MOST_READ:
        raise InputError("it has no files and is too large to be read again")
      self._readers[run.workdir] = reader(self._load(run))
    return self._readers[run.workdir](id_)

  def _without(self, why: str) -> str:
    self.missing[why] = self.missing.get(why, 0) + 1
    return ""


def reader(dataset: Dataset) -> Callable[[str], bytes]:
  """Returns a function from an image's id to the bytes of its file."""
  places = {
    id_: (split, row)
    for split in dataset.splits
    for row, id_ in enumerate(split.ids)
  }

  def read(id_: str) -> bytes:
    if id_ not in places:
      raise InputError(f"the data set has no image {id_}")
    split, row = places[id_]
    return split.read(row)

  return read
