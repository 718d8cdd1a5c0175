"""How the documentation is built.

  pip install -e '.[docs]'
  python -m sphinx -W --keep-going -b html docs docs/_build

The pages load nothing from another address: fonts are the system's, equations
are MathML, and the search is a script of the site's own.
"""

import sys
from pathlib import Path

import cpeal_jax

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "cpeal_jax"
author = "the authors of cpeal_jax"
project_copyright = f"2026, {author}"
version = release = cpeal_jax.__version__

extensions = [
  "myst_parser",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "docstrings",
  "file_links",
  "mathml",
  "notebooks",
  "settings_page",
]
exclude_patterns = ["_build", "_ext"]
# A name in single backticks is code, as in the docstrings of the package.
default_role = "code"
# Blocks without a language are output, tables and formulas.
highlight_language = "none"

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
# A heading in a record of measurements may leave out a level.
suppress_warnings = ["myst.header"]

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "cpeal_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
# The pages are plain files that anyone may read from a disk.
html_copy_source = html_show_sourcelink = False
pygments_style, pygments_dark_style = "tango", "monokai"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
# One argument on a line where a signature is long.
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"
