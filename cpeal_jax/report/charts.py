"""Charts of whole runs: learning curves, differences and time."""

from collections.abc import Sequence

from cpeal_jax.report.chart import Chart, color_of, labels, value

HEIGHT = 320


def curves(
  names: Sequence[str],
  metric: str,
  *,
  percent: bool,
  has_bands: bool,
  has_zero_shot: bool,
) -> Chart:
  """The metric over the labels: every run thin, the mean with its interval.

  Args:
    names: of the arms.
    metric: that is shown at first.
    percent: whether it is a share.
    has_bands: whether there are intervals.
    has_zero_shot: whether there is a value without labels.
  """
  shown = {"filter": "indexof(shown, datum.arm) >= 0"}
  one = [
    shown,
    {"calculate": "datum[metric]", "as": "y"},
    {"filter": "isValid(datum.y)"},
  ]
  low_high = [
    {"calculate": "datum[metric + '_low']", "as": "low"},
    {"calculate": "datum[metric + '_high']", "as": "high"},
  ]
  color = color_of(names)
  tip = [
    {"field": "arm", "type": "nominal", "title": "arm"},
    {"field": "labeled", "type": "quantitative", "title": "labels"},
    {"field": "y", "type": "quantitative", "format": ".4f", "title": "value"},
  ]
  layers = [
    {
      "data": {"name": "rows"},
      "transform": [{"filter": "datum.round >= 0"}, *one],
      "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.3},
      "encoding": {
        "x": labels(),
        "y": value("y"),
        "color": color,
        "detail": {"field": "seed", "type": "nominal"},
      },
    },
    {
      "data": {"name": "means"},
      "transform": one,
      "mark": {"type": "line", "strokeWidth": 2.5, "point": {"size": 34}},
      "encoding": {
        "x": labels(),
        "y": value("y"),
        "color": color,
        "shape": {"field": "arm", "type": "nominal", "legend": None},
        "tooltip": tip,
      },
    },
  ]
  if has_bands:
    layers.insert(
      1,
      {
        "data": {"name": "means"},
        "transform": [*one, *low_high, {"filter": "isValid(datum.low)"}],
        "mark": {"type": "area", "opacity": 0.13},
        "encoding": {
          "x": labels(),
          "y": value("low"),
          "y2": {"field": "high"},
          "color": color,
        },
      },
    )
  if has_zero_shot:
    layers.append(
      {
        "data": {"name": "zero"},
        "transform": [
          {"calculate": "datum[metric]", "as": "y"},
          {"filter": "isValid(datum.y)"},
          {"aggregate": [{"op": "count", "as": "arms"}], "groupby": ["y"]},
        ],
        "layer": [
          {
            "mark": {"type": "rule", "strokeDash": [5, 4], "style": "text-line"}
          },
          {
            "mark": {
              "type": "text",
              "align": "left",
              "baseline": "bottom",
              "x": 4,
              "dy": -3,
              "text": "zero-shot",
            }
          },
        ],
        "encoding": {"y": value("y")},
      }
    )
  spec = {
    "width": "container",
    "height": HEIGHT,
    "params": [
      {"name": "metric", "value": metric},
      {"name": "percent", "value": percent},
      {"name": "shown", "value": [*names]},
    ],
    "layer": layers,
  }
  return Chart(
    spec,
    ("rows", "means", "zero"),
    "Learning curves: the chosen metric over the number of labels, a thin line "
    "for each run, a thick one for the mean of each arm with its 95 % interval,"
    " and a dashed line for zero-shot.",
  )


def differences(names: Sequence[str], base: str, percent: bool) -> Chart:
  """Each arm's difference to the base arm over the whole curve."""
  unit = "points" if percent else "units"
  x = {
    "type": "quantitative",
    "title": f"{unit} more than {base}, over the whole curve",
    "scale": {"zero": True},
  }
  y = {"field": "arm", "type": "nominal", "title": None, "sort": None,
       "axis": {"labelLimit": 150}}  # fmt: skip
  color = color_of(names, legend=False)
  spec = {
    "width": "container",
    "height": 26 * (len(names) - 1),
    "data": {"name": "gaps"},
    "layer": [
      {
        "data": {"values": [{"x": 0}]},
        "mark": {"type": "rule", "style": "text-line"},
        "encoding": {"x": {**x, "field": "x"}},
      },
      {
        "mark": {"type": "rule", "strokeWidth": 2},
        "encoding": {
          "x": {**x, "field": "low"},
          "x2": {"field": "high"},
          "y": y,
          "color": color,
        },
      },
      {
        "mark": {"type": "point", "filled": True, "size": 70},
        "encoding": {
          "x": {**x, "field": "gap"},
          "y": y,
          "color": color,
          "tooltip": [
            {"field": name, "type": kind}
            for name, kind in (
              ("arm", "nominal"),
              *(
                (key, "quantitative") for key in ("gap", "low", "high", "pairs")
              ),
            )
          ],
        },
      },
    ],
  }
  return Chart(
    spec,
    ("gaps",),
    f"The mean difference of each arm to {base} with its 95 % interval.",
  )


def time(names: Sequence[str]) -> Chart:
  """Seconds of each stage over all rounds."""
  spec = {
    "width": "container",
    "height": 26 * len(names),
    "data": {"name": "time"},
    "mark": "bar",
    "encoding": {
      "y": {
        "field": "arm",
        "type": "nominal",
        "title": None,
        "sort": [*names],
        "axis": {"labelLimit": 150},
      },
      "x": {
        "field": "seconds",
        "type": "quantitative",
        "title": "seconds a run, mean over seeds",
      },
      "color": {
        "field": "stage",
        "type": "nominal",
        "title": None,
        "legend": {"orient": "bottom"},
      },
      "tooltip": [
        {"field": "arm", "type": "nominal"},
        {"field": "stage", "type": "nominal"},
        {"field": "seconds", "type": "quantitative", "format": ".1f"},
      ],
    },
  }
  return Chart(spec, ("time",), "Seconds of each stage of a run, by arm.")
