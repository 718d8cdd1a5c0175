"""Plots for papers and slides: the learning curves as SVG and PNG."""

import io
import math
from collections.abc import Sequence
from typing import Any

from cpeal_jax.report.arms import Arm
from cpeal_jax.report.comparing import Comparison
from cpeal_jax.report.measures import Measure, curve, zero_shots

STYLE: dict[Any, Any] = {
  "figure.figsize": (5.2, 3.4),
  "figure.dpi": 200,
  "font.size": 9,
  "font.family": "sans-serif",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "grid.color": "#dde0e2",
  "grid.linewidth": 0.6,
  "axes.axisbelow": True,
  "lines.linewidth": 1.8,
  "lines.markersize": 4,
  "legend.frameon": False,
  "savefig.bbox": "tight",
  "svg.fonttype": "none",
  # Else an SVG has other ids each time.
  "svg.hashsalt": "cpeal report",
}
COLORS = (
  *("#0b62a8", "#c05d00", "#00805a", "#b5306a"),
  *("#6a48b8", "#7d7300", "#00828f", "#7c4a26"),
)
MARKERS = "osD^vPX*"
FORMATS = ("svg", "png")


def curves(arms: Sequence[Arm], measure: Measure) -> dict[str, bytes]:
  """Returns the learning curves of a metric, by the format of the picture."""
  pyplot = _pyplot()
  with pyplot.rc_context(STYLE):
    figure, axes = pyplot.subplots()
    scale = 100 if measure.percent else 1
    for number, arm in enumerate(arms):
      points = curve(arm, measure.key)
      if not points:
        continue
      labels = [p.labeled for p in points]
      color = COLORS[number % len(COLORS)]
      marker = MARKERS[number % len(MARKERS)]
      means = [scale * p.mean for p in points]
      axes.plot(labels, means, color=color, marker=marker, label=arm.name)
      if not any(math.isnan(p.half) for p in points):
        low = [scale * (p.mean - p.half) for p in points]
        high = [scale * (p.mean + p.half) for p in points]
        axes.fill_between(labels, low, high, color=color, alpha=0.13, lw=0)
    for value in sorted({*zero_shots(arms, measure.key).values()}):
      axes.axhline(scale * value, color="#555b5f", ls="--", lw=1)
      axes.annotate(
        "zero-shot",
        (0.01, scale * value),
        xycoords=("axes fraction", "data"),
        va="bottom",
        color="#555b5f",
      )
    axes.set_xlabel("labels")
    axes.set_ylabel(measure.title + (", %" if measure.percent else ""))
    axes.legend(loc="best", fontsize=8)
    return _saved(figure)


def differences(found: Comparison) -> dict[str, bytes]:
  """Returns the differences to the base arm; empty if nothing is compared."""
  shown = [s for s in found.summaries if s.gap is not None]
  if not shown:
    return {}
  pyplot = _pyplot()
  with pyplot.rc_context(STYLE):
    figure, axes = pyplot.subplots(figsize=(5.2, 0.8 + 0.3 * len(shown)))
    scale = 100 if found.measure.percent else 1
    for row, summary in enumerate(reversed(shown)):
      gap = scale * (summary.gap or 0)
      axes.plot(gap, row, "o", color=COLORS[0])
      if not math.isnan(summary.low):
        ends = [scale * summary.low, scale * summary.high]
        axes.plot(ends, [row, row], color=COLORS[0])
    axes.axvline(0, color="#555b5f", lw=1)
    axes.set_yticks(range(len(shown)), [s.arm for s in reversed(shown)])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    unit = "points" if found.measure.percent else "units"
    axes.set_xlabel(f"{found.measure.title}: {unit} more than {found.base}")
    return _saved(figure)


def _pyplot():
  import matplotlib as mpl

  mpl.use("agg")
  from matplotlib import pyplot

  return pyplot


def _saved(figure) -> dict[str, bytes]:
  found = {}
  for kind in FORMATS:
    out = io.BytesIO()
    # Without a date, the same runs give the same bytes.
    dated = {"Date": None} if kind == "svg" else {}
    figure.savefig(out, format=kind, metadata=dated)
    found[kind] = out.getvalue()
  _pyplot().close(figure)
  return found
