"""Finds a checkpoint's files in a directory, on the hub or in the hub's cache.

The hub is Hugging Face's.
"""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

from cpeal_jax.data.reading import read_object, shown
from cpeal_jax.errors import InputError, reason
from cpeal_jax.models import connection
from cpeal_jax.models.shards import INDEX, shard_names
from cpeal_jax.models.tokenizer import TOKENIZER_FILES

# transformers 5 saves the image processor's settings inside this file. Where
# both files are, `data.images.image_spec` says which one counts.
PROCESSOR = "processor_config.json"


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

  def missing(self, names: Iterable[str]) -> tuple[str, ...]:
    """Returns the layout's files that are not among `names`.

    A `PROCESSOR` file among `names` counts as a preprocessor_config.json.
    """
    present = set(names)
    if PROCESSOR in present:
      present.add("preprocessor_config.json")
    return tuple(name for name in self.files if name not in present)


SAFETENSORS = Layout("model.safetensors")
OPEN_CLIP = Layout(
  "open_clip_model.safetensors",
  "open_clip_config.json",
  "open_clip_config.json",
)
FLAX = Layout("flax_model.msgpack")
# Weights in several files. Their index says which file each tensor is in.
SHARDED = Layout(INDEX)
# Used only if there is no other file of weights, and no conversion of this one
# on the hub.
PICKLED = Layout("pytorch_model.bin")
OPEN_CLIP_PICKLED = Layout(
  "open_clip_pytorch_model.bin",
  "open_clip_config.json",
  "open_clip_config.json",
)
# All layouts, the preferred ones first.
LAYOUTS = (SAFETENSORS, OPEN_CLIP, FLAX, SHARDED, PICKLED, OPEN_CLIP_PICKLED)
SMALL_FILES = (
  "config.json",
  "preprocessor_config.json",
  PROCESSOR,
  "open_clip_config.json",
  INDEX,
  *TOKENIZER_FILES,
)
# The author and title of the pull requests in which the hub itself converts
# weights to safetensors. Anyone may open a pull request, so those of other
# authors are not used.
CONVERTER = ("SFconvertbot", "Adding `safetensors` variant of this model")
# Endings of a file that may hold a whole model's weights.
SINGLE_FILES = (".safetensors", ".pt", ".pth", ".bin")
# What messages say where there may be such a file without a config.
BARE = (
  " Weights of a CLIP without a config need its architecture, by OpenCLIP's "
  "name: --config.model.arch=ViT-B-32."
)


def choose(directory: Path, names: Iterable[str]) -> Layout | None:
  """Returns the first of `LAYOUTS` whose files all exist, or None.

  timm's repositories have OpenCLIP's files, and also a config.json and weights
  that hold only the image tower. So if OpenCLIP's files exist, the other
  layouts count only if config.json has the model_type "clip" or "siglip".

  Args:
    directory: the directory with config.json, if the checkpoint has that file.
    names: the checkpoint's file names.
  """
  names = set(names)
  complete = [layout for layout in LAYOUTS if not layout.missing(names)]
  open_clip = [x for x in complete if x in (OPEN_CLIP, OPEN_CLIP_PICKLED)]
  if open_clip:
    try:
      model_type = read_object(directory / "config.json").get("model_type")
    except InputError:
      model_type = None
    if model_type not in ("clip", "siglip"):
      complete = open_clip
  return complete[0] if complete else None


def preprocessor_file(directory: Path, layout: Layout) -> Path:
  """Returns the file with the image processor's settings."""
  settings = directory / layout.preprocessor
  return settings if os.path.lexists(settings) else directory / PROCESSOR


# What is said of a model type that is not supported, besides that it is not.
REMARKS = {
  "siglip2": " This is a SigLIP 2 for images of any shape (NaFlex); those of a "
  "fixed resolution, such as google/siglip2-base-patch16-224, have the "
  "model_type 'siglip'.",
}


