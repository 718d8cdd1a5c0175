"""Writes the adapted model of a run for other programs: `cpeal export`.

  cpeal export WORKDIR --format=peft --to=DIR

The formats are:

transformers  the base model with LoRA merged into its weights, for
              `from_pretrained` of `CLIPModel` or `SiglipModel`, or after a run
              with a linear head of `Dinov2Model` or `DINOv3ViTModel`
peft          LoRA alone, for `PeftModel.from_pretrained` on the base model
prompts       the learned contexts, and the class embeddings made with them
head          the tensors that turn unit image features into logits: class
              embeddings and logit scale, or weight and bias of a linear head

Each directory has a `classes.json` with class names, exact prompts, logit scale
and digests. Exit codes: 0 written, 2 wrong usage or input.
"""

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
from safetensors import SafetensorError
from safetensors.numpy import save_file

from cpeal_jax import command_line
from cpeal_jax.data.images import processor_settings
from cpeal_jax.data.reading import read_bytes, without_mark
from cpeal_jax.errors import FINISHED, InputError, one_of
from cpeal_jax.models import weights_out
from cpeal_jax.models.tensors import read_tensors
from cpeal_jax.models.tokenizer import TOKENIZER_FILES
from cpeal_jax.progress import say
from cpeal_jax.run import finished

# An export is written into a hidden folder, which is then renamed. Its name
# contains this text, and it holds a file of this name until it is complete.
UNFINISHED = "cpeal-export-"
# Files that the format `transformers` copies from the base model.
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
  """Writes a round's model to the directory `to`, all of it or nothing.

  Args:
    workdir: the workdir of the run.
    to: a local directory that is absent or empty.
    format: `transformers`, `peft`, `prompts` or `head`.
    round: number of the round from 0; a negative number counts from the end.

  Raises:
    InputError: the format is unknown or cannot hold the run's adapter, there is
      no such round, or `to` is not empty or cannot be written.
  """
  one_of("--format", format, WRITERS)
  _free_target(to)
  save(finished.read_round(workdir, round), to, format=format)


def save(
  trained: finished.Finished, to: str | os.PathLike, *, format: str
) -> None:
  """Does what `export` does, for a round that has already been read.

  Args:
    trained: the result of `finished.read_round`.
    to: as in `export`.
    format: as in `export`.

  Raises:
    InputError: as in `export`.
  """
  target = _free_target(to)
  fits = formats(trained)
  if format not in fits:
    raise InputError(
      f"--format={format} cannot hold this run's model "
      f"({trained.config.adapter.kind} on {trained.pretrained.weights.name}); "
      f"choose from: {', '.join(fits)}."
    )
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(target)
    # The hidden folder gets a name that is not in use, since an existing hidden
    # folder may be the user's.
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
    WRITERS[format](trained, aside)
    _write(aside / "classes.json", card(trained, format))
    (aside / UNFINISHED).unlink()
    for path in aside.iterdir():
      os.chmod(path, 0o644)  # safetensors writes files that only we may read.
      _to_disk(path)
    os.replace(aside, target)
  # A SafetensorError is not an OSError.
  except (OSError, SafetensorError) as error:
    reason = getattr(error, "strerror", None) or error
    raise InputError(
      f"cannot write {to}: {reason}. Free some space, mend the permissions or "
      "choose another --to."
    ) from error
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def formats(trained: finished.Finished) -> tuple[str, ...]:
  """Returns the formats that can hold the trained model."""
  model = trained.classifier.model
  fits = trained.backbone.formats(trained.pretrained, model.lora)
  # A CLIP with a linear head has neither LoRA nor contexts.
  learns_contexts = getattr(model, "prompts", None) is not None
  return tuple(name for name in fits if name != "prompts" or learns_contexts)


def card(trained: finished.Finished, format: str) -> dict[str, Any]:
  """Returns the content of classes.json.

  It says what the model's outputs mean, and which run and which base weights
  the model comes from.
  """
  return {
    "format": format,
    "classes": list(trained.classes),
    **trained.classifier.card(),
    "logit_scale": float(np.exp(trained.pretrained.params["logit_scale"])),
    # Divide logits by it for calibrated probabilities. It is null for a run of
    # a version that did not record it.
    "temperature": trained.temperature,
    "image_tower": "adapted" if trained.classifier.trains_images else "base",
    "base_model": trained.pretrained.source,
    "base_sha256": trained.pretrained.sha256,
    "config_sha256": trained.config_sha256,
    "round": trained.number,
  }


