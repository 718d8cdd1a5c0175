"""Writes the page of all settings from the table in `cpeal_jax.config.keys`.

The page `settings.md` has a line `[settings]`, in whose place each setting gets
an entry with its default, the values that it takes and what it means.
"""

from cpeal_jax.config import KEYS, RUN
from cpeal_jax.config.keys import HEADINGS, Key

PLACE = "[settings]"


def entries() -> str:
  """Returns all entries, group by group, in MyST's Markdown."""
  return "\n\n".join(
    f"## {heading}\n\n"
    + "\n\n".join(_entry(key) for key in KEYS if _group(key) == group)
    for group, heading in HEADINGS.items()
  )


def _group(key: Key) -> str:
  head, dot, _ = key.name.partition(".")
  return head if dot else ""


def _entry(key: Key) -> str:
  meaning = _plain(key.meaning[:1].upper() + key.meaning[1:])
  default = f"`{key.default!r}`" if key.default != "" else "empty"
  resumed = " May change when a run is resumed." if key.kind == RUN else ""
  return "\n".join(
    (
      f"````{{confval}} {key.name}",
      f"{meaning}. Default: **{default}**. Allowed: "
      f"{_plain(key.allowed.phrase)}.{resumed}",
      "````",
    )
  )


def _plain(text: str) -> str:
  """Keeps Markdown from reading a mark in the text, as in `num_classes`."""
  return "".join(f"\\{x}" if x in "\\`*_{}[]<>#|$" else x for x in text)


def _insert(app, docname: str, source: list[str]) -> None:
  del app
  if docname == "settings":
    before, mark, after = source[0].partition(PLACE)
    assert mark, f"settings.md has no line {PLACE}"
    source[0] = before + entries() + after


def _reread(app, env, added, changed, removed) -> list[str]:
  """The page depends on the package, whose changes Sphinx does not see."""
  del app, env, added, changed, removed
  return ["settings"]


def setup(app) -> dict:
  app.connect("source-read", _insert)
  app.connect("env-get-outdated", _reread)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
