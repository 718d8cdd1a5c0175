"""Finds a checkpoint's files: in a directory, on the hub or in its cache."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from cpeal_jax.errors import InputError

TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "vocab.json",
  "merges.txt",
  "special_tokens_map.json",
)


@dataclasses.dataclass(frozen=True)
class Layout:
  """The file names in one of the forms in which a model is published."""

  weights: str
  config: str = "config.json"
  preprocessor: str = "preprocessor_config.json"

  @property
  def files(self) -> tuple[str, ...]:
    """The distinct names; one file may be both config and preprocessor."""
    return tuple(dict.fromkeys((self.config, self.weights, self.preprocessor)))


# In order of preference.
LAYOUTS = (
  Layout("model.safetensors"),
  Layout(
    "open_clip_model.safetensors",
    "open_clip_config.json",
    "open_clip_config.json",
  ),
  Layout("flax_model.msgpack"),
  Layout("pytorch_model.bin"),
)
# Used only if there is no other file, and no conversion of it on the hub.
PICKLED = LAYOUTS[-1]
SMALL_FILES = (
  "config.json",
  "preprocessor_config.json",
  "open_clip_config.json",
  *TOKENIZER_FILES,
)
# The author and title of the pull requests in which the hub itself converts
# weights to safetensors. Anyone may open a pull request, so those of other
# authors are not used.
CONVERTER = ("SFconvertbot", "Adding `safetensors` variant of this model")


def choose(directory: Path, names: Iterable[str]) -> Layout | None:
  """Returns the preferred layout of which all files are there, or None.

  timm's repositories hold OpenCLIP's files beside a config.json and a
  model.safetensors of the image tower alone. So if OpenCLIP's files are there,
  a config.json counts only if its model_type is "clip".

  Args:
    directory: where config.json can be read if it is there.
    names: the checkpoint's file names.
  """
  names = set(names)
  complete = [layout for layout in LAYOUTS if names.issuperset(layout.files)]
  if any(layout.config == "open_clip_config.json" for layout in complete):
    try:
      raw = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError):
      raw = None
    if not isinstance(raw, dict) or raw.get("model_type") != "clip":
      complete = [
        layout for layout in complete if layout.config != "config.json"
      ]
  return complete[0] if complete else None


def read_json(path: Path) -> dict:
  """Reads a checkpoint's config file.

  Raises:
    InputError: if the file does not hold one JSON object.
  """
  try:
    raw = json.loads(path.read_bytes())
  except ValueError as error:
    raise InputError(f"{path} is not JSON: {error}") from error
  if not isinstance(raw, dict):
    raise InputError(f"{path} must hold one JSON object.")
  return raw


def refuse_type(path: Path, raw: dict, types: tuple[str, ...]) -> None:
  """Refuses a config whose `model_type` is none of `types`.

  Args:
    path: the config file, for the message.
    raw: its content.
    types: the supported model types.

  Raises:
    InputError: if the model type is not supported.
  """
  if raw.get("model_type") not in types:
    raise InputError(
      f"{path} has model_type {raw.get('model_type')!r}; only "
      f"{' or '.join(map(repr, types))} is supported here: adapter.kind lora "
      "and prompts want a CLIP, head and lora_head a DINOv2."
    )


def locate(source: str, kind: str = "CLIP") -> tuple[Path, Layout]:
  """Finds a checkpoint, and downloads it if `source` is a hub id.

  Args:
    source: a directory or a hub id.
    kind: the kind of model, for error messages.

  Returns:
    The directory with the checkpoint's files, and which files to read there.

  Raises:
    InputError: if `source` is neither a directory with the files nor a hub id
      that has them, or if the download fails.
  """
  path = Path(source).expanduser()
  if path.is_dir():
    names = [file.name for file in path.iterdir() if file.is_file()]
    layout = choose(path, names)
    if layout is None:
      raise InputError(
        f"{path} {_missing_files(names)}, so it holds no {kind}."
      )
    return path, layout
  if (
    path.is_absolute()
    or source.startswith((".", "~"))
    or (source.count("/") > 1)
  ):
    raise InputError(f"model.weights: there is no directory {source}.")
  return _from_hub(source, kind)


def _missing_files(names: Iterable[str]) -> str:
  """Returns "has no FILES": what the layout with most files there lacks."""
  present = set(names)
  closest = max(
    LAYOUTS, key=lambda layout: len(present.intersection(layout.files))
  )
  return "has no " + ", ".join(n for n in closest.files if n not in present)


def _reason(error: Exception) -> str:
  """Returns the first line of an exception's message, or else its type."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _from_hub(source: str, kind: str) -> tuple[Path, Layout]:
  """Downloads a checkpoint; offline, takes it from the hub's local cache.

  If the repository offers only a pickle, or none of the known layouts, the
  hub's own safetensors conversion is used where there is one.
  """
  import huggingface_hub  # Slow to import, and not needed for local weights.

  # Which exceptions a failed request raises depends on the version of
  # huggingface_hub. Any of them means that the network fails or that the hub
  # has no such name.
  try:
    names = huggingface_hub.HfApi().list_repo_files(source)
  except Exception as error:
    return _from_cache(source, _reason(error))
  try:
    directory = Path(
      huggingface_hub.snapshot_download(
        source, allow_patterns=list(SMALL_FILES)
      )
    )
    layout, revision = choose(directory, names), None
    if layout is None or layout is PICKLED:
      revision = _conversion(source)
      layout = LAYOUTS[0] if revision else layout
    if layout is None:
      raise InputError(
        f"{source} on the hub {_missing_files(names)}, so it holds no {kind}."
      )
    wanted = [*SMALL_FILES, layout.weights]
    return Path(
      huggingface_hub.snapshot_download(
        source, revision=revision, allow_patterns=wanted
      )
    ), layout
  except InputError:
    raise
  except Exception as error:
    raise InputError(
      f"downloading {source!r} from the hub failed ({_reason(error)}). Run the "
      "same command again: the download goes on where it stopped."
    ) from error


def _conversion(source: str) -> str | None:
  """Returns the git reference of the hub's own safetensors conversion.

  None if the hub has not converted the repository, see `CONVERTER`.
  """
  import huggingface_hub

  author, title = CONVERTER
  for discussion in huggingface_hub.HfApi().get_repo_discussions(source):
    if discussion.is_pull_request and (discussion.author, discussion.title) == (
      author,
      title,
    ):
      return discussion.git_reference
  return None


def _from_cache(source: str, reason: str) -> tuple[Path, Layout]:
  """Finds a checkpoint that an earlier download left in the hub's cache.

  It looks at the main revision and at conversions, and returns the preferred
  layout among those that are complete.

  Args:
    source: a hub id.
    reason: why the hub could not be used, for the message.

  Raises:
    InputError: if the cache has no complete copy.
  """
  from huggingface_hub import constants

  home = Path(constants.HF_HUB_CACHE) / f"models--{source.replace('/', '--')}"
  copies = []
  for ref in (home / "refs" / "main", *sorted(home.glob("refs/refs/pr/*"))):
    directory = home / "snapshots" / (ref.read_text() if ref.is_file() else "")
    if ref.is_file() and directory.is_dir():
      layout = choose(directory, [file.name for file in directory.iterdir()])
      if layout is not None:
        copies.append((directory, layout))
  if copies:
    return min(copies, key=lambda copy: LAYOUTS.index(copy[1]))
  raise InputError(
    f"model.weights={source!r} is not a directory, the hub did not provide it "
    f"({reason}), and {home} has no whole copy. Download it on a machine with "
    "network access, and set model.weights to its directory."
  )
