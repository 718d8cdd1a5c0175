"""What a section of a page is made of; the template has a look for each."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from cpeal_jax.report.chart import Chart


class Text(NamedTuple):
  """A paragraph."""

  text: str
  kind: str = "text"


class Table(NamedTuple):
  """A table.

  Attributes:
    caption: what it holds.
    head: names of the columns.
    rows: cells as text; the first of a row names it.
    is_open: whether it is shown before a person asks for it.
  """

  caption: str
  head: Sequence[str]
  rows: Sequence[Sequence[str]]
  is_open: bool = True
  kind: str = "table"


class Tables(NamedTuple):
  """Tables under one heading that opens and closes."""

  title: str
  tables: Sequence[Table]
  kind: str = "tables"


class Control(NamedTuple):
  """Something that sets parameters of the charts of its section.

  Attributes:
    label: what it chooses.
    form: `select`, `checks` or `range`.
    param: the parameter that `checks` and `range` set.
    options: (text, parameters) for `select`, (text, value) for `checks`.
    low, high, value: of a `range`.
    names: what the numbers of a `range` are called, from the lowest.
  """

  label: str
  form: str
  param: str = ""
  options: Sequence[tuple[str, Any]] = ()
  low: int = 0
  high: int = 0
  value: int = 0
  names: Sequence[str] = ()


class Controls(NamedTuple):
  """The controls of the charts of a section, in a row."""

  controls: Sequence[Control]
  kind: str = "controls"


class Figure(NamedTuple):
  """A chart with the table of its numbers behind it.

  Attributes:
    name: of the chart, unique in the page.
    title: what is shown, as a heading.
    chart: the chart.
    table: its numbers.
    note: how to read it.
  """

  name: str
  title: str
  chart: Chart
  table: Table | None
  note: str = ""
  kind: str = "figure"


class Thumb(NamedTuple):
  """A picture with what is said of it.

  Attributes:
    uri: the picture as a `data:` address; empty if there is none.
    title: of the image.
    lines: what is said of it.
    is_wrong: whether the prediction is another class than the label.
  """

  uri: str
  title: str
  lines: Sequence[str]
  is_wrong: bool


class Thumbs(NamedTuple):
  """Pictures under a heading that opens and closes."""

  title: str
  thumbs: Sequence[Thumb]
  is_open: bool = False
  note: str = ""
  kind: str = "thumbs"


class Group(NamedTuple):
  """Parts under a heading that opens and closes."""

  title: str
  parts: Sequence[Any]
  kind: str = "group"


class Heading(NamedTuple):
  """A heading within a section."""

  text: str
  kind: str = "heading"


class Words(NamedTuple):
  """Text as in a terminal, under a heading that opens and closes."""

  title: str
  text: str
  is_open: bool = False
  kind: str = "words"


Part = (
  Text | Table | Tables | Controls | Figure | Thumbs | Heading | Group | Words
)


class Section(NamedTuple):
  """A part of the page with a heading and a place of its own.

  Attributes:
    id: its anchor.
    title: its heading.
    parts: its content, in order.
    data: the tables that its charts draw, by name: rows as dicts.
  """

  id: str
  title: str
  parts: Sequence[Part]
  data: dict[str, list[dict[str, Any]]]
