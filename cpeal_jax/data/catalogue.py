"""Lists known data sets: templates, counts, class names and downloads.

Sources of the class names:
  EuroSAT, DTD, Flowers102, Pets, Caltech101: CoOp's split files.
  Cars, SUN397: made from the labels by the rules of CoOp's code. The year of a
    car comes first, and so does the last folder of a SUN397 scene ("outdoor").
  Food101: the names of its folders.
  Aircraft, UCF101, CIFAR: CLIP's list of prompts. Aircraft's names are those of
    the variants, and UCF101's are spelled as CoOp spells its folders.
  ImageNet: CLIP's 1,000 names, with "projectile" for the second "missile" and
    "sunglass" for the second "sunglasses", since names must differ.
  Colorectal histology: the paper that published it.
  APTOS: its five grades in words.
The templates are CoOp's zero-shot templates. Those of colorectal histology and
APTOS, which CoOp does not have, are ours.

The image counts come from CoOp's split files (those of five files were counted,
the others are as CoOp's paper states them) and from TFDS's catalogue. SUN397's
are the lengths of TFDS's lists, minus one image that the code of TFDS skips.

Each digest is the `split_digest` of a split file; it is known for the five
files that were counted. docs/datasets.md has the command that computes it.
"""

import dataclasses
import functools
import hashlib
import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cpeal_jax.errors import InputError, counted, one_of

CLASSES = Path(__file__).parent / "classes"
# (id or path, label, ...) of each image, by split.
Rows = Mapping[str, Sequence[tuple]]
COOP = "split_zhou_{} (links: DATASETS.md of KaiyangZhou/CoOp)"


@dataclasses.dataclass(frozen=True)
class Entry:
  """What is known about a data set before it is read.

  Attributes:
    title: the data set's name in prose.
    template: the zero-shot prompt, with `{}` for the class name.
    layout: the layout of its files, if `dataset.root` is given.
    get: which files to download, and where to put them below DIR, the data
      root.
    terms: the license or terms of use, as its authors state them.
    papers: the numbers of images in (train, val, test) of the papers' split;
      None if no such split is published.
    digest: `split_digest` of that split; empty if we have not seen its file.
    total: the number of labeled images, if `papers` is None.
    tfds: `name/config:version` in TFDS; empty if TFDS does not have it.
    splits: (our split, TFDS's split, number of images) of that version; images
      of dropped labels are not counted.
    file: a format string that makes an image's id from the features of its TFDS
      record, its label's name as `label` and our split as `split`. If CoOp has
      a split file, the id is the path in that file.
    manual: the files that TFDS cannot download, and where it looks for them.
    dropped: labels whose images are left out.
  """

  title: str
  template: str
  layout: str
  get: str
  terms: str
  papers: tuple[int, int, int] | None = None
  digest: str = ""
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
    digest="3534b006c62d13ae36bd3402c471aaf65dd082b9ccbe06ab1c2897ea484d92cb",
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
    digest="51712e4a51df068380b0d0bcef97cb2ffb68ba7c71818ba1b53612f5217501d6",
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
    digest="1247a56da9dafb377326c892d52a443f9bba90f282e15d9f6c39a7377ee8af02",
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
    digest="c368d9f7a1683cd1c5ec833f8a7580243c13350a2179f2cb5aa23c0092df8e9e",
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
    digest="8526ebd3920f55d0db7e9be736383d207709cdf02565b8e6ffdafcde3bebb78c",
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
  """Returns the entry of a data set by its key.

  Raises:
    InputError: there is no such key; the message lists the keys.
  """
  return CATALOGUE[one_of("dataset.name", name, CATALOGUE)]


@functools.cache
def class_table(name: str) -> dict[str, str]:
  """Returns each label's class name for prompts, in the order of the classes.

  A label is spelled as in TFDS or as the name of its folder. If these differ,
  both spellings are keys with the same class name.
  """
  return json.loads((CLASSES / f"{name}.json").read_text(encoding="utf-8"))


def classes(name: str) -> tuple[str, ...]:
  """Returns the class names of a data set, in the order of their numbers."""
  return tuple(dict.fromkeys(class_table(name).values()))


def class_names(name: str, labels: Iterable[str]) -> dict[str, str]:
  """Returns a dict from each label that is not dropped to its class name.

  Raises:
    InputError: some labels are not in the data set's table; the message lists
      them.
  """
  table, dropped = class_table(name), find(name).dropped
  kept = [label for label in labels if label not in dropped]
  if unknown := [label for label in kept if label not in table]:
    raise InputError(
      f"{counted(len(unknown), 'label is', 'labels are')} no class of {name}: "
      f"{', '.join(map(repr, unknown[:5]))}; its labels are "
      f"{', '.join(list(table)[:3])}, ...: use the files of that data set, or "
      "set dataset.name to the empty string to use a data set of your own"
    )
  return {label: table[label] for label in kept}


def papers(name: str) -> dict[str, int]:
  """Returns the numbers of images in the papers' splits, by split.

  The dict is empty if no such splits are published.
  """
  counts = find(name).papers
  return dict(zip(("train", "val", "test"), counts or (), strict=bool(counts)))


def split_digest(rows: Rows) -> str:
  """Returns a digest of which images are in which split, and of their labels.

  It does not depend on the order of the rows, on letter case, or on the folder
  that all images are in, so it is the same for CoOp's split file and for the
  data set that is read with it.
  """
  folder = posixpath.commonpath(
    [posixpath.dirname(row[0]) for listed in rows.values() for row in listed]
  )
  above = len(folder) + 1 if folder else 0
  content = {
    split: sorted([row[0][above:].lower(), int(row[1])] for row in listed)
    for split, listed in rows.items()
  }
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def origin(name: str, source: str, rows: Rows) -> str:
  """Says where splits come from and whether they are those of the papers.

  Results are comparable to the papers if the images and labels of every split
  are the same. It is not enough that each split has the same number of images.

  Args:
    name: the data set's key in the catalogue.
    source: the first words of the text, such as the name of a split file.
    rows: (id or path, label, ...) of each image, by split.
  """
  counts = {split: len(listed) for split, listed in rows.items()}
  if not counts or counts != papers(name):
    return source
  known = find(name).digest
  if not known:
    return f"{source}, same counts as the papers' split"
  if split_digest(rows) != known:
    return (
      f"{source}, same counts as the papers' split, but other images or labels"
    )
  return f"{source}, comparable to the papers"


def check_counts(what: str, got: dict[str, int], known: dict[str, int]) -> None:
  """Compares the numbers of images by split with the known numbers.

  Args:
    what: the subject of the message, such as the data root.
    got: the number of images by split.
    known: the expected numbers; splits that are not in it are not compared.

  Raises:
    InputError: a split has more or fewer images.
  """
  wrong = [
    f"{split} {got.get(split, 0)} (expected {count})"
    for split, count in known.items()
    if got.get(split, 0) != count
  ]
  if wrong:
    raise InputError(
      f"{what} does not have the known number of images: {', '.join(wrong)}; "
      "get all of its images, or set dataset.check_counts=False to use those "
      "that are there"
    )
