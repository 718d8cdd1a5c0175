"""Altered files and odd values for every parser, by the thousand.

  python benchmarks/reliability/fuzz.py --tries=10000 --seed=1
  python benchmarks/reliability/fuzz.py --tries=500 --only=split_json,folders

Each kind below makes a small valid input, alters it at random, gives it to the
parser and looks at the answer. An answer is right if it is an InputError of one
line, or if it equals what an independent reading of the altered input says. The
table counts what was tried, and what went wrong:

  tracebacks  an exception that is no InputError, or a message of many lines
  hangs       longer than 10 s
  lost        a file outside the folder that may be written was changed
  nonsense    accepted with another class, image or row count than was put there

The exit code is 1 if anything did. `--keep=DIR` keeps the inputs that did.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import posixpath
import random
import shutil
import signal
import sys
import tempfile
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from altered import altered_bytes, altered_json

from cpeal_jax import config as config_lib
from cpeal_jax import quickstart
from cpeal_jax.config import check
from cpeal_jax.data import (
  class_names,
  coop,
  fiftyone,
  folders,
  huggingface,
  lists,
  manifest,
  pools,
)
from cpeal_jax.data.images import decode, image_spec
from cpeal_jax.errors import InputError
from cpeal_jax.models import text, weights
from cpeal_jax.models.tensors import read_tensors
from cpeal_jax.storage import files, record, results, workdir

LIMIT_SECONDS = 10
GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
# Values that a person, a program or a cut file may put in place of another.
ODD = (
  None,
  True,
  -1,
  0,
  1e9,
  10**30,
  -0.5,
  float("nan"),
  float("inf"),
  "",
  "text",
  "\x00",
  "../../etc/passwd",
  "a\rb\nc",
  "ä" * 300,
  [],
  [1, [2, [3]]],
  {},
  {"a": {"b": None}},
)


class Nonsense(AssertionError):
  """The parser accepted something else than was put there."""


class Hang(BaseException):
  """The parser took too long; no handler of the product may catch it."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
  """Raises `Hang` in the block after so many seconds."""

  def ring(*_):
    raise Hang

  before = signal.signal(signal.SIGALRM, ring)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# --- Alterations


odd_json = functools.partial(altered_json, odd=ODD)


