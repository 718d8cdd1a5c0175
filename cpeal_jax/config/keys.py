"""Every setting of a run in one table: its default, its range and its meaning.

A key exists because it has a row here. `check` holds a config to the rows and
`--help` prints them.
"""

from typing import NamedTuple

from cpeal_jax.acquisition import ACQUISITIONS, RULES, WITHIN
from cpeal_jax.acquisition.methods import bald, cec, featdist
from cpeal_jax.config.ranges import (
  Allowed,
  BlockNumbers,
  Budget,
  Subset,
  Template,
  Text,
  ValueRange,
  YesNo,
  above,
  below,
  between,
  choice,
)
from cpeal_jax.data import duplicates
from cpeal_jax.data.catalogue import CATALOGUE
from cpeal_jax.data.layouts import LAYOUTS
from cpeal_jax.models import adapters
from cpeal_jax.models.backbones import BY_ADAPTER
from cpeal_jax.models.text_classifier import DESCRIPTOR_AVERAGES
from cpeal_jax.parallel.sharding import BACKENDS
from cpeal_jax.training.recipe import CALIBRATIONS, OPTIMIZERS

# Methods that need no trained model, so they can choose the first labels.
FIRST_LABELS = ("random", "zero_shot", "typiclust", "cb")


class Key(NamedTuple):
  """A row of the table.

  Attributes:
    name: dotted, as on the command line after `--config.`.
    default: its type is the type of every value.
    kind: a `RESULT` key decides results, so it must be the same when a run is
      resumed; a `RUN` key may differ from start to start.
    allowed: which values are accepted.
    meaning: one phrase, with the unit.
  """

  name: str
  default: object
  kind: str
  allowed: Allowed
  meaning: str


RESULT, RUN = "result", "run"
YES_NO = YesNo()
SHARE = above(0, 1)
COUNT = between(1, 1_000_000)
OPTIONAL_PATH = Text("a path, or empty")
METHOD = choice(*ACQUISITIONS)

# One heading of `--help` for each group of keys.
HEADINGS = {
  "": "The run",
  "dataset": "The images and their labels",
  "model": "The pretrained model and its prompts",
  "adapter": "What is trained",
  "loss": "The loss beside cross entropy",
  "train": "How each round is trained",
  "acquisition": "Which images are labeled next",
  "oracle": "Who answers",
  "scoring": "The pass over the pool",
  "parallel": "Devices",
  "checkpoint": "Checkpoints",
}

