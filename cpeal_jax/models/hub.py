"""Where a checkpoint's files are: a directory, the hub, or the hub's cache."""

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
  """File names of one way to publish a CLIP."""

  weights: str
  config: str = "config.json"
  preprocessor: str = "preprocessor_config.json"

  @property
  def files(self) -> tuple[str, ...]:
    """All of them; some hold two of the three."""
    return tuple(dict.fromkeys((self.config, self.weights, self.preprocessor)))


# The order of preference.
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
# Only where there is nothing else, not even a conversion on the hub.
PICKLED = LAYOUTS[-1]
SMALL_FILES = (
  "config.json",
  "preprocessor_config.json",
  "open_clip_config.json",
  *TOKENIZER_FILES,
)
# Who opens the hub's conversions, and how they are called. Anyone can open a
# pull request: no other author's is taken.
CONVERTER = ("SFconvertbot", "Adding `safetensors` variant of this model")


def choose(directory: Path, names: Iterable[str]) -> Layout | None:
  """The preferred layout among a checkpoint's file names, if it has one.

  timm's repositories have a config.json and a model.safetensors of the image
  tower alone; beside OpenCLIP's files a foreign config.json doesn't count.
  """
  names = set(names)
  whole = [own for own in LAYOUTS if names.issuperset(own.files)]
  if any(own.config == "open_clip_config.json" for own in whole):
    try:
      raw = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError):
      raw = None
    if not isinstance(raw, dict) or raw.get("model_type") != "clip":
      whole = [own for own in whole if own.config != "config.json"]
  return whole[0] if whole else None


def read_json(path: Path) -> dict:
  """A checkpoint's config.

  Raises:
    InputError: no JSON object.
  """
  try:
    raw = json.loads(path.read_bytes())
  except ValueError as error:
    raise InputError(f"{path} is not JSON: {error}") from error
  if not isinstance(raw, dict):
    raise InputError(f"{path} must hold one JSON object.")
  return raw


def refuse_type(path: Path, raw: dict, types: tuple[str, ...]) -> None:
  """InputError where a config's `model_type` is none of `types`."""
  if raw.get("model_type") not in types:
    raise InputError(
      f"{path} has model_type {raw.get('model_type')!r}; "
      f"{' or '.join(map(repr, types))} is supported here: adapter.kind lora "
      "and prompts want a CLIP, head and lora_head a DINOv2."
    )


def locate(source: str, kind: str = "CLIP") -> tuple[Path, Layout]:
  """The directory with the checkpoint's files; downloads a hub id.

  Args:
    source: directory or hub id.
    kind: of model, for the messages.

  Raises:
    InputError: neither a directory with the files nor a hub id that has them.
  """
  path = Path(source).expanduser()
  if path.is_dir():
    names = [file.name for file in path.iterdir() if file.is_file()]
    layout = choose(path, names)
    if layout is None:
      raise InputError(f"{path} {_lacks(names)}: not a {kind}.")
    return path, layout
  if (
    path.is_absolute()
    or source.startswith((".", "~"))
    or (source.count("/") > 1)
  ):
    raise InputError(f"model.weights: no directory {source}.")
  return _from_hub(source, kind)


def _lacks(names: Iterable[str]) -> str:
  """What is missing for the layout that most is there of."""
  there = set(names)
  own = max(LAYOUTS, key=lambda own: len(there.intersection(own.files)))
  return "has no " + ", ".join(n for n in own.files if n not in there)


def _reason(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _from_hub(source: str, kind: str) -> tuple[Path, Layout]:
  import huggingface_hub  # Slow to import, and not needed for local weights.

  # The hub's transport library changed with its versions, and its exceptions
  # with it: whatever is raised here is the network or a name not on the hub.
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
      raise InputError(f"{source} on the hub {_lacks(names)}: not a {kind}.")
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
      "same command again: it goes on where it stopped."
    ) from error


def _conversion(source: str) -> str | None:
  """The pull request in which the hub itself converted the weights."""
  import huggingface_hub

  author, title = CONVERTER
  for own in huggingface_hub.HfApi().get_repo_discussions(source):
    if own.is_pull_request and (own.author, own.title) == (author, title):
      return own.git_reference
  return None


def _from_cache(source: str, reason: str) -> tuple[Path, Layout]:
  """What an earlier download left, of the main revision or a conversion."""
  from huggingface_hub import constants

  home = Path(constants.HF_HUB_CACHE) / f"models--{source.replace('/', '--')}"
  found = []
  for ref in (home / "refs" / "main", *sorted(home.glob("refs/refs/pr/*"))):
    directory = home / "snapshots" / (ref.read_text() if ref.is_file() else "")
    if ref.is_file() and directory.is_dir():
      layout = choose(directory, [file.name for file in directory.iterdir()])
      if layout is not None:
        found.append((directory, layout))
  if found:
    return min(found, key=lambda own: LAYOUTS.index(own[1]))
  raise InputError(
    f"model.weights={source!r} is neither a directory nor a model the hub "
    f"gave us ({reason}), and {home} has no whole copy. Download it where "
    "there is a network, and give its directory."
  )
