"""Keeps what finished runs of `anchored.py` measured, beside the code.

  python experiments/records.py --out=runs/anchored

Workdirs are large and are deleted one day; a table in the docs should not have
to be believed. This script adds every finished run below `--out` to
`experiments/records/anchored.csv`, one line a round, in the place of what the
file says of the same run. `anchored_table.py` reads the file where it finds no
workdir, and `anchored.py` does not repeat a run that it holds.
"""

import argparse
import csv
import json
import re
from pathlib import Path

RECORDS = Path(__file__).parent / "records" / "anchored.csv"
ROUNDS = 10
RUN = ("data", "adapter", "method", "seed", "pool")
MEASURED = ("accuracy", "val_accuracy", "worst_class", "nll", "ece")
COLUMNS = (*RUN, "round", *MEASURED)
# data, adapter, method, seed and pool, as text; names as in a workdir's path.
Key = tuple[str, ...]


def key_of(folder: Path) -> Key:
  """Returns what the path of a workdir says: .../DATA/ADAPTER/METHOD/seedS.P.

  Raises:
    ValueError: if the path is not one of `anchored.workdir`.
  """
  found = re.fullmatch(r"seed(\d+)(?:\.(\d+))?", folder.name)
  if not found:
    raise ValueError(f"{folder}: the name must be seedS or seedS.P")
  return (*folder.parts[-4:-1], found[1], found[2] or "0")


def read_workdir(folder: Path) -> list[dict]:
  """Returns the rows of a finished run by round, and [] for any other."""
  path = folder / "metrics.jsonl"
  if not path.exists():
    return []
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  rows.sort(key=lambda row: row["round"])
  return rows if rows and rows[-1]["round"] == ROUNDS - 1 else []


def read_records(path: Path = RECORDS) -> dict[Key, list[dict]]:
  """Returns the rows of every run in the file, by round; {} without a file."""
  runs: dict[Key, list[dict]] = {}
  if path.exists():
    with open(path, newline="") as file:
      for line in csv.DictReader(file):
        row = {name: float(line[name]) for name in MEASURED if line[name]}
        key = tuple(line[name] for name in RUN)
        runs.setdefault(key, []).append({"round": int(line["round"]), **row})
  return runs


def write_records(runs: dict[Key, list[dict]], path: Path = RECORDS) -> None:
  """Writes runs in the order of their keys, numbers to seven digits."""
  path.parent.mkdir(exist_ok=True)
  with open(path, "w", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for key in sorted(runs, key=lambda k: (*k[:3], int(k[3]), int(k[4]))):
      for row in runs[key]:
        cells = [f"{row[m]:.7g}" if m in row else "" for m in MEASURED]
        writer.writerow([*key, row["round"], *cells])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=Path, default=Path("runs/anchored"))
  out = parser.parse_args().out
  found = {
    key_of(path.parent): rows
    for path in out.glob("*/*/*/seed*/metrics.jsonl")
    if (rows := read_workdir(path.parent))
  }
  write_records(read_records() | found)
  print(f"{len(found)} finished runs of {out} are in {RECORDS}")


if __name__ == "__main__":
  main()