# Two lines a row: the formatter would make six of them.
# fmt: off
TABLE = (
  ("name", "", RESULT, Text(),
   "name of the config, part of the default workdir"),
  ("variant", "", RESULT, Text(),
   "name of the preset, part of the default workdir"),
  ("seed", 1, RESULT, between(0, 2**32 - 1),
   "seed that every random draw of the run is derived from"),
  ("rounds", 10, RUN, COUNT,
   "number of rounds of labels; it may be raised when a run is resumed"),
  ("budget", "num_classes", RESULT, Budget(),
   "labels bought in a round; num_classes buys as many as there are classes"),
  ("round0", "random", RESULT, choice(*FIRST_LABELS),
   "how the first labels are chosen; zero_shot applies acquisition.name to the "
   "scores of the untrained model"),
  ("cache_dir", "", RUN, OPTIONAL_PATH,
   "directory for decoded images and features; empty is the user's cache"),
  ("profile", "", RUN, OPTIONAL_PATH,
   "directory for a profiler trace of the third round after this start, the "
   "first in which nothing is compiled, or of the last; empty writes none"),

  ("dataset.name", "", RESULT, choice("", *CATALOGUE),
   "a known data set, whose class names and image counts are checked; empty "
   "is a data set of your own"),
  ("dataset.layout", "auto", RESULT, choice("auto", *LAYOUTS),
   "how the files are laid out; auto is tfds without dataset.root, else the "
   "layout of the known data set, else coop"),
  ("dataset.root", "", RUN, OPTIONAL_PATH,
   "directory of the files; empty reads the set from TFDS"),
  ("dataset.tfds_dir", "", RUN, OPTIONAL_PATH,
   "data directory of TFDS; empty is TFDS's own default"),
  ("dataset.split_file", "", RESULT, OPTIONAL_PATH,
   "CoOp's split json, in dataset.root or, with TFDS, a path; empty is the "
   "one in dataset.root"),
  ("dataset.image_dir", "", RESULT, OPTIONAL_PATH,
   "directory below dataset.root that the split's paths start from; empty "
   "searches for it"),
  ("dataset.class_names", "", RUN, OPTIONAL_PATH,
   "file of LABEL,NAME lines or JSON that says what classes are called; empty "
   "splits folder names into words"),
  ("dataset.range", "", RESULT, ValueRange(),
   "values that become black and white in gray images of more than 8 bits; "
   "empty is the full range of 16 bits"),
  ("dataset.duplicates", "refuse", RUN, choice(*duplicates.POLICIES),
   "whether images of the pool may have the same bytes as validation or test "
   "images"),
  ("dataset.accept_labels", False, RUN, YES_NO,
   "whether a run is resumed although labels or class names of its data set "
   "have changed; rounds that are finished keep what they bought"),
  ("dataset.check_counts", True, RUN, YES_NO,
   "whether a known data set with missing images is refused"),
  ("dataset.max_corrupt", 0, RUN, between(0, 1_000_000_000),
   "number of unreadable images that are tolerated"),
  ("dataset.store_gb", 8.0, RUN, between(0, 1_000_000),
   "GiB of decoded pixels above which a split is decoded again in every pass "
   "instead of kept on disk"),

  # Files are run keys, since their sha256 is what must not change.
  ("model.weights", "", RUN, Text("a directory or hub id", required=True),
   "the pretrained CLIP or DINOv2"),
  ("model.template", "a photo of a {}.", RESULT, Template(),
   "prompt of a class; {} stands for the class name"),
  ("model.prompt", "template", RESULT, choice("template", "x16"),
   "text that LoRA is trained with; x16 is 16 times X before the class name, "
   "as in the released LoRA code"),
  ("model.descriptors", "", RUN, OPTIONAL_PATH,
   "json file that maps class names to lists of traits, each of which becomes "
   "a prompt; empty uses none"),
  ("model.descriptor_average", "similarity", RESULT,
   choice(*DESCRIPTOR_AVERAGES),
   "what is averaged over the prompts of a class: similarities (PCB's AS) or "
   "embeddings (AE)"),
  ("model.dtype", "float32", RESULT, choice("float32", "bfloat16"),
   "number type that the towers compute in"),
  ("model.remat", False, RUN, YES_NO,
   "recompute the inside of each transformer block for its gradient, which "
   "takes more time and less memory"),

  ("adapter.kind", "lora", RESULT, choice(*BY_ADAPTER),
   "lora or prompts on a CLIP; head (linear probe) or lora_head (PEAL) on a "
   "DINOv2"),
  ("adapter.lora.rank", 4, RESULT, between(1, 4096),
   "rank r of the two factors"),
  ("adapter.lora.alpha", 4.0, RESULT, above(0),
   "numerator of the factor that scales LoRA's output"),
  ("adapter.lora.scaling", "rank_stabilized", RESULT,
   choice(*adapters.SCALINGS),
   "that factor: alpha / sqrt(r), or alpha / r for standard"),
  ("adapter.lora.dropout", 0.25, RESULT, below(1),
   "dropout rate on the input of the LoRA branch"),
  ("adapter.lora.towers", "vision,text", RESULT, Subset(adapters.TOWERS),
   "towers that get LoRA"),
  ("adapter.lora.matrices", "q,k,v", RESULT, Subset(adapters.MATRICES),
   "attention projections that get LoRA"),
  ("adapter.lora.layers", "", RESULT, BlockNumbers(),
   "transformer blocks that get LoRA, counted from 0; empty is all"),
  ("adapter.prompts.tokens", 16, RESULT, between(1, 75),
   "number of learnable context tokens"),
  ("adapter.prompts.shared", False, RESULT, YES_NO,
   "whether all classes share one context"),
  ("adapter.prompts.position", "end", RESULT, choice(*adapters.POSITIONS),
   "where the class name stands among the context tokens"),
  ("adapter.prompts.stddev", 0.02, RESULT, between(0, 100),
   "standard deviation of the initial context tokens"),

  ("loss.calibration", "balanced", RESULT, choice(*CALIBRATIONS),
   "calibration loss: C-PEAL's, with its terms for correct and for wrong "
   "predictions weighed by the other's count (balanced), equally (unbalanced) "
   "or by effective numbers; AvUC; or none"),
  ("loss.weight", 1.0, RESULT, between(0, 1_000_000),
   "weight W of the calibration loss in the last epoch"),
  ("loss.anneal", True, RESULT, YES_NO,
   "whether that weight grows from 0 over the epochs"),
  ("loss.avuc_threshold", 0.0, RESULT, between(0, 100),
   "entropy in nats that separates certain from uncertain for AvUC; 0 takes "
   "ln(C) / 2"),

  ("train.epochs", 10, RESULT, COUNT,
   "epochs of a round"),
  ("train.batch", 32, RESULT, COUNT,
   "images of one step, over all devices together"),
  ("train.optimizer", "sgd", RESULT, choice(*OPTIMIZERS),
   "optimizer"),
  ("train.learning_rate", 2e-3, RESULT, above(0, 1_000),
   "peak learning rate of the cosine schedule"),
  ("train.warmup_epochs", 1, RESULT, between(0, 1_000_000),
   "epochs at train.warmup_rate before the cosine, at most train.epochs"),
  ("train.warmup_rate", 1e-5, RESULT, between(0, 1_000),
   "constant learning rate of the warm-up epochs"),
  ("train.momentum", 0.9, RESULT, below(1),
   "momentum of sgd"),
  ("train.weight_decay", 5e-4, RESULT, between(0, 1_000),
   "L2 penalty for sgd, decoupled weight decay for adamw"),
  ("train.augment", True, RESULT, YES_NO,
   "whether training images are randomly cropped and flipped"),

  ("acquisition.name", "entropy", RESULT, METHOD,
   "method that chooses the images; docs/acquisition.md explains each"),
  ("acquisition.balance", "repaired", RESULT, choice(*RULES, "off"),
   "PCB class balancing: repaired, or faithful to the reference code"),
  ("acquisition.within", "random", RESULT, choice(*WITHIN),
   "how PCB takes an image among the candidates of a class: at random or the "
   "best-ranked first"),
  ("acquisition.candidates", 0.1, RESULT, SHARE,
   "share of the pool that PCB chooses from"),
  ("acquisition.preselect", "", RESULT, choice("", *ACQUISITIONS),
   "method whose best acquisition.gamma of the pool are the only images "
   "offered; empty offers all"),
  ("acquisition.gamma", 0.1, RESULT, SHARE,
   "share of the pool that acquisition.preselect keeps"),
  ("acquisition.min_distance", 0.0, RESULT, between(0, 2),
   "least Euclidean distance between the unit features of two picks, which "
   "keeps near-duplicates out; 0 allows any"),
  ("acquisition.cec.support", 20, RESULT, COUNT,
   "most certain images of each class that estimate the class prior"),
  ("acquisition.cec.prior", "pooled", RESULT, choice(*cec.PRIORS),
   "whether a class's prior is averaged over all supports or over its own"),
  ("acquisition.cec.kernel", "cosine", RESULT, choice(*cec.KERNELS),
   "weight of a neighbor by its similarity"),
  ("acquisition.cec.rho", 1.0, RESULT, between(0, 1_000_000),
   "factor of the squared distance in the rbf kernel"),
  ("acquisition.cec.normalize", True, RESULT, YES_NO,
   "whether the weights of an image's neighbors sum to 1"),
  ("acquisition.cec.alpha", 0.5, RESULT, between(0, 1),
   "weight of the neighbors' uncertainty against the image's own"),
  ("acquisition.clue.temperature", 1.0, RESULT, above(0, 1_000),
   "temperature of the softmax whose entropy weights the clusters"),
  ("acquisition.alfa_mix.step", 0.2, RESULT, SHARE,
   "step by which the cap on the mixing ratio grows"),
  ("acquisition.bald.noise", "features", RESULT, choice(*bald.NOISES),
   "where dropout is applied: on the image features, or in the LoRA branches"),
  ("acquisition.bald.passes", 10, RESULT, between(1, 100_000),
   "number of stochastic passes"),
  ("acquisition.bald.dropout", 0.5, RESULT, below(1),
   "dropout rate on the features"),
  ("acquisition.featdist.to", "class_mean", RESULT, choice(*featdist.TO),
   "labeled images that distances are measured to: each class's mean, the "
   "nearest one, or the sum over all"),
  ("acquisition.featdist.space", "logits", RESULT, choice(*featdist.SPACES),
   "space of these distances"),
  ("acquisition.probcover.radius", 0.0, RESULT, between(0, 2),
   "radius of a ball among unit features; 0 estimates it by purity"),
  ("acquisition.probcover.purity", 0.95, RESULT, SHARE,
   "share of balls that must hold a single class when the radius is estimated"),
  ("acquisition.cb.clusters_per_class", 1, RESULT, between(1, 10_000),
   "clusters for each class; the released CB+SQ code uses 4"),

  ("oracle.selective", False, RESULT, YES_NO,
   "selective querying: a pick that the model is sure about takes its "
   "prediction as label and costs nothing"),

  ("scoring.neighbors", 10, RESULT, between(0, 1024),
   "nearest images found for each image; 0 searches for none"),
  ("scoring.tile", 0, RUN, between(0, 65_536),
   "rows of one product; 0 takes 4 to 128 on a CPU, by the model, and 128 "
   "elsewhere"),

  ("parallel.backend", "shard_map", RUN, choice(*BACKENDS),
   "JAX function that spreads the passes over devices"),
  ("parallel.devices", 0, RUN, between(0, 1_000_000),
   "number of devices; 0 takes all"),

  ("checkpoint.every_seconds", 60.0, RUN, between(0, 1_000_000),
   "least seconds between two checkpoints while a round is trained"),
  ("checkpoint.keep", 3, RUN, between(1, 1_000_000),
   "number of newest checkpoints that are kept"),
)
# fmt: on
KEYS = tuple(Key(*row) for row in TABLE)
