"""`python -m cpeal_jax.export WORKDIR --format=peft --to=DIR`: weights out.

The adapted model for other programs, as a new directory:

transformers  the base with LoRA merged, for `CLIPModel.from_pretrained`, or
              `Dinov2Model.from_pretrained` after a run with a linear head
peft          LoRA alone, for `PeftModel.from_pretrained` on the base model
prompts       learned contexts and the class embeddings they give
head          what unit image features are multiplied with: class embeddings
              and logit scale, or a linear head's weight and bias

Each has a `classes.json`: class names, exact prompts, logit scale, digests.
Exit codes: 0 written, 2 usage or input error.
"""

import argparse
import glob
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from safetensors import SafetensorError
from safetensors.numpy import save_file

from cpeal_jax.data.images import processor_settings
from cpeal_jax.data.reading import read_bytes, without_mark
from cpeal_jax.errors import InputError, one_of
from cpeal_jax.models import weights_out
from cpeal_jax.models.tensors import read_tensors
from cpeal_jax.models.tokenizer import TOKENIZER_FILES
from cpeal_jax.progress import say
from cpeal_jax.run import finished

# Part of the name of a folder that an export is written in, and a file in it.
UNFINISHED = "cpeal-export-"
COPIED = (
  "config.json",
  "preprocessor_config.json",
  "processor_config.json",
  *TOKENIZER_FILES,
)


def export(
  workdir: str | os.PathLike,
  to: str | os.PathLike,
  *,
  format: str,
  round: int = -1,
) -> None:
  """Writes a round's model to `to`, which appears whole or not at all.

  Args:
    workdir: of the run.
    to: a directory that is absent or empty.
    format: `transformers`, `peft`, `prompts` or `head`.
    round: counted from 0, or from the end where negative.

  Raises:
    InputError: an unknown format or one the adapter has no place in, no such
      round, or a target that is taken or cannot be written.
  """
  one_of("--format", format, WRITERS)
  _free(to)
  save(finished.read_round(workdir, round), to, format=format)


def save(own: finished.Finished, to: str | os.PathLike, *, format: str) -> None:
  """`export` of a round that has been read."""
  target = _free(to)
  fits = formats(own)
  if format not in fits:
    raise InputError(
      f"--format={format} cannot hold this run's model "
      f"({own.config.adapter.kind} on {own.pretrained.weights.name}); choose "
      f"from: {', '.join(fits)}."
    )
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    # A name that nobody has: a hidden folder beside the target may be the
    # user's.
    aside = Path(
      tempfile.mkdtemp(prefix=f".{target.name}.{UNFINISHED}", dir=target.parent)
    )
  except OSError as error:
    raise InputError(
      f"cannot write {to}: {error.strerror}. Mend the permissions or choose "
      "another --to."
    ) from error
  try:
    aside.chmod(0o755)
    (aside / UNFINISHED).touch()
    WRITERS[format](own, aside)
    _write(aside / "classes.json", card(own, format))
    (aside / UNFINISHED).unlink()
    for path in aside.iterdir():
      os.chmod(path, 0o644)  # safetensors writes files that only we may read.
      _to_disk(path)
    os.replace(aside, target)
  except (OSError, SafetensorError) as error:  # The latter is its own kind.
    reason = getattr(error, "strerror", None) or error
    raise InputError(
      f"cannot write {to}: {reason}. Free some space, mend the permissions or "
      "choose another --to."
    ) from error
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def formats(own: finished.Finished) -> tuple[str, ...]:
  """The formats that can hold a run's model."""
  return own.backbone.formats(own.pretrained, own.classifier.model.lora)


def card(own: finished.Finished, format: str) -> dict[str, Any]:
  """classes.json: what the answers mean, and where they come from."""
  return {
    "format": format,
    "classes": list(own.classes),
    **own.classifier.card(),
    "logit_scale": float(np.exp(own.pretrained.params["logit_scale"])),
    "image_tower": "adapted" if own.classifier.trains_images else "base",
    "base_model": own.pretrained.source,
    "base_sha256": own.pretrained.sha256,
    "config_sha256": own.config_sha256,
    "round": own.number,
  }