def picture(rng: random.Random, path: Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.frombuffer(rng.randbytes(8 * 8 * 3), np.uint8).reshape(8, 8, 3)
  Image.fromarray(pixels).save(path)


# --- Kinds: each raises what the parser raises, or Nonsense


def milder(rng: random.Random, entries: dict) -> bytes:
  """The same split file as another program, system or person may write it."""
  rows = [(split, row) for split in entries for row in entries[split]]
  rng.shuffle(rows)
  if rng.random() < 0.3:  # The first three of each class stay.
    label = rng.randrange(3)
    some = [at for at, (_, row) in enumerate(rows) if row[1] == label]
    del rows[some[-1]]
  moved = rng.randrange(len(rows)) if rng.random() < 0.3 else None
  written: dict = {"train": [], "val": [], "test": []}
  for at, (split, (path, label, name)) in enumerate(rows):
    if rng.random() < 0.3:
      path = path.replace("/", "\\")
    if rng.random() < 0.2:
      path = rng.choice(("./", ".\\", ".//")) + path
    if rng.random() < 0.2:
      path = unicodedata.normalize("NFD", path)
    written["train" if at == moved else split].append([path, label, name])
  if rng.random() < 0.3:
    written["info"] = rng.choice(ODD)
  layout = rng.choice((None, 1, "\t"))
  text = json.dumps(written, indent=layout, ensure_ascii=rng.random() < 0.5)
  return (text + rng.choice(("", "\n", "\r\n", "  "))).encode()


def split_json(rng: random.Random, folder: Path) -> None:
  """CoOp's split file, altered as JSON, as bytes, or in its spelling alone."""
  names = ("cat", "dog", "sea läke")
  entries: dict = {"train": [], "val": [], "test": []}
  for split, listed in entries.items():
    for i in range(rng.randint(3, 6)):
      path = f"{names[i % 3]}/{split}{i}.png"
      picture(rng, folder / "images" / path)
      listed.append([path, i % 3, names[i % 3]])
  source = folder / "split_zhou_X.json"
  mild = rng.random() < 0.5
  if mild:
    text = milder(rng, entries)
  elif rng.random() < 0.7:
    text = json.dumps(odd_json(rng, entries)).encode()
  else:
    text = altered_bytes(rng, json.dumps(entries).encode())
  if rng.random() < 0.1:
    text = b"\xef\xbb\xbf" + text
  source.write_bytes(text)
  try:
    data = coop.load_coop(folder)
  except InputError as error:
    if mild:
      raise Nonsense(f"a good split file is refused: {error}") from error
    raise
  want = json.loads(text.decode("utf-8-sig"))
  for split in data.splits:
    got = dict(zip(split.ids, split.labels.tolist(), strict=True))
    asked = {plain_path(row[0]): row[1] for row in want[split.name]}
    if got != {f"images/{path}": label for path, label in asked.items()}:
      raise Nonsense(f"{split.name} has {got}, listed are {asked}")
  listed = [entry for split in entries for entry in want[split]]
  if len(data.classes) != len({label for _, label, _ in listed}):
    raise Nonsense(f"{len(data.classes)} classes")


def plain_path(path: str) -> str:
  """A split file's path as the file is called on the disk."""
  return posixpath.normpath(
    unicodedata.normalize("NFC", path.replace("\\", "/"))
  )


def class_folders(rng: random.Random, folder: Path) -> None:
  """Class folders with odd names, odd files and odd split names."""
  splits = rng.choice(
    (
      ("",),
      ("train", "test"),
      ("Train", "Test"),
      ("training", "validation", "testing"),
      ("train", "val", "test"),
      ("train", "dev", "eval"),
      ("TRAIN", "valid"),
    )
  )
  labels = rng.sample(
    ("cat", "Sea Lake", "AnnualCrop", "éa", "a,b", 'q"r', "x y", "tr_ain"), 3
  )
  want: dict[tuple[str, str], int] = {}
  for split in splits:
    for label in labels:
      count = rng.randint(1, 4)
      for i in range(count):
        suffix = rng.choice((".png", ".PNG", ".jpg", ".bmp"))
        picture(rng, folder / split / label / f"{split}{i}{suffix}")
      want[split, label] = count
  for junk in rng.sample(("Thumbs.db", ".DS_Store", "notes.txt", "a.mp4"), 2):
    (folder / splits[0] / labels[0] / junk).write_bytes(b"x")
  for name in rng.sample(("@eaDir", "__MACOSX", ".ipynb_checkpoints"), 1):
    picture(rng, folder / splits[0] / name / "thumb.png")
  data = folders.load_folders(folder)
  if len(data.classes) != len(labels):
    raise Nonsense(f"classes {data.classes} of {labels} below {splits}")
  total = sum(len(split) for split in data.splits)
  if total != sum(want.values()):
    raise Nonsense(f"{total} images of {sum(want.values())} below {splits}")


def names_file(rng: random.Random, folder: Path) -> None:
  """A file of class names, altered."""
  plain = "cat,tabby cat\ndog,a dog\nsea,Sea Lake\n"
  as_json = json.dumps({"cat": "tabby cat", "dog": "a dog"})
  path = folder / "names.txt"
  path.write_bytes(altered_bytes(rng, rng.choice((plain, as_json)).encode()))
  for label, name in class_names.read_class_names(path).items():
    if not label or not name or not (label + name).isprintable():
      raise Nonsense(f"{label!r} is called {name!r}")


def image_list(rng: random.Random, folder: Path) -> None:
  """A list of images in CSV, JSONL or Parquet, altered."""
  rows = []
  for i in range(rng.randint(2, 6)):
    path = f"{rng.choice('ab')}/{i}.png"
    picture(rng, folder / path)
    label = ("cat", "sea läke", "")[i % 3]
    rows.append({"path": path, "label": label, "split": "train"})
  suffix = rng.choice(lists.SUFFIXES)
  source = folder / f"list{suffix}"
  if suffix == ".parquet":
    pq.write_table(pa.Table.from_pylist(rows), source)
  elif suffix == ".jsonl":
    if rng.random() < 0.5:
      rows = [odd_json(rng, row) for row in rows]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
  else:
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    source.write_text("\n".join(lines))
  if suffix != ".jsonl" or rng.random() < 0.5:
    source.write_bytes(altered_bytes(rng, source.read_bytes()))
  data = manifest.load_manifest(
    folder, list_file=source.name, shares=(1.0, 0.0, 0.0)
  )
  refuse_outside(data, folder)


def own_exports(rng: random.Random, folder: Path) -> None:
  """What FiftyOne exports and Hugging Face's datasets save, altered."""
  if rng.random() < 0.5:
    for stem in "abcd":
      picture(rng, folder / f"data/{stem}.png")
    labels = {"a": 0, "b": 1, "c": None}
    content = odd_json(rng, {"classes": ["cat", "dog"], "labels": labels})
    (folder / "labels.json").write_text(json.dumps(content))
    refuse_outside(fiftyone.load_fiftyone(folder), folder)
    return
  copy = folder / "saved"
  shutil.copytree(GOLDEN / "saved_dataset", copy)
  path = copy / rng.choice(
    (
      *("dataset_dict.json", "train/state.json", "train/dataset_info.json"),
      *("train/data-00001-of-00002.arrow", "test/data-00000-of-00001.arrow"),
    )
  )
  if path.suffix == ".json" and rng.random() < 0.7:
    content = odd_json(rng, json.loads(path.read_text()))
    path.write_text(json.dumps(content))
  else:
    path.write_bytes(altered_bytes(rng, path.read_bytes()))
  data = huggingface.load_saved(copy)
  if not set(data.classes) or len(data.train) > 20:
    raise Nonsense(f"{len(data.train)} images, classes {data.classes}")


def refuse_outside(data: pools.Dataset, folder: Path) -> None:
  """Raises Nonsense if an image is not one of the files in the folder."""
  there = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
  for split in data.splits:
    if other := set(split.ids) - there:
      raise Nonsense(f"{min(other)!r} is no file in the folder")
    if len(split) and max(split.labels) >= len(data.classes):
      raise Nonsense(
        f"label {max(split.labels)} of {len(data.classes)} classes"
      )


def pictures(rng: random.Random, folder: Path) -> None:
  """Images of several formats, altered."""
  suffix = rng.choice((".png", ".jpg", ".bmp", ".gif", ".tif", ".webp"))
  path = folder / f"a{suffix}"
  picture(rng, path)
  image = decode(altered_bytes(rng, path.read_bytes()))
  if image.mode != "RGB":
    raise Nonsense(f"an image of mode {image.mode}")


def clip_config(rng: random.Random, folder: Path) -> None:
  """config.json of a CLIP: it loads with the sizes it states, or is refused."""
  source = quickstart.CLIP / "config.json"
  _copy_clip(folder)
  content = odd_json(rng, json.loads(source.read_text()))
  (folder / "config.json").write_text(json.dumps(content))
  weights.load_pretrained(str(folder))


def clip_files(rng: random.Random, folder: Path) -> None:
  """The tokenizer, the preprocessor or the weights of a CLIP, altered."""
  _copy_clip(folder)
  name = rng.choice(
    (
      "tokenizer.json",
      "tokenizer_config.json",
      "preprocessor_config.json",
      "model.safetensors",
      "config.json",
    )
  )
  path = folder / name
  if rng.random() < 0.1:
    path.unlink()
  elif name.endswith(".json") and rng.random() < 0.5:
    content = odd_json(rng, json.loads(path.read_text()))
    path.write_text(json.dumps(content))
  else:
    data = path.read_bytes()
    # The header of the weights is what can be misread.
    head, rest = data[:4000], data[4000:]
    path.write_bytes(altered_bytes(rng, head) + rest)
  clip = weights.load_pretrained(str(folder))
  image_spec(clip.preprocessor)
  # As a run does it. A tokenizer that lost a part may know no word.
  names = ("0", "7")
  texts = text.from_template(names, "a photo of a {}.")
  tokens = text.tokenize(texts, clip.tokenizer, positions=clip.config.positions)
  text.refuse_alike(tokens, names)
  if (tokens.ids[0] == tokens.ids[1]).all():
    raise Nonsense("two prompts with the same tokens")


def tensors(rng: random.Random, folder: Path) -> None:
  """A safetensors or msgpack file of three tensors, altered."""
  from flax import serialization

  values = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones(4, np.float16),
    "c": np.zeros((), np.int32),
  }
  path = folder / rng.choice(("model.safetensors", "flax_model.msgpack"))
  if path.suffix == ".safetensors":
    save_file(values, path)
  else:
    path.write_bytes(serialization.msgpack_serialize(values))
  path.write_bytes(altered_bytes(rng, path.read_bytes()))
  for value in read_tensors(path).values():
    np.asarray(value)


