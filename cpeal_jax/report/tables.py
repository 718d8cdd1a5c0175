"""Tables of a report as text: results.csv, Markdown and LaTeX."""

import math
import re
import textwrap
from collections.abc import Iterable, Sequence

from cpeal_jax.errors import counted
from cpeal_jax.labeling.cells import neutralized
from cpeal_jax.report.arms import Arm
from cpeal_jax.report.comparing import Comparison, Summary
from cpeal_jax.report.measures import Measure, curve, zero_shots
from cpeal_jax.storage import files

Rows = list[list[str]]
FIRST = ("arm", "seed", "workdir")
# Characters of a line in the head of a LaTeX table.
HEAD = 16


def results(arms: Sequence[Arm]) -> tuple[list[str], list[list]]:
  """Returns the names and rows of the tidy table: one row a run and round.

  The values are those of metrics.jsonl; None where a run has no such value.
  """
  rows = [
    {"arm": arm.name, "seed": seed, "workdir": run.workdir} | row
    for arm in arms
    for seed, run in sorted(arm.runs.items())
    for row in run.rows
  ]
  names = list(dict.fromkeys([*FIRST, *(name for row in rows for name in row)]))
  return names, [[row.get(name) for name in names] for row in rows]


def results_csv(arms: Sequence[Arm]) -> str:
  """Returns results.csv with all digits of metrics.jsonl."""
  names, rows = results(arms)
  # As text, since `csv_text` would round numbers to float32.
  return files.csv_text(names, ([_plain(x) for x in row] for row in rows))


def _plain(value: object) -> str:
  if value is None:
    return ""
  return neutralized(value) if isinstance(value, str) else str(value)


def number(value: float, measure: Measure, *, sign: bool = False) -> str:
  """Returns a value as a person reads it: shares in percent, one digit."""
  if math.isnan(value):
    return ""
  digits, scale = (1, 100) if measure.percent else (3, 1)
  return f"{scale * value:{'+' if sign else ''}.{digits}f}"


def spread(mean: float, half: float, measure: Measure) -> str:
  """Returns a mean with half the width of its interval, if it has one."""
  shown = number(mean, measure)
  return shown if math.isnan(half) else f"{shown} ± {number(half, measure)}"


def labels_of_base(found: Summary, base_range: tuple[float, float]) -> str:
  """Returns how many labels of the base arm give what `middle` gave."""
  first, last = base_range
  if math.isnan(found.base_labels):
    return ""
  if math.isinf(found.base_labels):
    return f"< {first:g}" if found.base_labels < 0 else f"> {last:g}"
  return f"{found.base_labels:.0f}"


def comparison(found: Comparison) -> tuple[list[str], Rows]:
  """Returns the head and the rows of the main table, the best arm first."""
  measure = found.measure
  unit = " (%)" if measure.percent else ""
  has_zero_shot = any(s.worst is not None for s in found.summaries)
  head = ["Arm", "Seeds", f"Area under the curve{unit}", f"Last{unit}"]
  head += ["Worst round of any seed, minus zero-shot"] * has_zero_shot
  if found.base:
    middle = {f"{s.middle:g}" for s in found.summaries}
    labels = middle.pop() if len(middle) == 1 else "half the"
    head += [
      f"Minus {found.base} [95 %]",
      "p (Holm)",
      f"Labels of {found.base} for what {labels} labels give",
    ]
  rows = []
  for s in found.summaries:
    row = [s.arm, str(s.seeds), spread(s.area, s.half, measure)]
    row.append(f"{number(s.last, measure)} with {s.labeled:g} labels")
    if has_zero_shot:
      row.append("" if s.worst is None else number(s.worst, measure, sign=True))
    if found.base:
      row += [gap_text(s, measure), p_text(s.p)]
      is_base = s.arm == found.base
      row.append("" if is_base else labels_of_base(s, found.base_range))
    rows.append(row)
  return head, rows


def p_text(p: float) -> str:
  """Returns a p-value with three digits; empty if there is none."""
  if math.isnan(p):
    return ""
  return "< 0.001" if p < 0.001 else f"{p:.3f}"


def gap_text(found: Summary, measure: Measure) -> str:
  """Returns the difference to the base arm with its interval."""
  if found.gap is None:
    return ""
  gap = number(found.gap, measure, sign=True)
  if math.isnan(found.low):
    return gap
  low = number(found.low, measure, sign=True)
  return f"{gap} [{low}, {number(found.high, measure, sign=True)}]"


def power_text(found: Comparison) -> str:
  """Says what so many seeds can see; empty if nothing is compared."""
  if not found.pairs:
    return ""
  points = "points" if found.measure.percent else "units"
  size = number(found.detectable, found.measure)
  text = (
    f"A paired difference varies by {number(found.spread, found.measure)} "
    f"{points} from seed to seed, so {counted(found.pairs, 'seed')} find a "
    f"difference of {size} {points} four times in five, without Holm."
  )
  if found.least_p >= 0.05:
    text += (
      f" The smallest p that these seeds can give is {found.least_p:.3f}, so no"
      " test here can be significant at 5 %: read the intervals, and take more "
      "seeds for a verdict."
    )
  return text


def curves(arms: Sequence[Arm], measure: Measure) -> tuple[list[str], Rows]:
  """Returns the means by round: a row for each arm, a column for each round."""
  points = {arm.name: curve(arm, measure.key) for arm in arms}
  labels = sorted({p.labeled for row in points.values() for p in row})
  zero = zero_shots(arms, measure.key)
  head = ["Arm", *(["0"] if zero else []), *(f"{n:g}" for n in labels)]
  rows = []
  for name, found in points.items():
    by_labels = {p.labeled: spread(p.mean, p.half, measure) for p in found}
    row = [name]
    if zero:
      row.append(number(zero[name], measure) if name in zero else "")
    rows.append([*row, *(by_labels.get(n, "") for n in labels)])
  return head, rows


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Returns a table in Markdown."""
  lines = [head, ["---"] * len(head), *rows]
  return "".join(
    "| " + " | ".join(x.replace("|", "\\|") for x in line) + " |\n"
    for line in lines
  )


def latex(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Returns a table in LaTeX, for a document that loads booktabs.

  Long heads are broken into several lines, so that columns are narrow.
  """
  columns = "l" + "r" * (len(head) - 1)

  def line(cells: Iterable[str]) -> str:
    return "  " + " & ".join(cells) + " \\\\\n"

  def stacked(text: str) -> str:
    lines = [escaped(part) for part in textwrap.wrap(text, HEAD)]
    if len(lines) < 2:
      return "".join(lines)
    return "\\shortstack[r]{" + r" \\ ".join(lines) + "}"

  body = "".join(line(map(escaped, row)) for row in rows)
  first = line(map(stacked, head))
  return (
    f"\\begin{{tabular}}{{{columns}}}\n  \\toprule\n{first}"
    f"  \\midrule\n{body}  \\bottomrule\n\\end{{tabular}}\n"
  )


SPECIAL = {
  "\\": r"\textbackslash{}",
  "~": r"\textasciitilde{}",
  "^": r"\textasciicircum{}",
  "±": r"$\pm$",
  "<": r"\textless{}",
  ">": r"\textgreater{}",
}


def escaped(text: str) -> str:
  """Returns text for LaTeX; signs of numbers become those of mathematics."""
  text = "".join(
    SPECIAL.get(x, f"\\{x}" if x in "&%$#_{}" else x) for x in text
  )
  return re.sub(r"(?<![\w.])([+-])(\d[\d.]*)", r"$\1\2$", text)
