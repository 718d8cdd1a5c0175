"""`python -m cpeal_jax.export WORKDIR --format=peft --to=DIR`

Exports the adapted model of a run for other programs, as a new directory in one
of these formats:

transformers  the base model with LoRA merged, to load with
              `CLIPModel.from_pretrained`, or after a run with a linear head
              with `Dinov2Model.from_pretrained`
peft          the LoRA weights alone, to load with
              `PeftModel.from_pretrained` on the base model
prompts       the learned prompt contexts and the resulting class embeddings
head          what turns unit image features into logits: class embeddings and
              the logit scale, or the weight and bias of a linear head

Every format has a `classes.json` with the class names, the exact prompts, the
logit scale and digests of the weights and settings.
Exit codes: 0 if the export was written, 2 for a usage or input error.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from safetensors import SafetensorError
from safetensors.numpy import save_file

from cpeal_jax.data.images import processor_settings
from cpeal_jax.errors import InputError, one_of
from cpeal_jax.models import dinov2_weights, hub, naming, weights_out
from cpeal_jax.models.clip import ClipConfig
from cpeal_jax.models.linear import HEAD, LinearClassifier
from cpeal_jax.models.resnet import ResNetConfig
from cpeal_jax.models.tensors import Row, read_tensors
from cpeal_jax.progress import say
from cpeal_jax.run import finished

# Files of the base model that the transformers format copies, if they exist.
COPIED = (
  "config.json",
  "preprocessor_config.json",
  "processor_config.json",
  *hub.TOKENIZER_FILES,
)


def export(
  workdir: str | os.PathLike,
  to: str | os.PathLike,
  *,
  format: str,
  round: int = -1,
) -> None:
  """Exports the model of a round; an export that fails leaves nothing at `to`.

  Args:
    workdir: the run's workdir.
    to: the directory to write, which must not exist or be empty.
    format: `transformers`, `peft`, `prompts` or `head`.
    round: the round to export, counted from 0, or from the end if negative; by
      default the last.

  Raises:
    InputError: the format is unknown or cannot hold the run's model, there is
      no such round, or the directory is not empty or cannot be written.
  """
  one_of("--format", format, WRITERS)
  _free_target(to)
  save(finished.read_round(workdir, round), to, format=format)


def save(own: finished.Finished, to: str | os.PathLike, *, format: str) -> None:
  """Exports the model `own` of a finished round, as `export` does.

  Args:
    own: the finished round, as `finished.read_round` returns it.
    to: the directory to write, which must not exist or be empty.
    format: `transformers`, `peft`, `prompts` or `head`.

  Raises:
    InputError: the format cannot hold the model, or the directory is not empty
      or cannot be written.
  """
  target = _free_target(to)
  fits = formats(own)
  if format not in fits:
    raise InputError(
      f"--format={format} cannot hold this run's model "
      f"({own.config.adapter.kind} on {own.pretrained.weights.name}); choose "
      f"from: {', '.join(fits)}."
    )
  # The temporary directory is named after the target, so that the next export
  # to the same target removes what a killed process left.
  aside = target.parent / f".{target.name}.export"
  try:
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    WRITERS[format](own, aside)
    _write(aside / "classes.json", card(own, format))
    for path in aside.iterdir():
      _to_disk(path)
    os.replace(aside, target)
  # SafetensorError is not a subclass of OSError.
  except (OSError, SafetensorError) as error:
    reason = getattr(error, "strerror", None) or error
    raise InputError(
      f"cannot write {to}: {reason}. Free some space, fix the permissions or "
      "choose another --to."
    ) from error
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def formats(own: finished.Finished) -> tuple[str, ...]:
  """Returns the formats that can hold the model of a finished round.

  transformers has no CLIP with a ResNet, so LoRA on such a CLIP can only be
  exported as a `head`. PEFT finds modules by their names in transformers' code.
  So `peft` needs a base model that transformers can load, which rules out
  OpenCLIP's files and the msgpack files of transformers 4. It also needs module
  names that do not change between versions of transformers, which rules out
  DINOv2.
  """
  model, base = own.classifier.model, own.pretrained
  if isinstance(own.classifier, LinearClassifier):
    return ("head",) if model.lora is None else ("transformers", "head")
  if model.lora is None:
    return ("prompts", "head")
  if isinstance(base.config.vision, ResNetConfig):
    return ("head",)
  known = (base.directory / "config.json").is_file()
  if not known or base.weights.suffix == ".msgpack":
    return ("transformers", "head")
  return ("transformers", "peft", "head")


def card(own: finished.Finished, format: str) -> dict[str, Any]:
  """Returns the content of classes.json.

  It says which class each output belongs to, and from which weights and
  settings the export was made.
  """
  prompts: list[list[str]] = [[] for _ in own.classes]
  about = {}
  if not isinstance(own.classifier, LinearClassifier):
    tokens, learned = own.classifier.tokens, own.classifier.model.prompts
    # Each class has a list of prompts: one, or several with descriptors.
    for text, owner in zip(tokens.texts, tokens.owners, strict=True):
      prompts[owner].append(text)
    about = {
      "descriptor_average": own.classifier.descriptor_average,
      "learned_tokens": learned.tokens if learned else 0,
    }
  return {
    "format": format,
    "classes": list(own.classes),
    "prompts": prompts,
    **about,
    "logit_scale": _logit_scale(own),
    "image_tower": "adapted" if own.classifier.trains_images else "base",
    "base_model": own.pretrained.source,
    "base_sha256": own.pretrained.sha256,
    "config_sha256": own.config_sha256,
    "round": own.number,
  }


def class_embeddings(own: finished.Finished) -> np.ndarray:
  """Computes the class embeddings, float32 [C, D].

  The logits of unit image features f [N, D] are `logit_scale * f @ t.T`, where
  t are these embeddings. They must not be normalized again: with descriptors,
  a class embedding is a mean of unit vectors, which need not be a unit vector.
  """
  embed = jax.jit(own.classifier.class_embeddings)
  return np.array(embed(own.params, own.adapter), np.float32, order="C")


def _rows(own: finished.Finished) -> tuple[Row, ...]:
  """Returns the table that maps our weights to their names in transformers."""
  sizes = own.pretrained.config
  if isinstance(sizes, ClipConfig):
    return naming.key_table(sizes)
  return dinov2_weights.key_table(sizes)


def _transformers(own: finished.Finished, aside: Path) -> None:
  """Writes the base model with LoRA merged into its weights."""
  base, lora = own.pretrained, own.classifier.model.lora
  assert lora is not None
  tensors = read_tensors(base.weights)
  for name in COPIED:
    if (base.directory / name).is_file():
      shutil.copyfile(base.directory / name, aside / name)
  if isinstance(base.config, ClipConfig):
    tensors = weights_out.in_hf(tensors, base.params, base.config)
    if base.preprocessor.name == "open_clip_config.json":
      dtype = str(tensors["logit_scale"].dtype)
      config = weights_out.hf_config(base.config, dtype=dtype)
      _write(aside / "config.json", config)
      settings = processor_settings(own.spec)
      _write(aside / "preprocessor_config.json", settings)
  adapter = jax.device_get(own.adapter)
  merged = weights_out.merged(tensors, base.params, adapter, lora, _rows(own))
  # transformers refuses safetensors files without this entry.
  save_file(merged, aside / "model.safetensors", {"format": "pt"})


def _peft(own: finished.Finished, aside: Path) -> None:
  """Writes the LoRA weights alone, as PEFT stores an adapter."""
  base, lora = own.pretrained, own.classifier.model.lora
  assert lora is not None
  adapter, rows = jax.device_get(own.adapter), _rows(own)
  adapted_modules = weights_out.modules(adapter, rows).values()
  settings = weights_out.peft_config(lora, adapted_modules, base.source)
  _write(aside / "adapter_config.json", settings)
  save_file(
    weights_out.peft_tensors(adapter, rows),
    aside / "adapter_model.safetensors",
    # The digest goes here because PEFT's config has no field for it, and PEFT
    # warns about unknown fields.
    {"format": "pt", "base_sha256": base.sha256},
  )


def _prompts(own: finished.Finished, aside: Path) -> None:
  assert not isinstance(own.classifier, LinearClassifier)
  prompts = own.classifier.model.prompts
  assert prompts is not None
  context = np.array(own.adapter["text"]["context"], np.float32, order="C")
  save_file(
    {
      "context": context,
      "class_embeddings": class_embeddings(own),
      "logit_scale": np.array(_logit_scale(own), np.float32),
    },
    aside / "prompts.safetensors",
  )
  layout = {
    "tokens": prompts.tokens,
    "shared": prompts.shared,
    "position": prompts.position,
    "context": list(context.shape),
  }
  _write(aside / "prompts.json", layout)


def _head(own: finished.Finished, aside: Path) -> None:
  if isinstance(own.classifier, LinearClassifier):
    trained = jax.device_get(own.adapter[HEAD])
    # The constant logit scale is multiplied into the weight W [C, D], so that
    # logits are W f + b.
    weight = np.float32(_logit_scale(own)) * trained["kernel"]
    head = {"weight": weight, "bias": np.asarray(trained["bias"])}
  else:
    head = {
      "class_embeddings": class_embeddings(own),
      "logit_scale": np.array(_logit_scale(own), np.float32),
    }
  save_file(head, aside / "head.safetensors")


# Format -> the function that writes it into a directory. `_prompts` writes the
# learned contexts, `_head` what turns unit image features into logits.
WRITERS: dict[str, Callable[[finished.Finished, Path], None]] = {
  "transformers": _transformers,
  "peft": _peft,
  "prompts": _prompts,
  "head": _head,
}


def _logit_scale(own: finished.Finished) -> float:
  """Returns the factor that turns cosines into logits (exponentiated)."""
  return float(np.exp(own.pretrained.params["logit_scale"]))


def _free_target(to: str | os.PathLike) -> Path:
  """Returns the path of the target; raises InputError unless it is free.

  Free is a local path where there is nothing or an empty directory.
  """
  if "://" in os.fspath(to):
    raise InputError(
      f"--to={to} is not a local path; export to a local directory and copy it"
      " from there."
    )
  target = Path(to).expanduser().resolve()
  if target.is_file() or (target.is_dir() and any(target.iterdir())):
    raise InputError(f"--to={to} is not empty; give a new directory.")
  return target


def _write(path: Path, content: dict[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _to_disk(path: Path) -> None:
  """Flushes a file to the disk."""
  with open(path, "rb") as file:
    os.fsync(file.fileno())


class _Parser(argparse.ArgumentParser):
  """A parser whose errors are InputErrors, without the usage text."""

  def error(self, message: str):
    raise InputError(message)


def run(argv: list[str]) -> int:
  """Parses the command line and exports; returns the exit code 0.

  Raises:
    InputError: the command line is not valid, or as `export`.
  """
  parser = _Parser(
    prog="python -m cpeal_jax.export",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("workdir", metavar="WORKDIR", help="workdir of the run")
  parser.add_argument("--format", required=True, help=", ".join(WRITERS))
  parser.add_argument("--to", required=True, help="a new directory")
  parser.add_argument(
    "--round",
    type=int,
    default=-1,
    help="counted from 0; -1 is the last (default)",
  )
  flags = parser.parse_args(argv[1:])
  export(flags.workdir, flags.to, format=flags.format, round=flags.round)
  say(f"wrote {flags.to}")
  return 0


def main(argv: list[str]) -> int:
  """Runs the command and returns its exit code.

  An input error is printed as one line on stderr, and the code is 2.
  """
  logging.set_verbosity(logging.ERROR)
  try:
    return run(argv)
  except InputError as error:
    sys.stderr.write(f"error: {error}\n")
    return 2


if __name__ == "__main__":
  sys.exit(main(sys.argv))
