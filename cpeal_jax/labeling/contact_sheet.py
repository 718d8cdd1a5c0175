"""The contact sheet `to_label.html`: all images of a round on one page.

The page is a single file that needs no network. Its pictures are in it, and its
Content-Security-Policy allows nothing else, no script above all.
"""

import base64
import hashlib
import os
from collections.abc import Sequence

import jinja2

from cpeal_jax.data import formats, reading
from cpeal_jax.errors import InputError, counted, escaped, percent
from cpeal_jax.labeling import thumbnails
from cpeal_jax.labeling.questions import Question
from cpeal_jax.labeling.reasons import in_words
from cpeal_jax.labeling.words import offered

# A page with more pictures would be slow to open. The CSV file has them all.
MOST_SHOWN = 1_000
STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem auto;
  max-width: 75rem; padding: 0 1rem; }
ul { display: grid; gap: 1rem; list-style: none; padding: 0;
  grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }
li { border: 1px solid var(--line); border-radius: .5rem; padding: .75rem;
  overflow-wrap: anywhere; }
figure { margin: 0; }
.picture { align-items: center; background: var(--soft); display: flex;
  height: 10rem; justify-content: center; }
img { height: 100%; object-fit: contain; width: 100%; }
figcaption { font-size: .875rem; margin-top: .5rem; }
figcaption p { margin: .25rem 0 0; }
code { background: var(--soft); border-radius: .25rem; padding: 0 .25em; }
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>For each image, write one of these words into the column <code>label</code>
of <code>to_label.csv</code>:
{% for word in words %}<code>{{ word }}</code>{{ ", " if not loop.last }}
{%- endfor %}.</p>
{% if left_out %}
<p>This page shows the first {{ shown | length }} images.
{{ left_out }} in <code>to_label.csv</code>.</p>
{% endif %}
<ul>
{% for question, picture in shown %}
<li><figure>
<div class="picture">
{%- if picture %}<img src="{{ picture }}" alt="{{ question.id | printable }}">
{%- else %}This file cannot be shown.{% endif -%}
</div>
<figcaption><code>{{ question.id | printable }}</code>
{% if question.prediction %}
<p>The model says {{ question.prediction }}
{%- if question.confidence is not none %},
{{ question.confidence | percent }}{% endif %}.</p>
{% endif %}
{% if question.reason %}<p>Why: {{ question.reason | in_words }}</p>{% endif %}
</figcaption>
</figure></li>
{% endfor %}
</ul>
</body>
</html>
"""
# Every value is escaped, and one that is missing is an error.
_environment = jinja2.Environment(
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)
_environment.filters |= {
  "printable": escaped,
  "in_words": in_words,
  "percent": percent,
}
_page = _environment.from_string(PAGE)


def text(
  questions: Sequence[Question],
  *,
  classes: Sequence[str],
  root: str | os.PathLike,
  value_range: formats.Range = None,
) -> str:
  """Returns the page.

  Args:
    questions: the images, as a person may see them.
    classes: the names of the classes.
    root: the data root, below which the images are.
    value_range: black and white of deep images, see `formats.to_eight_bits`.
  """
  digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
  more = len(questions) - MOST_SHOWN
  return _page.render(
    policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'",
    style=STYLE,
    title=counted(len(questions), "image to label", "images to label"),
    words=offered(classes),
    shown=[
      (question, _picture(root, question.id, value_range))
      for question in questions[:MOST_SHOWN]
    ],
    left_out=counted(more, "other is", "others are") if more > 0 else "",
  )


def _picture(
  root: str | os.PathLike, id_: str, value_range: formats.Range
) -> str:
  """Returns the address of an image's thumbnail; empty if there is none."""
  try:
    data = reading.read_bytes(os.path.join(root, id_))
  except InputError:
    return ""
  return thumbnails.data_uri(data, value_range=value_range)
