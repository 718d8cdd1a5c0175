"""The JavaScript that draws charts, in one piece to put into a page.

It holds Vega, Vega-Lite and Vega-Embed, from the package vl-convert-python.
Making it takes seconds, so it is made once and kept in the cache.
"""

import importlib.metadata
from pathlib import Path

from cpeal_jax.errors import InputError
from cpeal_jax.storage import files

PACKAGE = "vl-convert-python"


def bundle(cache: Path) -> str:
  """Returns the JavaScript, from the cache if it has that of this version.

  Raises:
    InputError: the package is not installed.
  """
  try:
    version = importlib.metadata.version(PACKAGE)
  except importlib.metadata.PackageNotFoundError as error:
    raise InputError(
      f"cpeal report needs {PACKAGE}: pip install 'cpeal_jax[report]'"
    ) from error
  path = cache / f"vega-{version}.js"
  if path.exists():
    return path.read_text()
  import vl_convert

  text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
  # In a page, the text would end at these letters.
  text = text.replace("</script", "<\\/script")
  files.write_atomic(path, text)
  return text