def overrides(rng: random.Random, folder: Path) -> None:
  """A random value for a random key: accepted only inside its range."""
  del folder
  key = rng.choice(config_lib.KEYS)
  value = rng.choice((*ODD, rng.random() * 10, rng.randint(-9, 9), "random"))
  check.check_value(key, value)
  if isinstance(value, float) and not np.isfinite(value):
    raise Nonsense(f"{key.name}={value}")


def workdir_files(rng: random.Random, folder: Path) -> None:
  """A finished workdir with one of its files altered."""
  root = folder / "run"
  want = _finished(root)
  chosen = [path for path in sorted(root.rglob("*")) if path.is_file()]
  path = rng.choice(chosen)
  data = path.read_bytes()
  if path.suffix in (".json", ".jsonl") and rng.random() < 0.5:
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines)) if path.suffix == ".jsonl" else 0
    body = lines[at] if path.suffix == ".jsonl" else data.decode()
    new = json.dumps(odd_json(rng, json.loads(body)))
    lines = [*lines[:at], new, *lines[at + 1 :]]
    path.write_text("\n".join(lines) + "\n" if len(lines) > 1 else new)
  elif rng.random() < 0.1:
    path.unlink()
  else:
    path.write_bytes(altered_bytes(rng, data))
  got = _read(root)
  # A lost or torn marker may cost the last round, never change an answer.
  for part in ("labels", "selected"):
    for key, value in got[part].items():
      if want[part].get(key) != value:
        raise Nonsense(f"{path.name}: {part} {key} is {value!r}")


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
  "split_json": split_json,
  "folders": class_folders,
  "class_names": names_file,
  "image_list": image_list,
  "own_exports": own_exports,
  "pictures": pictures,
  "clip_config": clip_config,
  "clip_files": clip_files,
  "tensors": tensors,
  "overrides": overrides,
  "workdir": workdir_files,
}
# Loading a CLIP takes a hundred times as long as reading a file of names.
SLOW = {"clip_config": 0.2, "clip_files": 0.2}


