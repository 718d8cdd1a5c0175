"""The words of errors."""

import ast
from pathlib import Path

import pytest

import cpeal_jax
from cpeal_jax.errors import InputError, counted, percent, reason, renamed


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


@pytest.mark.parametrize(
  ("share", "text"),
  [
    *((0.0, "0 %"), (0.0001, "0.1 %"), (0.004, "0.4 %"), (0.01, "1 %")),
    *((0.485, "49 %"), (0.99, "99 %"), (0.995, "99.5 %"), (0.99999, "99.9 %")),
    (1.0, "100 %"),
  ],
)
def test_a_share_is_not_rounded_to_none_or_all(share, text):
  assert percent(share) == text


def test_only_one_function_writes_percents():
  """A format such as `.0%` would write "49%" where others write "49 %"."""
  package = Path(cpeal_jax.__file__).parent
  found = [
    f"{path.name}:{node.lineno}"
    for path in package.rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FormattedValue)
    and node.format_spec is not None
    and ast.unparse(node.format_spec).rstrip("'\"").endswith("%")
  ]
  assert found == []


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("set dataset.root=x", "set DIR=x"),
    ("set --config.dataset.root=x", "set DIR=x"),
    ("dataset.root is not set", "DIR is not set"),
    ("/a/dataset.root/b and dataset.root/b", "/a/dataset.root/b and "),
    ("dataset.roots and my-dataset.root", "dataset.roots and my-dataset.root"),
  ],
)
def test_settings_are_called_as_a_command_calls_them(text, said):
  assert renamed(text, {"dataset.root": "DIR"}).startswith(said)
  assert renamed(text, {}) == text
