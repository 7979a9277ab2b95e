"""How Sphinx makes the documentation site of the pages in this folder: `make docs`."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT / "src"))

from coadapt import __version__  # noqa: E402

project = "coadapt"
author = "The coadapt contributors"
project_copyright = "the coadapt contributors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["README.md"]  # index of the folder, as the site has its own
html_theme = "furo"
html_title = "coadapt"
myst_heading_anchors = 3  # links to sections, as a repository's pages have them
autodoc_member_order = "bysource"
autodoc_typehints = "description"
nitpicky = False  # base classes of torch and transformers have no pages here
# A table's bar and a set's braces are text to the highlighter of the block they stand in.
suppress_warnings = ["misc.highlighting_failure"]

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#]+)(#[^)]*)?\)")


def _name_what_is_outside(_: Sphinx, page: str, source: list[str]) -> None:
    """Turn links to files that the site does not hold into their names in the repository.

    The pages are read in the repository too, where such links lead to files.
    """
    folder = (DOCS / page).parent

    def named(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if target.is_relative_to(DOCS):
            return link[0]
        inside = target.relative_to(ROOT)
        text = link[1].strip("`")
        return f"`{inside}`" if text in str(inside) else f"{link[1]} (`{inside}`)"

    source[0] = _LINK.sub(named, source[0])


def setup(app: Sphinx) -> None:
    """Connect the above."""
    app.connect("source-read", _name_what_is_outside)
