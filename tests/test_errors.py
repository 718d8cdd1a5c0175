"""The words of errors."""

import pytest

from cpeal_jax.errors import InputError, counted, reason


@pytest.mark.parametrize(
  ("message", "said"),
  [
    ("no such file.", "no such file"),
    ("first\nsecond", "first"),
    ("", "ValueError"),
    ("...", "ValueError"),
    ("a\tb\x00", r"a\tb\x00"),
  ],
)
def test_the_reason_of_another_librarys_error_is_one_line(message, said):
  assert reason(ValueError(message)) == said


def test_messages_escape_control_characters():
  assert str(InputError("a\rb\nc")) == r"a\rb\nc"


def test_words_go_with_their_number():
  assert [counted(n, "image") for n in (0, 1, 2)] == [
    *("0 images", "1 image", "2 images"),
  ]
  assert counted(1, "class has", "classes have") == "1 class has"
  assert counted(3, "class has", "classes have") == "3 classes have"
