r"""Lets docstrings say formulas as a reader of the code would write them.

`$x$` is an equation in a line. An indented block is a formula: with `$$` around
it an equation, else shown letter by letter, as it stands.
"""

import re

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")


def as_rest(lines: list[str]) -> list[str]:
  """Returns the lines of a docstring in reStructuredText."""
  return [*_blocks(lines)]


def _inline(line: str) -> str:
  """Writes code and equations as roles, and escapes marks in what is left."""
  parts = re.split(r"(`[^`]+`|(?<![\w$])\$[^$]+\$(?!\w))", line)
  for i, part in enumerate(parts):
    if i % 2 == 0:
      parts[i] = re.sub(r"(\||(?<!\*)\*(?!\*)|_(?!\w))", r"\\\1", part)
      continue
    role = "code" if part.startswith("`") else "math"
    # What follows at once, as the s of a plural, would be a part of the role.
    parts[i] = f":{role}:`{part[1:-1]}`" + "\\ " * (parts[i + 1][:1].isalnum())
  return "".join(parts)


def _blocks(lines: list[str]):
  """Marks blocks of the prose that are indented, and nothing in a section."""
  in_section = False
  i = 0
  while i < len(lines):
    line = lines[i]
    if line and not line.startswith(" "):
      in_section = bool(SECTION.match(line))
    starts = line.startswith("  ") and (i == 0 or not lines[i - 1].strip())
    if in_section or not starts:
      yield _inline(line)
      i += 1
      continue
    block = []
    while i < len(lines) and (
      lines[i].startswith("  ") or not lines[i].strip()
    ):
      block.append(lines[i])
      i += 1
    yield from _formula(block)


def _formula(block: list[str]):
  text = "\n".join(block).strip()
  if text.startswith("$$") and text.endswith("$$"):
    yield from (".. math::", "")
    block = [
      f"  {line.strip()}" for line in text.strip("$").strip().splitlines()
    ]
  else:
    yield from ("::", "")
  yield from (*block, "")


def _process(app, what, name, obj, options, lines: list[str]) -> None:
  del app, what, name, obj, options
  lines[:] = as_rest(lines)


# The names that a reader of the code sees, where Python knows longer ones.
NAMES = (
  # Sphinx writes ~ before a name that it is to shorten itself.
  (r"~?\b(jaxlib\._jax|jaxtyping|numpy|collections\.abc|typing)\.", ""),
  (
    r"Key\[Array, ''\] \| UInt32\[Array, '2'\] \| UInt32\[Array, '4'\]",
    "PRNGKeyArray",
  ),
)


def _shorten(
  app, what, name, obj, options, signature: str | None, result: str | None
) -> tuple[str | None, str | None]:
  del app, what, name, obj, options
  texts = [signature, result]
  for pattern, short in NAMES:
    texts = [text and re.sub(pattern, short, text) for text in texts]
  return texts[0], texts[1]


def _skip(app, what, name, obj, skip: bool, options) -> bool | None:
  """Leaves out what Python says of a field; the class describes its fields."""
  del app, what, name, skip, options
  doc = getattr(obj, "__doc__", None) or ""
  return True if doc.startswith("Alias for field number") else None


def setup(app) -> dict:
  # Before napoleon, which reads the sections.
  app.connect("autodoc-process-docstring", _process, priority=400)
  app.connect("autodoc-process-signature", _shorten)
  app.connect("autodoc-skip-member", _skip)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
