"""Keeps spreadsheet programs from taking a cell of a CSV file for a formula.

A program that opens a CSV file computes a cell that begins with "=", "+", "-",
"@", a tab or a line end, and a file's name may begin so. We put an apostrophe
before such a cell and take it off again when the file comes back. The same is
done behind each comma, semicolon and tab in a cell, since a program that is set
to another separator begins a new cell there.
"""

import re

_START = r"(?:(?<=[,;\t\r\n])|\A)"
# A cell that begins with apostrophes and then so gets one more, so that taking
# one off gives back any text.
_RISK = r"(?='*[=+\-@\t\r\n])"
_BEFORE_RISK = re.compile(_START + _RISK)
_APOSTROPHE = re.compile(_START + "'" + _RISK)


def neutralized(text: str) -> str:
  """Returns a cell's text so that no program takes it for a formula."""
  return _BEFORE_RISK.sub("'", text)


def restored(cell: str) -> str:
  """Returns the text that `neutralized` made the cell of."""
  return _APOSTROPHE.sub("", cell)
