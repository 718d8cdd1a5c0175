"""The catalogue of the papers' data sets.

It holds the prompt template, the image counts, the class names and the source
of each data set.

Class names come from:
- CoOp's split files for EuroSAT, DTD, Flowers102, Pets and Caltech101;
- the rules of CoOp's readers for Cars (the year comes first) and SUN397 (the
  last folder comes first);
- the folder names for Food101;
- CLIP's list of prompts for the variants of Aircraft, UCF101 (spelled as CoOp's
  folders) and CIFAR;
- CLIP's 1,000 names for ImageNet, with the second "missile" changed to
  "projectile" and the second "sunglasses" to "sunglass";
- its paper for colorectal histology;
- the five grades, in words, for APTOS.

Templates are CoOp's zero-shot templates, except for those of colorectal
histology and APTOS, which are this project's.

The counts of the papers' splits are those of CoOp's split files: five of the
files were counted, and for the others CoOp's paper states the numbers. The
counts of TFDS are those of its catalogue, except for SUN397, where one listed
image is not counted because TFDS's code skips it.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable
from pathlib import Path

from cpeal_jax.errors import InputError, one_of

CLASSES = Path(__file__).parent / "classes"
COOP = "split_zhou_{} (links: DATASETS.md of KaiyangZhou/CoOp)"


@dataclasses.dataclass(frozen=True)
class Entry:
  """What is known about a data set before it is read.

  Attributes:
    title: its name in prose.
    template: the zero-shot prompt, with `{}` for the class.
    layout: the layout of its files, if they are read from a data root.
    get: the files to download, and their places below DIR, the data root.
    terms: license or terms of use, as its authors state them.
    papers: numbers of images in the (train, val, test) split of the papers;
      None if that split is not published.
    total: number of labeled images; 0 if `papers` is given.
    tfds: `name/config:version` of the data set in TFDS; empty if TFDS lacks it.
    splits: (this project's name of a split, TFDS's name of it, number of
      images) of that version, not counting images of dropped labels.
    file: template of an image's id, filled in from TFDS's features, `label` and
      `split`. If CoOp has a split file, the result ends in the file name that
      the split file has.
    manual: the files that TFDS cannot download itself, and where to put them.
    dropped: names of labels whose images are left out.
  """

  title: str
  template: str
  layout: str
  get: str
  terms: str
  papers: tuple[int, int, int] | None = None
  total: int = 0
  tfds: str = ""
  splits: tuple[tuple[str, str, int], ...] = ()
  file: str = ""
  manual: str = ""
  dropped: tuple[str, ...] = ()


CATALOGUE: dict[str, Entry] = {
  "eurosat": Entry(
    title="EuroSAT (RGB)",
    template="a centered satellite photo of {}.",
    layout="coop",
    get="EuroSAT.zip (DIR/2750/CLASS/*.jpg) and " + COOP.format("EuroSAT.json"),
    terms="MIT; Copernicus Sentinel data",
    papers=(13500, 5400, 8100),
    tfds="eurosat/rgb:2.0.0",
    splits=(("train", "train", 27000),),
    file="{label}/{filename}",
  ),
  "dtd": Entry(
    title="Describable Textures",
    template="{} texture.",
    layout="coop",
    get="dtd-r1.0.1.tar.gz (DIR/images/CLASS/*.jpg) and "
    + COOP.format("DescribableTextures.json"),
    terms="for research",
    papers=(2820, 1128, 1692),
    tfds="dtd:3.0.1",
    splits=(
      ("train", "train", 1880),
      ("val", "validation", 1880),
      ("test", "test", 1880),
    ),
    file="{file_name}",
  ),
  "flowers102": Entry(
    title="Oxford Flowers 102",
    template="a photo of a {}, a type of flower.",
    layout="coop",
    get="102flowers.tgz (DIR/jpg/*.jpg) and "
    + COOP.format("OxfordFlowers.json"),
    terms="none stated",
    papers=(4093, 1633, 2463),
    tfds="oxford_flowers102:2.1.1",
    splits=(
      ("train", "train", 1020),
      ("val", "validation", 1020),
      ("test", "test", 6149),
    ),
    file="{file_name}",
  ),
  "oxford_pets": Entry(
    title="Oxford-IIIT Pets",
    template="a photo of a {}, a type of pet.",
    layout="coop",
    get="images.tar.gz (DIR/images/*.jpg) and "
    + COOP.format("OxfordPets.json"),
    terms="CC BY-SA 4.0",
    papers=(2944, 736, 3669),
    tfds="oxford_iiit_pet:4.0.0",
    splits=(("train", "train", 3680), ("test", "test", 3669)),
    file="{file_name}",
  ),
  "caltech101": Entry(
    title="Caltech 101",
    template="a photo of a {}.",
    layout="coop",
    get="101_ObjectCategories.tar.gz (DIR/101_ObjectCategories/CLASS/*.jpg) "
    "and " + COOP.format("Caltech101.json"),
    terms="CC BY 4.0",
    papers=(4128, 1649, 2465),
    tfds="caltech101:3.0.2",
    splits=(("train", "train", 3000), ("test", "test", 5242)),
    file="{label}/{image/file_name}",
    dropped=(
      "background_google",
      "faces_easy",
      "BACKGROUND_Google",
      "Faces_easy",
    ),
  ),
  "stanford_cars": Entry(
    title="Stanford Cars",
    template="a photo of a {}.",
    layout="coop",
    get="cars_train.tgz and cars_test.tgz (DIR/cars_train/*.jpg, "
    "DIR/cars_test/*.jpg) and " + COOP.format("StanfordCars.json"),
    terms="not known to us",
    papers=(6509, 1635, 8041),
    tfds="cars196:2.1.0",
    splits=(("train", "train", 8144), ("test", "test", 8041)),
    file="cars_{split}/{id}.jpg",
  ),
  "fgvc_aircraft": Entry(
    title="FGVC Aircraft (variants)",
    template="a photo of a {}, a type of aircraft.",
    layout="aircraft",
    get="fgvc-aircraft-2013b.tar.gz, its folder data/ as DIR "
    "(DIR/variants.txt, DIR/images_variant_{train,val,test}.txt, "
    "DIR/images/*.jpg)",
    terms="for research, non-commercial",
    papers=(3334, 3333, 3333),
  ),
  "ucf101": Entry(
    title="UCF101 (middle frames)",
    template="a photo of a person doing {}.",
    layout="coop",
    get="UCF-101-midframes.zip (DIR/UCF-101-midframes/CLASS/*.jpg) and "
    + COOP.format("UCF101.json"),
    terms="not known to us",
    papers=(7639, 1898, 3783),
  ),
  "food101": Entry(
    title="Food-101",
    template="a photo of {}, a type of food.",
    layout="coop",
    get="food-101.tar.gz (DIR/images/CLASS/*.jpg) and "
    + COOP.format("Food101.json"),
    terms="images of Foodspotting: scientific fair use",
    papers=(50500, 20200, 30300),
    # The version whose records name their file.
    tfds="food101:2.1.0",
    splits=(("train", "train", 75750), ("test", "validation", 25250)),
    file="{id}.jpg",
  ),
  "sun397": Entry(
    title="SUN397",
    template="a photo of a {}.",
    layout="coop",
    get="SUN397.tar.gz (DIR/SUN397/LETTER/SCENE/*.jpg) and "
    + COOP.format("SUN397.json"),
    terms="not known to us",
    papers=(15880, 3970, 19850),
    tfds="sun397/tfds:4.0.0",
    splits=(
      ("train", "train", 76127),
      ("val", "validation", 10875),
      ("test", "test", 21750),
    ),
    file="{file_name}",
  ),
  "imagenet": Entry(
    title="ImageNet (ILSVRC 2012)",
    template="a photo of a {}.",
    layout="imagenet",
    get="ILSVRC2012_img_{train,val}.tar from image-net.org (an account is "
    "needed), unpacked to DIR/images/{train,val}/SYNSET/*.JPEG; "
    "DIR/classnames.txt if you have CoOp's",
    terms="for research, non-commercial; image-net.org's terms of access",
    total=1331167,
    tfds="imagenet2012:5.1.0",
    splits=(("train", "train", 1281167), ("test", "validation", 50000)),
    file="{split}/{label}/{file_name}",
    manual="ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from "
    "image-net.org in DATA_DIR/downloads/manual",
  ),
  "cifar10": Entry(
    title="CIFAR-10",
    template="a photo of a {}.",
    layout="folders",
    get="class folders: DIR/train/CLASS/*.png and DIR/test/CLASS/*.png",
    terms="none stated; cite Krizhevsky 2009",
    total=60000,
    tfds="cifar10:3.0.2",
    splits=(("train", "train", 50000), ("test", "test", 10000)),
    file="{split}/{id}",
  ),
  "cifar100": Entry(
    title="CIFAR-100",
    template="a photo of a {}.",
    layout="folders",
    get="class folders: DIR/train/CLASS/*.png and DIR/test/CLASS/*.png",
    terms="none stated; cite Krizhevsky 2009",
    total=60000,
    tfds="cifar100:3.0.2",
    splits=(("train", "train", 50000), ("test", "test", 10000)),
    file="{split}/{id}",
  ),
  "colorectal_histology": Entry(
    title="Colorectal Histology",
    template="a histology image of {}.",
    layout="folders",
    get="Kather_texture_2016_image_tiles_5000.zip (zenodo.org/records/53169), "
    "its class folders as DIR/01_TUMOR/*.tif and so on",
    terms="CC BY 4.0",
    total=5000,
    tfds="colorectal_histology:2.0.0",
    splits=(("train", "train", 5000),),
    file="{label}/{filename}",
  ),
  "aptos": Entry(
    title="APTOS 2019",
    template="a fundus photograph of {}.",
    layout="aptos",
    get="train.csv and train_images/ of Kaggle's aptos2019-blindness-detection "
    "(an account is needed) as DIR/train.csv and DIR/train_images/*.png",
    terms="Kaggle's competition rules",
    total=3662,
  ),
}


def find(name: str) -> Entry:
  """Returns the catalogue's entry of a data set.

  Raises:
    InputError: there is no such entry; the message has the valid names.
  """
  return CATALOGUE[one_of("dataset.name", name, CATALOGUE)]


@functools.cache
def class_table(name: str) -> dict[str, str]:
  """Reads the table from label names to the class names for prompts.

  Label names are spelled as in TFDS or as the folder; several spellings of a
  label may map to the same class name. The order of the table is the order of
  the classes.
  """
  return json.loads((CLASSES / f"{name}.json").read_text(encoding="utf-8"))


def classes(name: str) -> tuple[str, ...]:
  """Returns the class names of a data set, in the order of their labels."""
  return tuple(dict.fromkeys(class_table(name).values()))


def class_names(name: str, labels: Iterable[str]) -> dict[str, str]:
  """Returns a dict from label name to class name, without dropped labels.

  Raises:
    InputError: the table lacks some of the labels; the message lists them.
  """
  table, dropped = class_table(name), find(name).dropped
  kept = [label for label in labels if label not in dropped]
  if unknown := [label for label in kept if label not in table]:
    raise InputError(
      f"{len(unknown)} label(s) are no class of {name}: "
      f"{', '.join(map(repr, unknown[:5]))}; its labels are "
      f"{', '.join(list(table)[:3])}, ...: use the files of this data set, or "
      "set dataset.name to the empty string to use a data set of your own"
    )
  return {label: table[label] for label in kept}


def papers(name: str) -> dict[str, int]:
  """Returns the papers' number of images in each split.

  The dict is empty if the papers' split is not published.
  """
  counts = find(name).papers
  return dict(zip(("train", "val", "test"), counts or (), strict=bool(counts)))


def origin(name: str, source: str, counts: dict[str, int]) -> str:
  """Returns `source`, with a remark if the splits are the papers'.

  Args:
    name: the data set's key in the catalogue.
    source: where the splits come from, in words.
    counts: number of images in each split; the splits count as the papers' if
      these numbers are equal.
  """
  same = bool(counts) and counts == papers(name)
  return source + (", comparable to the papers" if same else "")


def check_counts(what: str, got: dict[str, int], known: dict[str, int]) -> None:
  """Checks the number of images in each split.

  Args:
    what: the data set or file, for the message.
    got: the number of images in each split.
    known: the expected numbers, of the splits to check.

  Raises:
    InputError: a split has more or fewer images than expected.
  """
  wrong = [
    f"{split} {got.get(split, 0)} (expected {count})"
    for split, count in known.items()
    if got.get(split, 0) != count
  ]
  if wrong:
    raise InputError(
      f"{what} does not have the known number of images: {', '.join(wrong)}; "
      "complete it, or set dataset.check_counts=False to use it as it is"
    )