def _copy_clip(folder: Path) -> None:
  for path in quickstart.CLIP.iterdir():
    shutil.copy(path, folder / path.name)


def _finished(root: Path) -> dict:
  """Two finished rounds of three picks; returns what they hold."""
  config = {"seed": 1, "rounds": 2}
  ids = [f"i{i}" for i in range(9)]
  workdir.open_workdir(
    root,
    config=config,
    defaults=config,
    run_keys=("rounds",),
    environment={"classes": ["a", "b"]},
    manifest={
      "id": ids,
      "path": ids,
      "sha256": ids,
      "split": ["train"] * 9,
      "status": ["ok"] * 9,
    },
  )
  results.write_metrics(root, [{"round": -1, "labeled": 0, "accuracy": 0.5}])
  for round_ in range(2):
    picks = ids[round_ * 3 : round_ * 3 + 3]
    record.write_selection(
      root,
      round_,
      selection={"id": picks, "path": picks, "rank": [0, 1, 2]},
      scores={"id": ids, "entropy": np.arange(9, dtype=np.float32)},
    )
    record.write_labels(
      root, round_, picks, ["a", "b", "a"], sources=["simulated"] * 3
    )
    row = {"round": round_, "labeled": 3 * round_ + 3, "accuracy": 0.5}
    results.write_metrics(root, [row])
    record.mark_done(root, round_)
  return _read(root)


