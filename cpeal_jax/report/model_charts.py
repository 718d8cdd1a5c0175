"""Charts of models on the test split: reliability and mistakes."""

from collections.abc import Sequence

from cpeal_jax.report.chart import PERCENT, Chart, Spec
from cpeal_jax.report.reliability import RAW


def _of_arm() -> list[Spec]:
  return [{"filter": "datum.arm == arm && datum.round == round"}]


def _chosen(arm: str, round_: int) -> list[Spec]:
  return [
    {"name": "arm", "value": arm},
    {"name": "round", "value": round_},
    {"name": "kind", "value": RAW},
  ]


def reliability(arm: str, round_: int) -> Chart:
  """How often predictions of each confidence are right."""
  x = {
    "type": "quantitative",
    "title": "confidence",
    "scale": {"domain": [0, 1], "nice": False},
    "axis": PERCENT,
  }
  y = {**x, "title": "share that is right"}
  spec = {
    "width": "container",
    "height": 280,
    "params": _chosen(arm, round_),
    "layer": [
      {
        "data": {"name": "bins"},
        "transform": [*_of_arm(), {"filter": "datum.kind == kind"}],
        "mark": {"type": "rect", "style": "column"},
        "encoding": {
          "x": {**x, "field": "low"},
          "x2": {"field": "high"},
          "y": {**y, "field": "accuracy"},
          "y2": {"datum": 0},
          "tooltip": [
            {"field": "count", "type": "quantitative", "title": "predictions"},
            *(
              {"field": f, "type": "quantitative", "format": ".1%"}
              for f in ("confidence", "accuracy")
            ),
          ],
        },
      },
      {
        "data": {"name": "bins"},
        "transform": [*_of_arm(), {"filter": "datum.kind == kind"}],
        "mark": {"type": "point", "filled": True, "style": "text-line"},
        "encoding": {
          "x": {**x, "field": "confidence"},
          "y": {**y, "field": "accuracy"},
        },
      },
      {
        "data": {"values": [{"at": 0}, {"at": 1}]},
        "mark": {"type": "line", "strokeDash": [5, 4], "style": "text-line"},
        "encoding": {"x": {**x, "field": "at"}, "y": {**y, "field": "at"}},
      },
    ],
  }
  return Chart(
    spec,
    ("bins",),
    "Reliability diagram: for predictions of each confidence, the share that is"
    " right. Honest confidence lies on the dashed diagonal.",
  )


def counts(arm: str, round_: int) -> Chart:
  """How many predictions have each confidence."""
  spec = {
    "width": "container",
    "height": 90,
    "params": _chosen(arm, round_),
    "data": {"name": "bins"},
    "transform": [*_of_arm(), {"filter": "datum.kind == kind"}],
    "mark": {"type": "rect", "style": "column"},
    "encoding": {
      "x": {
        "field": "low",
        "type": "quantitative",
        "title": "confidence",
        "scale": {"domain": [0, 1], "nice": False},
        "axis": PERCENT,
      },
      "x2": {"field": "high"},
      "y": {
        "field": "count",
        "type": "quantitative",
        "title": "predictions",
        "axis": {"tickCount": 3, "format": "~s"},
      },
      "y2": {"datum": 0},
      "tooltip": [{"field": "count", "type": "quantitative"}],
    },
  }
  return Chart(spec, ("bins",), "How many predictions have each confidence.")


def confusion(arm: str, classes: Sequence[str]) -> Chart:
  """Labels against predictions on the test split."""
  axis = {"labelLimit": 110}
  spec = {
    "width": "container",
    "height": 24 * len(classes),
    "params": [{"name": "arm", "value": arm}],
    "data": {"name": "confusion"},
    "transform": [{"filter": "datum.arm == arm"}],
    "encoding": {
      "x": {
        "field": "prediction",
        "type": "nominal",
        "sort": [*classes],
        "title": "prediction",
        "axis": {**axis, "labelAngle": -40},
      },
      "y": {
        "field": "label",
        "type": "nominal",
        "sort": [*classes],
        "title": "label",
        "axis": axis,
      },
    },
    "layer": [
      {
        "mark": "rect",
        "encoding": {
          "color": {
            "field": "share",
            "type": "quantitative",
            "scale": {"scheme": "blues", "domain": [0, 1]},
            "legend": None,
          },
          "tooltip": [
            {"field": "label", "type": "nominal"},
            {"field": "prediction", "type": "nominal"},
            {"field": "images", "type": "quantitative", "format": ".1f"},
            {"field": "share", "type": "quantitative", "format": ".1%"},
          ],
        },
      },
      {
        "transform": [{"filter": "datum.share >= 0.005"}],
        "mark": {"type": "text", "fontSize": 10},
        "encoding": {
          "text": {"field": "share", "type": "quantitative", "format": ".0%"},
          "color": {
            "condition": {"test": "datum.share > 0.5", "value": "white"},
            "value": "#111",
          },
        },
      },
    ],
  }
  return Chart(
    spec,
    ("confusion",),
    "Confusion matrix: of the test images of each class, a row each, the share "
    "that is predicted as each class.",
  )


def by_class(arm: str, classes: Sequence[str]) -> Chart:
  """The accuracy within each class, with its interval."""
  x = {
    "type": "quantitative",
    "title": "accuracy within the class",
    "scale": {"domain": [0, 1]},
    "axis": PERCENT,
  }
  y = {
    "field": "name",
    "type": "nominal",
    "sort": [*classes],
    "title": None,
    "axis": {"labelLimit": 130},
  }
  spec = {
    "width": "container",
    "height": 20 * len(classes),
    "params": [{"name": "arm", "value": arm}],
    "data": {"name": "classes"},
    "transform": [{"filter": "datum.arm == arm"}],
    "layer": [
      {
        "mark": {"type": "rule", "strokeWidth": 2, "style": "column"},
        "encoding": {
          "x": {**x, "field": "low"},
          "x2": {"field": "high"},
          "y": y,
        },
      },
      {
        "mark": {"type": "point", "filled": True, "size": 60},
        "encoding": {
          "x": {**x, "field": "accuracy"},
          "y": y,
          "tooltip": [
            {"field": "name", "type": "nominal"},
            {"field": "images", "type": "quantitative"},
            {"field": "accuracy", "type": "quantitative", "format": ".1%"},
          ],
        },
      },
    ],
  }
  return Chart(
    spec,
    ("classes",),
    "The accuracy within each class on the test split, with its 95 % interval.",
  )
