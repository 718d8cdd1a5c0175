"""Every setting of a run in one table: its default, its range and its meaning.

To add a setting, add a row here. `check` makes configs from the rows and checks
configs against them, and `--help` prints them.
"""

from typing import NamedTuple

from cpeal_jax.acquisition import ACQUISITIONS, RULES, WITHIN
from cpeal_jax.acquisition.methods import bald, cec, featdist, uherding
from cpeal_jax.config.ranges import (
  Allowed,
  BlockNumbers,
  Budget,
  Shares,
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
from cpeal_jax.models.architectures import ARCHITECTURES
from cpeal_jax.models.backbones import BY_ADAPTER
from cpeal_jax.models.descriptors import WORDINGS
from cpeal_jax.models.text_classifier import DESCRIPTOR_AVERAGES
from cpeal_jax.neighbors import EXACT_UP_TO, RECALL
from cpeal_jax.parallel.spmd import BACKENDS
from cpeal_jax.training.recipe import ANCHOR_UNITS, CALIBRATIONS, OPTIMIZERS

# The values of round0: methods that need no trained model, and zero_shot, which
# applies the chosen method to the pretrained model.
FIRST_LABELS = ("random", "zero_shot", "pool", "typiclust", "cb")


class Key(NamedTuple):
  """A row of the table.

  Attributes:
    name: the name with dots, as on the command line after `--config.`.
    default: the value if nothing sets another; all values have its type.
    kind: a `RESULT` key decides results, so it must be the same when a run is
      resumed; a `RUN` key may differ from start to start.
    allowed: which values are accepted.
    meaning: one phrase for `--help`, with the unit.
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
# The names in the table of `labeling.oracles`.
ORACLES = ("simulated", "files", "page")

# One heading of `--help` for each group of keys.
HEADINGS = {
  "": "The run",
  "dataset": "The images and their labels",
  "model": "The pretrained model and its prompts",
  "adapter": "What is trained",
  "loss": "The calibration loss, which is added to the cross entropy",
  "train": "How each round is trained",
  "acquisition": "Which images are labeled next",
  "oracle": "Who labels the chosen images",
  "scoring": "The pass over the pool",
  "parallel": "Devices",
  "checkpoint": "Checkpoints",
  "eval": "When the model is measured",
  "keep": "What a round leaves for reports",
  "logging": "Copies of the metrics for other programs",
}

# Each row has a few lines; the formatter would put each value on its own.
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
   "directory for a profiler trace of one round: the third after this start, "
   "which is the first without compilations, or the last if there is no third; "
   "empty writes none"),

  ("dataset.name", "", RESULT, choice("", *CATALOGUE),
   "a known data set, whose class names and image counts are checked; empty "
   "is a data set of your own"),
  ("dataset.layout", "auto", RESULT, choice("auto", *LAYOUTS),
   "how the files are laid out; auto is tfds without dataset.root, else the "
   "layout of the known data set, else what the files in dataset.root look "
   "like, which the start says"),
  ("dataset.root", "", RUN, OPTIONAL_PATH,
   "directory of the files; empty reads the set from TFDS"),
  ("dataset.tfds_dir", "", RUN, OPTIONAL_PATH,
   "data directory of TFDS; empty is TFDS's own default"),
  ("dataset.split_file", "", RESULT, OPTIONAL_PATH,
   "CoOp's split json, or a list of images in CSV, JSONL or Parquet: its path "
   "within dataset.root, or with TFDS any path; empty takes the one in "
   "dataset.root"),
  ("dataset.image_dir", "", RESULT, OPTIONAL_PATH,
   "directory below dataset.root that the paths in the split file start from; "
   "empty searches for it"),
  ("dataset.class_names", "", RUN, OPTIONAL_PATH,
   "file of NAME lines, LABEL,NAME lines or JSON that says what classes are "
   "called, and which there are where images have no label; empty splits "
   "folder names into words"),
  ("dataset.shares", "", RESULT, Shares(),
   "what train, validation and test get of labeled data without splits of its "
   "own; empty is 0.5,0.2,0.3, or 1,0,0 where some images have no label"),
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

  # Paths of files are RUN keys, since files may be moved. A run records their
  # sha256, which must not change.
  ("model.weights", "", RUN, Text("a directory or hub id", required=True),
   "the pretrained CLIP, DINOv2 or DINOv3; with model.arch also a file of "
   "weights, here or on the hub as OWNER/NAME/FILE"),
  ("model.arch", "", RESULT, choice("", *ARCHITECTURES),
   "architecture of a CLIP whose weights come without a config, by OpenCLIP's "
   "name; empty takes the config beside the weights"),
  ("model.tokenizer", "", RUN, Text("a directory or hub id, or empty"),
   "where a CLIP's tokenizer is; empty takes the one beside the weights"),
  ("model.template", "a photo of a {}.", RESULT, Template(),
   "prompt of a class; {} stands for the class name"),
  ("model.prompt", "template", RESULT, choice("template", "x16"),
   "prompt that LoRA is trained with: that of model.template, or x16, which is "
   "16 times X before the class name, as in the released LoRA code"),
  ("model.descriptors", "", RUN, OPTIONAL_PATH,
   "JSON file that maps class names to lists of traits, each of which becomes "
   "a prompt; empty uses none"),
  ("model.descriptor_average", "similarity", RESULT,
   choice(*DESCRIPTOR_AVERAGES),
   "what is averaged over the prompts of a class: similarities (PCB's AS) or "
   "embeddings (AE)"),
  ("model.descriptor_wording", "grammatical", RESULT, choice(*WORDINGS),
   "how a trait follows the class name: as a clause, or faithful to PCB's "
   "code, literally \"which is/has\" and the trait"),
  ("model.dtype", "float32", RESULT, choice("float32", "bfloat16"),
   "data type that the towers compute in"),
  ("model.remat", False, RUN, YES_NO,
   "whether the activations inside each transformer block are computed again "
   "for its gradient, which takes more time and less memory"),

  ("adapter.kind", "lora", RESULT, choice(*BY_ADAPTER),
   "what is trained: lora, prompts or anchored (a linear head that the pool "
   "holds) on a CLIP or SigLIP; head (linear probe), lora_head (PEAL) or "
   "anchored_head on a DINOv2 or DINOv3"),
  ("adapter.lora.rank", 4, RESULT, between(1, 4096),
   "rank r of LoRA's two factors"),
  ("adapter.lora.alpha", 4.0, RESULT, above(0),
   "alpha in the factor that scales LoRA's output"),
  ("adapter.lora.scaling", "rank_stabilized", RESULT,
   choice(*adapters.SCALINGS),
   "factor that scales LoRA's output: rank_stabilized is alpha / sqrt(r), "
   "standard is alpha / r"),
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
  ("adapter.prompts.initial", "random", RESULT, choice(*adapters.INITIALS),
   "what the context tokens are at first: random draws, or the words of "
   "model.template, which set their number and where the class name stands"),
  ("adapter.prompts.stddev", 0.02, RESULT, between(0, 100),
   "standard deviation of random context tokens"),

  ("loss.calibration", "balanced", RESULT, choice(*CALIBRATIONS),
   "calibration loss. Three are C-PEAL's: its two terms, for correct and for "
   "wrong predictions, are each weighted by the count of the other "
   "(balanced), equally (unbalanced) or by effective numbers "
   "(effective_number). The others are AvUC (avuc), TCPT's margin_statistics, "
   "and none"),
  ("loss.weight", 1.0, RESULT, between(0, 1_000_000),
   "weight W of the calibration loss in the last epoch"),
  ("loss.anneal", True, RESULT, YES_NO,
   "whether the weight of the calibration loss grows from 0 to loss.weight "
   "over the epochs"),
  ("loss.anchor", 0.0, RESULT, between(0, 1_000_000),
   "tau, how strongly LoRA and prompts are held at the pool's own answers; 0 "
   "is not at all, as in the papers"),
  ("loss.anchor_unit", "one", RESULT, choice(*ANCHOR_UNITS),
   "what loss.anchor is a multiple of: one, or the tau that cross-validation "
   "of the anchored head chooses from the labels of each round (fitted)"),
  ("loss.avuc_threshold", 0.0, RESULT, between(0, 100),
   "entropy in nats above which AvUC takes a prediction as uncertain; 0 takes "
   "ln(C) / 2 for C classes"),

  ("train.epochs", 10, RESULT, COUNT,
   "passes over the labeled images in each round"),
  ("train.batch", 32, RESULT, COUNT,
   "images in one training step, on all devices together"),
  ("train.optimizer", "sgd", RESULT, choice(*OPTIMIZERS),
   "optimizer that trains the adapter"),
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
  ("acquisition.switch_at", 0.0, RESULT, between(0, 1_000_000),
   "labels per class from which acquisition.name chooses; with fewer labels "
   "acquisition.early does. 0 never uses acquisition.early"),
  ("acquisition.early", "typiclust", RESULT, METHOD,
   "method that chooses while there are fewer labels per class than "
   "acquisition.switch_at; round0 still names that of the first round"),
  ("acquisition.balance", "repaired", RESULT, choice(*RULES, "off"),
   "PCB class balancing: repaired, faithful to the reference code, or off"),
  ("acquisition.within", "random", RESULT, choice(*WITHIN),
   "how PCB chooses among the candidates of a class: at random, or the one "
   "that acquisition.name ranks best"),
  ("acquisition.candidates", 0.1, RESULT, SHARE,
   "share of the pool that PCB chooses from: the images ranked best"),
  ("acquisition.preselect", "", RESULT, choice("", *ACQUISITIONS),
   "method whose best acquisition.gamma of the pool are the only images "
   "offered; empty offers all"),
  ("acquisition.gamma", 0.1, RESULT, SHARE,
   "share of the pool that acquisition.preselect keeps"),
  ("acquisition.min_distance", 0.0, RESULT, between(0, 2),
   "smallest Euclidean distance allowed between the unit features of two "
   "picks, which keeps near-duplicates out; 0 allows any"),
  ("acquisition.cec.support", 20, RESULT, COUNT,
   "number of the most certain images of each class, its support, from which "
   "the class prior is estimated"),
  ("acquisition.cec.prior", "pooled", RESULT, choice(*cec.PRIORS),
   "images that a class's prior is averaged over: the supports of all classes "
   "(pooled) or its own support (per_class)"),
  ("acquisition.cec.kernel", "cosine", RESULT, choice(*cec.KERNELS),
   "function from a neighbor's similarity to its weight"),
  ("acquisition.cec.rho", 1.0, RESULT, between(0, 1_000_000),
   "factor of the squared distance in the rbf kernel"),
  ("acquisition.cec.normalize", True, RESULT, YES_NO,
   "whether the weights of an image's neighbors sum to 1"),
  ("acquisition.cec.alpha", 0.5, RESULT, between(0, 1),
   "weight of the neighbors' uncertainty against the image's own"),
  ("acquisition.clue.temperature", 1.0, RESULT, above(0, 1_000),
   "temperature of the softmax whose entropy weights the clusters"),
  ("acquisition.alfa_mix.step", 0.2, RESULT, SHARE,
   "step by which the upper bound of the mixing ratio grows"),
  ("acquisition.bald.noise", "features", RESULT, choice(*bald.NOISES),
   "where dropout is applied: on the image features, or in the LoRA branches"),
  ("acquisition.bald.passes", 10, RESULT, between(1, 100_000),
   "number of stochastic passes"),
  ("acquisition.bald.dropout", 0.5, RESULT, below(1),
   "dropout rate on the features"),
  ("acquisition.featdist.to", "class_mean", RESULT, choice(*featdist.TO),
   "what distances are measured to: the mean of the labeled images of the "
   "predicted class (class_mean), the nearest labeled image, or all of them, "
   "added up (sum)"),
  ("acquisition.featdist.space", "logits", RESULT, choice(*featdist.SPACES),
   "space in which featdist measures distances: logits or image features"),
  ("acquisition.probcover.radius", 0.0, RESULT, between(0, 2),
   "radius of the balls around unit features; 0 estimates it from "
   "acquisition.probcover.purity"),
  ("acquisition.probcover.purity", 0.95, RESULT, SHARE,
   "share of the balls that must hold a single class, if the radius is "
   "estimated"),
  ("acquisition.uherding.uncertainty", "margin", RESULT,
   choice(*uherding.UNCERTAINTIES),
   "what UHerding takes as the uncertainty of an image; none is MaxHerding"),
  ("acquisition.uherding.targets", 2048, RESULT, between(1, 1_000_000),
   "images that stand for the pool in UHerding"),
  ("acquisition.dropquery.passes", 3, RESULT, between(1, 100_000),
   "dropout passes of DropQuery"),
  ("acquisition.dropquery.dropout", 0.75, RESULT, below(1),
   "probability with which DropQuery drops a coordinate of an image feature"),
  ("acquisition.tcm.switch_at", 5.0, RESULT, between(0, 1_000_000),
   "labels per class from which TCM takes margin in place of TypiClust"),
  ("acquisition.cb.clusters_per_class", 1, RESULT, between(1, 10_000),
   "clusters for each class; the released CB+SQ code uses 4"),

  ("oracle.kind", "simulated", RESULT, choice(*ORACLES),
   "who labels: simulated takes the labels that the data set has; files writes "
   "the questions to files and waits until a person has answered; page opens "
   "a page for a browser on this machine. Labels of some images are then "
   "given; if all have one, the person is asked anyway"),
  ("oracle.answers", "", RUN, OPTIONAL_PATH,
   "file with answers: a filled to_label.csv, a list with the columns id and "
   "label, or an export of Label Studio; to_label.csv of the round and "
   "labels.csv in the workdir are read in any case"),
  ("oracle.document_root", "", RUN, OPTIONAL_PATH,
   "folder that Label Studio serves, above dataset.root; empty is its parent"),
  ("oracle.port", 0, RUN, between(0, 65_535),
   "port on 127.0.0.1 where the page is; 0 takes 8765 or, if it is taken, any "
   "that is free"),
  ("oracle.browser", False, RUN, YES_NO,
   "open the page in a browser, if this machine has a screen"),
  ("oracle.audit", 0, RESULT, between(0, 100_000),
   "images in each round that are drawn at random to measure the model and "
   "never trained on, beside those that budget buys"),
  ("oracle.selective", False, RESULT, YES_NO,
   "selective querying: a pick that the model is sure about takes its "
   "prediction as label and costs nothing"),

  ("scoring.neighbors", 10, RESULT, between(0, 1024),
   "nearest images found for each image; 0 searches for none"),
  ("scoring.neighbors_among", "all", RESULT, choice("all", "candidates"),
   "whether they are found for all images, or only among those that "
   "acquisition.preselect leaves, which costs the square of "
   "acquisition.gamma of that"),
  ("scoring.neighbors_exact", EXACT_UP_TO, RESULT, between(0, 10**12),
   "largest number of images in the pool for which the search compares all "
   "pairs; a larger pool is cut into lists by k-means, and most neighbors are "
   "found in the nearest lists"),
  ("scoring.neighbors_recall", RECALL, RESULT, SHARE,
   "share of the neighbors that the search in lists finds at least, on a "
   "sample; 1 compares all pairs"),
  ("scoring.tile", 0, RUN, between(0, 65_536),
   "images in one matrix product of the pass; 0 takes 4 to 128 on a CPU, "
   "depending on the model, and 128 on other devices"),

  ("parallel.backend", "shard_map", RUN, choice(*BACKENDS),
   "JAX function that spreads the passes over devices"),
  ("parallel.devices", 0, RUN, between(0, 1_000_000),
   "number of devices; 0 takes all"),

  ("checkpoint.every_seconds", 60.0, RUN, between(0, 1_000_000),
   "smallest number of seconds between two checkpoints of a round"),
  ("checkpoint.keep", 3, RUN, between(1, 1_000_000),
   "number of newest checkpoints that are kept, besides the last one of each "
   "round"),

  ("eval.every", 1, RESULT, between(0, 1_000_000),
   "rounds from one measurement on the test split to the next, since to encode "
   "it takes time; the last round is measured in any case, and 0 measures no "
   "other"),

  ("keep.predictions", "auto", RUN, choice("auto", "off"),
   "whether each round writes predictions.parquet, its logits for the "
   "validation and the test split, from which cpeal report draws calibration "
   "and errors; auto writes it, with 16 bits a number beyond ten million "
   "numbers"),

  ("logging.tensorboard", False, RUN, YES_NO,
   "whether each round's metrics are written for TensorBoard too, into the "
   "folder tensorboard of the workdir"),
  ("logging.wandb", "", RUN, Text(),
   "project of Weights & Biases that each round's metrics are sent to; empty "
   "for none; with WANDB_MODE=offline they stay in the folder wandb of the "
   "workdir"),
)
# fmt: on
KEYS = tuple(Key(*row) for row in TABLE)
