"""What all charts of a page share.

A chart is a plain Vega-Lite specification. It names its data, which the page
holds once, and its parameters, which the page's controls set. Colors of the
ground and of text come from the page, so that they fit a light and a dark
screen.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

Spec = dict[str, Any]
PERCENT: Spec = {"format": ".0%", "tickCount": 5}


class Chart(NamedTuple):
  """A chart and what belongs to it.

  Attributes:
    spec: in Vega-Lite, without the data.
    data: the names of the tables it draws.
    about: what it shows, for people who do not see it.
  """

  spec: Spec
  data: tuple[str, ...]
  about: str


def color_of(names: Sequence[str], *, legend: bool = True) -> Spec:
  """The color of an arm, which is the same in all charts."""
  below = {
    "orient": "bottom",
    "direction": "horizontal",
    "columns": 4,
    "title": None,
    "labelLimit": 220,
    "symbolOpacity": 1,
    "symbolStrokeWidth": 3,
    "symbolType": "stroke",
  }
  return {
    "field": "arm",
    "type": "nominal",
    "scale": {"domain": [*names]},
    "legend": below if legend else None,
  }


def labels(title: str = "labels") -> Spec:
  """The axis of the number of labels."""
  return {"field": "labeled", "type": "quantitative", "title": title}


def value(field: str, **more: Any) -> Spec:
  """The axis of the chosen metric, in percent if the parameter says so."""
  shown = "percent ? format(datum.value, '.0%') : format(datum.value, '.3~f')"
  return {
    "field": field,
    "type": "quantitative",
    "title": None,
    "scale": {"zero": False},
    "axis": {"labelExpr": shown},
    **more,
  }