def refuse_type(path: Path, raw: dict, types: tuple[str, ...]) -> None:
  """Refuses a config whose `model_type` is none of `types`.

  Args:
    path: the config file, for the message.
    raw: its content.
    types: the supported model types.

  Raises:
    InputError: if the model type is not supported.
  """
  model_type = raw.get("model_type")
  if model_type not in types:
    remark = REMARKS.get(model_type, "") if isinstance(model_type, str) else ""
    raise InputError(
      f"{path} has model_type {shown(model_type)}; only "
      f"{' or '.join(map(repr, types))} is supported here: adapter.kind lora, "
      "prompts and anchored want a CLIP or SigLIP, head, lora_head and "
      f"anchored_head a DINOv2 or DINOv3.{remark}"
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
  hint = BARE if "CLIP" in kind and source.endswith(SINGLE_FILES) else ""
  names = _entries(path, hint)
  if names is not None:
    layout = choose(path, names)
    if layout is None:
      raise InputError(f"{path} {_lacks(names, kind)}")
    return path, layout
  if (
    path.is_absolute()
    or source.startswith((".", "~"))
    or (source.count("/") > 1)
  ):
    raise InputError(f"model.weights: there is no directory {source}.{hint}")
  with connection.quiet():
    return _from_hub(source, kind)


def _entries(path: Path, hint: str) -> list[str] | None:
  """Returns the names in a directory, or None if there is nothing at `path`.

  Args:
    path: the directory.
    hint: what the message about a file says at its end.

  Raises:
    InputError: if `path` is a file, or a directory that cannot be read.
  """
  try:
    return os.listdir(path)
  except (FileNotFoundError, ValueError):
    return None
  except NotADirectoryError as error:
    raise InputError(
      f"model.weights: {path} is no directory; give the directory that holds "
      f"the weights with their config.json, preprocessor and tokenizer.{hint}"
    ) from error
  except OSError as error:
    raise InputError(
      f"model.weights: cannot read {path}: {error.strerror}."
    ) from error


def _lacks(names: Iterable[str], kind: str) -> str:
  """Says which files are missing for the layout that has the fewest missing.

  If none of any layout's files is among `names`, the message says that the
  directory holds no model of the kind. Otherwise it says that the model is not
  whole.
  """
  present = set(names)
  wanted = {name for layout in LAYOUTS for name in layout.files}
  closest = max(
    LAYOUTS,
    key=lambda layout: len(layout.files) - len(layout.missing(present)),
  )
  missing = f"has no {', '.join(closest.missing(present))}"
  if not present & {*wanted, PROCESSOR} and not any(
    name.endswith(SINGLE_FILES) for name in present
  ):
    return f"{missing}, so it holds no {kind}."
  foreign = sorted(
    name
    for name in present
    if name.endswith((*SINGLE_FILES, ".h5", ".index.json"))
    and name not in wanted
  )
  others = f" It has {', '.join(foreign[:3])} instead." if foreign else ""
  if "CLIP" in kind and not present & {"config.json", OPEN_CLIP.config}:
    others += BARE
  weights = ", ".join(layout.weights for layout in LAYOUTS)
  return (
    f"{missing}: the {kind} in it is not whole. Weights are read from one of "
    f"{weights}.{others}"
  )


def _from_hub(source: str, kind: str) -> tuple[Path, Layout]:
  """Downloads a checkpoint, or takes it from the local cache when offline.

  If the repository has only a pickle, or none of the known layouts, the hub's
  own safetensors conversion is used if it exists.
  """
  import huggingface_hub  # Slow to import, and not needed for local weights.
  from huggingface_hub import constants

  if not constants.HF_HUB_OFFLINE and (
    why := connection.problem(constants.ENDPOINT)
  ):
    return _from_cache(source, why)
  # A failed request raises different exceptions in different versions of
  # huggingface_hub. Each of them means that the network does not work or that
  # the hub has no such name.
  try:
    names = huggingface_hub.HfApi().list_repo_files(source)
  except Exception as error:
    return _from_cache(source, reason(error))
  try:
    directory = Path(
      huggingface_hub.snapshot_download(
        source, allow_patterns=list(SMALL_FILES)
      )
    )
    layout, revision = choose(directory, names), None
    if layout is None or layout in (PICKLED, OPEN_CLIP_PICKLED):
      revision = _conversion(source)
      layout = LAYOUTS[0] if revision else layout
    if layout is None:
      raise InputError(f"{source} on the hub {_lacks(names, kind)}")
    wanted = [*SMALL_FILES, layout.weights]
    if layout is SHARDED:
      wanted += shard_names(directory / INDEX)
    return Path(
      huggingface_hub.snapshot_download(
        source, revision=revision, allow_patterns=wanted
      )
    ), layout
  except InputError:
    raise
  except Exception as error:
    raise InputError(
      f"downloading {source!r} from the hub failed ({reason(error)}). Run the "
      "same command again: the download goes on where it stopped."
    ) from error


def _conversion(source: str) -> str | None:
  """Returns the git reference of the hub's own safetensors conversion.

  Returns None if the hub has not converted the repository. `CONVERTER` says how
  a conversion is recognized.
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
    try:
      directory = home / "snapshots" / ref.read_text()
      names = os.listdir(directory)
      layout = choose(directory, names)
      if layout is SHARDED and not set(names).issuperset(
        shard_names(directory / INDEX)
      ):
        continue
    except (OSError, ValueError):  # The copy is missing or incomplete.
      continue
    if layout is not None:
      copies.append((directory, layout))
  if copies:
    return min(copies, key=lambda copy: LAYOUTS.index(copy[1]))
  raise InputError(
    f"model.weights={source!r} is not a directory, the hub did not provide it "
    f"({reason}), and {home} has no whole copy. Download it on a machine with "
    "network access, and give its directory: --config.model.weights=DIR."
  )