def _transformers(own: finished.Finished, aside: Path) -> None:
  base, lora = own.pretrained, own.classifier.model.lora
  assert lora is not None
  tensors = read_tensors(base.weights)
  for name in COPIED:
    if (base.directory / name).is_file():
      # transformers refuses a byte order mark.
      content = without_mark(read_bytes(base.directory / name))
      (aside / name).write_bytes(content)
  settings = processor_settings(own.spec)
  tensors, more = own.backbone.transformers_files(base, tensors, settings)
  for name, content in more.items():
    _write(aside / name, content)
  adapter = jax.device_get(own.adapter)
  merged = weights_out.merged(
    tensors, base.params, adapter, lora, own.backbone.tensor_names(base)
  )
  # transformers refuses safetensors that do not say what wrote them.
  save_file(merged, aside / "model.safetensors", {"format": "pt"})


def _peft(own: finished.Finished, aside: Path) -> None:
  base, lora = own.pretrained, own.classifier.model.lora
  assert lora is not None
  adapter = jax.device_get(own.adapter)
  rows = own.backbone.tensor_names(base)
  carry = weights_out.modules(adapter, rows).values()
  settings = weights_out.peft_config(lora, carry, base.source)
  _write(aside / "adapter_config.json", settings)
  save_file(
    weights_out.peft_tensors(adapter, rows),
    aside / "adapter_model.safetensors",
    # PEFT has no field for it, and warns of fields it does not know.
    {"format": "pt", "base_sha256": base.sha256},
  )


def _prompts(own: finished.Finished, aside: Path) -> None:
  prompts = own.classifier.model.prompts
  context = np.array(own.adapter["text"]["context"], np.float32, order="C")
  head = own.classifier.head(own.params, own.adapter)
  save_file({"context": context, **head}, aside / "prompts.safetensors")
  about = {
    "tokens": prompts.tokens,
    "shared": prompts.shared,
    "position": prompts.position,
    "context": list(context.shape),
  }
  _write(aside / "prompts.json", about)


def _head(own: finished.Finished, aside: Path) -> None:
  head = own.classifier.head(own.params, own.adapter)
  save_file(head, aside / "head.safetensors")


WRITERS: dict[str, Callable[[finished.Finished, Path], None]] = {
  "transformers": _transformers,
  "peft": _peft,
  "prompts": _prompts,
  "head": _head,
}


def _sweep(target: Path) -> None:
  """Removes what killed exports to the same target left half-written."""
  for folder in target.parent.glob(f".{glob.escape(target.name)}.*"):
    # The mark says that the folder is ours.
    if UNFINISHED in folder.name and (folder / UNFINISHED).is_file():
      shutil.rmtree(folder, ignore_errors=True)


def _free(to: str | os.PathLike) -> Path:
  """The target's path; refuses one that holds anything."""
  if "://" in os.fspath(to):
    raise InputError(f"--to={to}: give a local directory, and copy it.")
  target = Path(to).expanduser().resolve()
  if target.is_file() or (target.is_dir() and any(target.iterdir())):
    raise InputError(f"--to={to} is not empty; give a new directory.")
  return target


def _write(path: Path, content: dict[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _to_disk(path: Path) -> None:
  with open(path, "rb") as file:
    os.fsync(file.fileno())


class _Parser(argparse.ArgumentParser):
  def error(self, message: str):  # argparse would print the usage as well.
    raise InputError(message)


def run(argv: list[str]) -> int:
  """One export; returns the exit code."""
  parser = _Parser(
    prog="python -m cpeal_jax.export",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("workdir", metavar="WORKDIR", help="a finished run's")
  parser.add_argument("--format", required=True, help=", ".join(WRITERS))
  parser.add_argument("--to", required=True, help="a new directory")
  parser.add_argument(
    "--round", type=int, default=-1, help="from 0; -1 is the last (default)"
  )
  own = parser.parse_args(argv[1:])
  export(own.workdir, own.to, format=own.format, round=own.round)
  say(f"wrote {own.to}")
  return 0


def main(argv: list[str]) -> int:
  """`run`, with errors a user can cause as one line on stderr."""
  logging.set_verbosity(logging.ERROR)
  try:
    return run(argv)
  except InputError as error:
    sys.stderr.write(f"error: {error}\n")
    return 2


if __name__ == "__main__":
  sys.exit(main(sys.argv))
