"""Images whose bytes stand in two splits, in two classes, or twice."""

import dataclasses

import pytest

from cpeal_jax.data import pools
from cpeal_jax.data.duplicates import check_duplicates
from cpeal_jax.errors import InputError


def split(name, **images):
  """A split of `id=(label, bytes)`."""
  ids = list(images)
  return pools.from_bytes(
    name,
    ids,
    [label for label, _ in images.values()],
    lambda i: images[ids[i]][1].encode(),
  )


def dataset(**changes):
  splits = {
    "train": split("train", a=(0, "1"), b=(1, "2"), c=(0, "3")),
    "val": split("val", d=(0, "4")),
    "test": split("test", e=(1, "5"), f=(0, "6")),
  }
  whole = pools.Dataset(name="own", classes=("x", "y"), **splits)
  return dataclasses.replace(whole, **changes)


def test_nothing_is_said_of_different_images():
  assert check_duplicates(dataset(), policy="refuse") == ()


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_copy_of_a_pool_image_is_refused_or_said(name):
  copied = split(name, g=(1, "2"), h=(0, "7"), i=(0, "1"))
  data = dataset(**{name: copied})
  words = rf"2 of 3 images of split {name} .*\(g = b, i = a\)"
  with pytest.raises(InputError, match=words) as error:
    check_duplicates(data, policy="refuse")
  assert "dataset.duplicates=allow" in str(error.value)
  (line,) = check_duplicates(data, policy="allow")
  assert line in str(error.value)


def test_one_picture_under_two_labels_is_said():
  data = dataset(train=split("train", a=(0, "1"), b=(1, "1"), c=(0, "3")))
  contradiction, copies = check_duplicates(data, policy="refuse")
  assert contradiction.startswith("1 image has the same bytes as an image of")
  assert "(a = b)" in contradiction
  assert copies.startswith("1 image of the pool repeats")


def test_the_same_picture_three_times_counts_twice():
  data = dataset(train=split("train", a=(0, "1"), b=(0, "1"), c=(0, "1")))
  (line,) = check_duplicates(data, policy="refuse")
  assert line.startswith("2 images of the pool repeat")


def test_a_copy_in_test_and_val_is_between_them_alone():
  data = dataset(val=split("val", d=(0, "5")), test=split("test", e=(0, "5")))
  assert check_duplicates(data, policy="refuse") == ()


def test_unlabeled_images_contradict_nothing():
  data = dataset(train=split("train", a=(-1, "1"), b=(1, "1"), c=(0, "3")))
  (line,) = check_duplicates(data, policy="refuse")
  assert "repeat" in line


def test_three_are_named_and_the_rest_is_counted():
  many = {f"t{i}": (0, str(i)) for i in range(9)}
  data = dataset(
    train=split("train", **many),
    test=split("test", **{f"copy_of_{k}": v for k, v in many.items()}),
  )
  with pytest.raises(InputError, match=r"9 of 9 images .*t2, \.\.\.\)"):
    check_duplicates(data, policy="refuse")
