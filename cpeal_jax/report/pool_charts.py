"""Charts of what was bought: balance of the classes, map of the pool."""

from collections.abc import Sequence

from cpeal_jax.report.chart import PERCENT, Chart, color_of, labels


def balance(arm: str, classes: Sequence[str], shares: Sequence[str]) -> Chart:
  """What was bought of each class, against the pool.

  Args:
    arm: that is shown at first.
    classes: names of the classes, in order.
    shares: which of `bought`, `predicted` and `true` there are.
  """
  spec = {
    "width": "container",
    "height": 40 * len(classes),
    "params": [{"name": "arm", "value": arm}],
    "data": {"name": "balance"},
    "transform": [
      {"filter": "datum.arm == arm"},
      {"fold": [*shares], "as": ["what", "share"]},
      {"filter": "isValid(datum.share)"},
    ],
    "mark": "bar",
    "encoding": {
      "y": {
        "field": "name",
        "type": "nominal",
        "title": None,
        "sort": [*classes],
        "axis": {"labelLimit": 130},
      },
      "yOffset": {"field": "what", "sort": [*shares]},
      "x": {
        "field": "share",
        "type": "quantitative",
        "title": "share",
        "axis": PERCENT,
      },
      "color": {
        "field": "what",
        "type": "nominal",
        "title": None,
        "scale": {"domain": [*shares]},
        "legend": {"orient": "bottom"},
      },
      "tooltip": [
        {"field": "name", "type": "nominal"},
        {"field": "what", "type": "nominal"},
        {"field": "share", "type": "quantitative", "format": ".1%"},
      ],
    },
  }
  return Chart(
    spec,
    ("balance",),
    "The share of each class among the labels that were bought, in the pool by "
    "the last model's predictions, and in the pool by its labels.",
  )


def map_curve(names: Sequence[str], arm: str) -> Chart:
  """A small learning curve on which a range of labels is marked."""
  spec = {
    "width": "container",
    "height": 80,
    "params": [{"name": "arm", "value": arm}],
    "data": {"name": "means"},
    "transform": [{"filter": "datum.arm == arm && isValid(datum.primary)"}],
    "layer": [
      {
        "params": [
          {"name": "brush", "select": {"type": "interval", "encodings": ["x"]}}
        ],
        "mark": {"type": "line", "point": True},
        "encoding": {
          "x": labels("labels (drag to mark rounds)"),
          "y": {
            "field": "primary",
            "type": "quantitative",
            "title": None,
            "scale": {"zero": False},
            "axis": {"format": ".0%", "tickCount": 3},
          },
          "color": color_of(names, legend=False),
        },
      }
    ],
  }  # fmt: skip
  return Chart(
    spec,
    ("means",),
    "The learning curve of the arm, on which a range of labels can be marked.",
  )


def pool_map(arm: str, seed: int, rounds: int) -> Chart:
  """The pool in two dimensions with the picks by round."""
  axis = {"type": "quantitative", "axis": None, "scale": {"domain": [0, 1]}}
  spec = {
    "width": "container",
    "height": 420,
    "params": [
      {"name": "arm", "value": arm},
      {"name": "seed", "value": seed},
      {"name": "first", "value": 0},
      {"name": "last", "value": 1_000_000},
      {"name": "upto", "value": rounds},
    ],
    "layer": [
      {
        "data": {"name": "points"},
        "mark": {"type": "circle", "size": 14, "opacity": 0.4, "color": "#888"},
        "encoding": {
          "x": {**axis, "field": "x"},
          "y": {**axis, "field": "y"},
          "tooltip": [
            {"field": "id", "type": "nominal"},
            {"field": "label", "type": "nominal"},
          ],
        },
      },
      {
        "data": {"name": "places"},
        "transform": [
          {
            "filter": "datum.arm == arm && datum.seed == seed && "
            "datum.labeled >= first && datum.labeled <= last && "
            "datum.round <= upto"
          }
        ],
        "mark": {
          "type": "point",
          "filled": True,
          "size": 90,
          "strokeWidth": 1,
          "style": "pick",
        },
        "encoding": {
          "x": {**axis, "field": "x"},
          "y": {**axis, "field": "y"},
          "color": {
            "field": "round",
            "type": "quantitative",
            "scale": {"scheme": "viridis", "domain": [0, max(1, rounds - 1)]},
            "legend": {"orient": "bottom", "title": "bought in round"},
          },
          "tooltip": [
            {"field": name, "type": "nominal"}
            for name in ("id", "label", "round")
          ],
        },
      },
    ],
  }  # fmt: skip
  return Chart(
    spec,
    ("points", "places"),
    "A map of the pool in which similar images lie close together. Large dots "
    "are the images that the arm bought, colored by round.",
  )