def _transformers(trained: finished.Finished, aside: Path) -> None:
  base, lora = trained.pretrained, trained.classifier.model.lora
  assert lora is not None
  tensors = read_tensors(base.weights)
  for name in COPIED:
    if (base.directory / name).is_file():
      # transformers refuses a byte order mark.
      content = without_mark(read_bytes(base.directory / name))
      (aside / name).write_bytes(content)
  settings = processor_settings(trained.spec)
  tensors, more = trained.backbone.transformers_files(base, tensors, settings)
  for name, content in more.items():
    if isinstance(content, bytes):
      (aside / name).write_bytes(content)
    else:
      _write(aside / name, content)
  adapter = jax.device_get(trained.adapter)
  merged = weights_out.merged(
    tensors, base.params, adapter, lora, trained.backbone.tensor_names(base)
  )
  # transformers refuses a safetensors file whose metadata has no `format`.
  save_file(merged, aside / "model.safetensors", {"format": "pt"})


def _peft(trained: finished.Finished, aside: Path) -> None:
  base, lora = trained.pretrained, trained.classifier.model.lora
  assert lora is not None
  adapter = jax.device_get(trained.adapter)
  rows = trained.backbone.tensor_names(base)
  modules = weights_out.modules(adapter, rows).values()
  settings = weights_out.peft_config(lora, modules, base.source)
  _write(aside / "adapter_config.json", settings)
  save_file(
    weights_out.peft_tensors(adapter, rows),
    aside / "adapter_model.safetensors",
    # The digest is metadata, since PEFT warns of unknown fields in its config.
    {"format": "pt", "base_sha256": base.sha256},
  )


def _prompts(trained: finished.Finished, aside: Path) -> None:
  prompts = trained.classifier.model.prompts
  context = np.array(trained.adapter["text"]["context"], np.float32, order="C")
  head = trained.classifier.head(trained.params, trained.adapter)
  save_file({"context": context, **head}, aside / "prompts.safetensors")
  about = {
    "tokens": prompts.tokens,
    "shared": prompts.shared,
    "position": prompts.position,
    "context": list(context.shape),
  }
  _write(aside / "prompts.json", about)


def _head(trained: finished.Finished, aside: Path) -> None:
  head = trained.classifier.head(trained.params, trained.adapter)
  save_file(head, aside / "head.safetensors")


WRITERS: dict[str, Callable[[finished.Finished, Path], None]] = {
  "transformers": _transformers,
  "peft": _peft,
  "prompts": _prompts,
  "head": _head,
}


def _remove_unfinished(target: Path) -> None:
  """Removes the hidden folders that killed exports to this target left."""
  for folder in target.parent.glob(f".{glob.escape(target.name)}.*"):
    # A hidden folder without the file `UNFINISHED` may be the user's.
    if UNFINISHED in folder.name and (folder / UNFINISHED).is_file():
      shutil.rmtree(folder, ignore_errors=True)


def _free_target(to: str | os.PathLike) -> Path:
  """Returns the absolute path of the target, which must be absent or empty.

  Raises:
    InputError: the target is a file, a directory that is not empty, or the
      address of a bucket.
  """
  if "://" in os.fspath(to):
    raise InputError(
      f"--to={to} is not local; export to a local directory, and copy that."
    )
  target = Path(to).expanduser().resolve()
  if target.is_file() or (target.is_dir() and any(target.iterdir())):
    raise InputError(f"--to={to} is not empty; give a new directory.")
  return target


def _write(path: Path, content: dict[str, Any]) -> None:
  text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
  path.write_text(text, encoding="utf-8")


def _to_disk(path: Path) -> None:
  with open(path, "rb") as file:
    os.fsync(file.fileno())


def run(argv: list[str]) -> int:
  """Writes the export that the arguments ask for; returns the exit code."""
  parser = command_line.Parser("cpeal export", __doc__)
  parser.add_argument("workdir", metavar="WORKDIR", help="workdir of a run")
  parser.add_argument("--format", required=True, help=", ".join(WRITERS))
  parser.add_argument("--to", required=True, help="a new or empty directory")
  command_line.add_round(parser)
  options = parser.parse_args(argv[1:])
  export(
    options.workdir, options.to, format=options.format, round=options.round
  )
  say(f"wrote {options.to}")
  return FINISHED


def main(argv: list[str]) -> int:
  """Calls `run`; prints errors that a user can cause as one line on stderr."""
  return command_line.guarded(run, argv)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
