"""Draws the learning curves of the first page from a table of results.md.

  python docs/images/learning_curve.py

writes learning-curve.svg beside this file. The numbers are written into the
picture as well, and a test compares these with the table.
"""

import json
import re
from pathlib import Path

import matplotlib

HERE = Path(__file__).parent
# Rows of the table, what the curve is called, its color, and where its name
# stands: the number of labels and the distance in points.
CURVES = (
  ("anchored, random, 10 seeds", "anchored head", "#1b6e3c", (12, 2.3)),
  (
    "prompts+anchor, random, 10 seeds",
    "prompts with the anchor",
    "#2a5db0",
    (12, -2.6),
  ),
  (
    "prompts, random, 10 seeds",
    "prompts, as in the papers",
    "#b3361e",
    (33, -3.0),
  ),
)
SECTION = "## Prompts, held by the anchor"


def numbers(page: str) -> dict[str, list[float]]:
  """Returns accuracies in percent by curve, and the zero-shot accuracy.

  Args:
    page: the text of results.md.
  """
  table = page.partition(SECTION)[2]
  found = {}
  for row, name, *_ in CURVES:
    line = re.search(rf"^\| {re.escape(row)} \|(.*)\|$", table, re.M)
    assert line, f"results.md has no row {row}"
    found[name] = [float(cell) for cell in line.group(1).split("|")]
  zero_shot = re.search(r"### EuroSAT\n\nZero-shot (\S+) %", page)
  assert zero_shot
  return {**found, "zero-shot": [float(zero_shot.group(1))]}


def draw(values: dict[str, list[float]], path: Path) -> None:
  matplotlib.use("Agg")
  from matplotlib import pyplot

  # The same file from the same numbers.
  style = {"svg.hashsalt": "cpeal_jax", "font.size": 10.5}
  with pyplot.rc_context(style):
    figure, axes = pyplot.subplots(figsize=(6.4, 3.7), layout="constrained")
    (zero_shot,) = values["zero-shot"]
    axes.axhline(zero_shot, color="0.45", linestyle="--", linewidth=1.2)
    axes.text(101, zero_shot - 1.6, "zero-shot", color="0.35", ha="right")
    for _, name, color, (at, above) in CURVES:
      labels = [10 * (i + 1) for i in range(len(values[name]))]
      axes.plot(labels, values[name], color=color, marker="o", markersize=3.5)
      height = values[name][min(at // 10, 9) - 1] + above
      axes.text(at, height, name, color=color)
    axes.set_xlabel("labels that a person gave, drawn at random")
    axes.set_ylabel("accuracy on EuroSAT, %")
    axes.set_ylim(top=67)
    axes.set_xticks(range(10, 101, 10))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    metadata = {"Description": json.dumps(values), "Date": None}
    figure.savefig(path, metadata=metadata)
    pyplot.close(figure)


def main() -> None:
  page = (HERE.parent / "results.md").read_text()
  draw(numbers(page), HERE / "learning-curve.svg")


if __name__ == "__main__":
  main()
