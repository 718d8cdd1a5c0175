"""Puts the sections into one HTML file, which needs no other address."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from cpeal_jax.report.parts import Figure, Section
from cpeal_jax.report.reading import LeftOut

STATIC = Path(__file__).parent / "static"


def render(
  *,
  title: str,
  verdict: Sequence[str],
  facts: Sequence[tuple[str, str]],
  left_out: Sequence[LeftOut],
  notes: Sequence[str],
  sections: Sequence[Section],
  script: str,
) -> str:
  """Returns the page.

  Args:
    title: its heading.
    verdict: what is found, in sentences.
    facts: what was run, a word and what it is.
    left_out: workdirs that are not in it.
    notes: what else is missing, in sentences.
    sections: in their order.
    script: the JavaScript that draws charts, see `bundle`.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(STATIC),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters["plain_json"] = plain_json
  return environment.get_template("page.html").render(
    title=title,
    verdict=verdict,
    facts=facts,
    left_out=left_out,
    notes=notes,
    sections=sections,
    content=embedded(content(sections)),
    style=(STATIC / "page.css").read_text(),
    code=(STATIC / "page.js").read_text(),
    script=script,
  )


def content(sections: Sequence[Section]) -> dict[str, Any]:
  """Returns what the page's script draws: the charts and their tables.

  A table is its columns and its rows, which takes less room than a list of
  objects.
  """
  shown = {
    part.name: {"spec": part.chart.spec, "data": part.chart.data}
    for section in sections
    for part in section.parts
    if isinstance(part, Figure)
  }
  tables = {}
  for section in sections:
    for name, rows in section.data.items():
      columns = list(dict.fromkeys(key for row in rows for key in row))
      values = [[_plain(row.get(key)) for key in columns] for row in rows]
      tables[name] = {"columns": columns, "rows": values}
  return {"charts": shown, "tables": tables}


def _plain(value: Any) -> Any:
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value.item() if isinstance(value, np.generic) else value


def plain_json(value: Any) -> str:
  """Returns a value as JSON, for an attribute."""
  return json.dumps(value, ensure_ascii=False)


def embedded(value: Any) -> str:
  """Returns a value as JSON that can stand within a script element."""
  text = json.dumps(value, allow_nan=False, separators=(",", ":"))
  # Else a class called "</script>" would end the element.
  return text.replace("<", "\\u003c")
