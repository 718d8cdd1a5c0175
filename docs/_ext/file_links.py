"""Makes links of the names of pages that stand in the text as code.

The pages are read in a checkout as well, where `docs/results.md` and
`results.md` say which file to open. On the site the title of the page stands in
their place and leads there.
"""

import posixpath

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

# Pages of the site that are files at the top of the repository.
AT_THE_TOP = {
  "CHANGELOG.md": "changelog",
  "CONTRIBUTING.md": "contributing",
}


class FileLinks(SphinxPostTransform):
  """Replaces each name of a page by a link, but not on the page itself."""

  default_priority = 500

  def run(self, **kwargs) -> None:
    del kwargs
    here = self.env.current_document.docname
    for literal in [*self.document.findall(nodes.literal)]:
      page = self._page(literal.astext(), here)
      if page in (None, here) or isinstance(literal.parent, nodes.reference):
        continue
      title = self.env.titles[page].astext()
      link = make_refnode(self.app.builder, here, page, None, nodes.Text(title))
      literal.replace_self(link)

  def _page(self, text: str, here: str) -> str | None:
    if not text.endswith(".md"):
      return None
    name = AT_THE_TOP.get(text) or text.removeprefix("docs/").removesuffix(
      ".md"
    )
    beside = posixpath.join(posixpath.dirname(here), name)
    for page in (name, posixpath.normpath(beside)):
      if page in self.env.found_docs:
        return page
    return None


def setup(app) -> dict:
  app.add_post_transform(FileLinks)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