def _read(root: Path) -> dict:
  workdir.read_config(root)
  record.restore_selected(root)
  done = record.finished_rounds(root)
  results.read_metrics(root)
  files.read_json(root / "environment.json")
  files.read_parquet(root / "manifest.parquet")
  return {
    "labels": record.read_labels(root, range(done)),
    "selected": {r: record.selected(root, r) for r in range(done)},
  }


# --- The campaign


@dataclasses.dataclass
class Count:
  tried: int = 0
  refused: int = 0
  tracebacks: int = 0
  hangs: int = 0
  lost: int = 0
  nonsense: int = 0


def state_of(folder: Path) -> str:
  """A digest of every file below a folder that no parser may touch."""
  digest = hashlib.sha256()
  for path in sorted(folder.rglob("*")):
    digest.update(str(path.relative_to(folder)).encode())
    if path.is_file():
      digest.update(path.read_bytes())
  return digest.hexdigest()


def attempt(kind: str, seed: int, count: Count, keep: Path | None) -> None:
  """One altered input of a kind; what went wrong is counted and shown."""
  with tempfile.TemporaryDirectory() as scratch:
    beside = Path(scratch) / "beside"
    beside.mkdir()
    (beside / "note.txt").write_text("mine")
    folder = Path(scratch) / "input"
    folder.mkdir()
    before = state_of(beside)
    wrong = ""
    try:
      with limited(LIMIT_SECONDS):
        KINDS[kind](random.Random(seed), folder)
    except InputError as error:
      count.refused += 1
      if "\n" in str(error) or "\r" in str(error):
        count.tracebacks += 1
        wrong = f"a message of several lines: {str(error)[:300]!r}"
    except Hang:
      count.hangs += 1
      wrong = f"longer than {LIMIT_SECONDS} s"
    except Nonsense as error:
      count.nonsense += 1
      wrong = f"nonsense: {error}"
    except Exception:
      count.tracebacks += 1
      wrong = traceback.format_exc()
    count.tried += 1
    if state_of(beside) != before:
      count.lost += 1
      wrong += " changed a file beside the input"
    if wrong:
      sys.stdout.write(f"--- {kind}, seed {seed}: {wrong.strip()}\n")
      if keep:
        shutil.copytree(folder, keep / f"{kind}-{seed}", dirs_exist_ok=True)


def campaign(
  kinds: list[str], tries: int, seed: int, keep: Path | None = None
) -> dict[str, Count]:
  """`tries` attempts, shared out over the kinds."""
  shares = {kind: SLOW.get(kind, 1.0) for kind in kinds}
  counts = {}
  for kind in kinds:
    counts[kind] = Count()
    number = max(1, round(tries * shares[kind] / sum(shares.values())))
    for i in range(number):
      attempt(kind, seed * 1_000_003 + i, counts[kind], keep)
  return counts


def table(counts: dict[str, Count]) -> str:
  """A Markdown table: a row for each kind, and their sum."""
  names = [field.name for field in dataclasses.fields(Count)]
  total = Count(*(sum(getattr(c, n) for c in counts.values()) for n in names))
  lines = [
    f"| kind | {' | '.join(names)} |",
    "| --- |" + " ---: |" * len(names),
  ]
  for kind, count in (*counts.items(), ("all", total)):
    cells = (f"{getattr(count, name):,}" for name in names)
    lines.append(f"| {kind} | {' | '.join(cells)} |")
  return "\n".join(lines)


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--tries", type=int, default=10_000)
  parser.add_argument("--seed", type=int, default=1)
  parser.add_argument("--only", default=",".join(KINDS), help="kinds, by comma")
  parser.add_argument("--keep", type=Path, help="folder for what went wrong")
  flags = parser.parse_args(argv)
  counts = campaign(flags.only.split(","), flags.tries, flags.seed, flags.keep)
  sys.stdout.write(table(counts) + "\n")
  bad = ("tracebacks", "hangs", "lost", "nonsense")
  return int(any(getattr(c, name) for c in counts.values() for name in bad))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
