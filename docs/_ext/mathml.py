"""Writes equations as MathML, which browsers show without a script.

Sphinx's own renderers load a script from another address, or need TeX. docutils
translates TeX by itself, as far as the equations of this project need it.
"""

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml


def _inline(writer, node: nodes.math) -> None:
  writer.body.append(tex2mathml(node.astext()))
  raise nodes.SkipNode


def _block(writer, node: nodes.math_block) -> None:
  text = node.astext()
  if r"\\" in text:
    text = rf"\begin{{aligned}}{text}\end{{aligned}}"
  writer.body.append(writer.starttag(node, "div", CLASS="math-block"))
  writer.body.append(tex2mathml(text, as_block=True))
  writer.body.append("</div>\n")
  raise nodes.SkipNode


def setup(app) -> dict:
  app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
  return {"parallel_read_safe": True, "parallel_write_safe": True}
