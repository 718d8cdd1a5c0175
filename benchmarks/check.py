"""Compares the ratios of benchmarks with stored ratios.

  python benchmarks/check.py runs/*.json
  python benchmarks/check.py --tolerance=0.1 runs/inference.json
  python benchmarks/check.py DIR/figures.jsonl
  python benchmarks/check.py --update runs/*.json

The files are written by the benchmarks in `speed/` with --out, and by
`accelerator.py`, whose last start counts; both at full size. Their ratios, of
`accelerator.py` also shares of a rate, are compared with those in `ratios.json`
beside this file. A row is identified by benchmark, device, case, peer and
threads; of `accelerator.py` the peer is the name of the figure, and the number
of devices stands for threads. The exit code is 1 if a ratio fell by more than
the tolerance, or if a gate that was met is now missed.
A case that is not stored is called new; a stored case that was not run is not
mentioned. With --update the ratios are stored instead; they replace the stored
ratios of the same cases.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from accelerated import figures
from speed import timing

KEY = ("benchmark", "device", "case", "peer", "threads")
COLUMNS = ("case", "peer", "threads", "stored ratio", "ratio now", "change")


def key(row: dict[str, Any]) -> tuple:
  return tuple(row[name] for name in KEY)


def read(path: Path) -> list[dict[str, Any]]:
  """Returns the file's rows with a ratio, with their benchmark and device."""
  if path.suffix == ".jsonl":
    return read_figures(path)
  whole = json.loads(path.read_text())
  if whole.get("small") is not False:
    sys.exit(f"{path} is of a --small run or of no benchmark: not compared.")
  device = whole["environment"]["device"]
  about = {"benchmark": whole["benchmark"], "device": device}
  return [about | row for row in whole["rows"] if row["ratio"] is not None]


def read_figures(path: Path) -> list[dict[str, Any]]:
  """Returns the same rows of what the last start of `accelerator.py` found."""
  lines = figures.read(path)
  start = lines[-1].get("start") if lines else None
  last = [line for line in lines if line.get("start") == start]
  if not last or any(line.get("small") is not False for line in last):
    sys.exit(f"{path} is of a --small run or of no benchmark: not compared.")
  return [
    {
      "benchmark": line["benchmark"],
      "device": line["device"],
      "case": line["case"],
      "peer": line["name"],
      "threads": line["devices"],
      "ratio": line["value"],
      "gate": line["goal"],
      "verdict": line["verdict"],
    }
    for line in last
    if line["compared"]
  ]


def judge(old: dict | None, new: dict, tolerance: float) -> tuple[str, bool]:
  """Returns the table's text for a row, and whether the row is no worse."""
  if old is None:
    return "new", True
  fell = new["ratio"] < (1 - tolerance) * old["ratio"]
  met = old["gate"] is not None and old["ratio"] >= old["gate"]
  missed = met and "MISSED" in new["verdict"]
  change = f"{100 * (new['ratio'] / old['ratio'] - 1):+.0f} %"
  if fell:
    change += ", FELL"
  if missed:
    change += ", gate MISSED"
  return change, not (fell or missed)


def update(stored: Path, there: dict[tuple, dict], rows: list[dict]) -> None:
  """Writes the stored ratios, updated with `rows`, on one sorted line each."""
  for row in rows:
    ratio = float(f"{row['ratio']:.4g}")
    kept = {name: row[name] for name in KEY}
    there[key(row)] = kept | {"ratio": ratio, "gate": row["gate"]}
  lines = [json.dumps(there[own]) for own in sorted(there)]
  stored.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("files", nargs="+", type=Path)
  parser.add_argument("--tolerance", type=float, default=0.2)
  parser.add_argument("--update", action="store_true")
  stored = Path(__file__).with_name("ratios.json")
  parser.add_argument("--stored", type=Path, default=stored)
  own = parser.parse_args()
  rows = [row for path in own.files for row in read(path)]
  there = {}
  if own.stored.exists():
    there = {key(row): row for row in json.loads(own.stored.read_text())}
  if own.update:
    update(own.stored, there, rows)
    return 0
  if not there:
    make = "python benchmarks/check.py --update runs/*.json"
    sys.exit(f"There is no {own.stored.name} yet: make it with `{make}`.")
  timing.header(*COLUMNS)
  good = True
  for row in rows:
    old = there.get(key(row))
    change, as_good = judge(old, row, own.tolerance)
    good &= as_good
    before = f"{old['ratio']:.3g}" if old else "-"
    cells = before, f"{row['ratio']:.3g}", change
    timing.line(row["case"], row["peer"], row["threads"], *cells)
  return int(not good)


if __name__ == "__main__":
  sys.exit(main())
