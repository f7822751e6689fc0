"""Sphinx's configuration; CONTRIBUTING.md has the command that builds the pages."""

import re
import shutil
from pathlib import Path

import flaxmnist

REPOSITORY = "https://github.com/flaxmnist/flaxmnist"

project = "flaxmnist"
author = "The flaxmnist authors"
project_copyright = author
release = version = flaxmnist.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_heading_anchors = 4
# The notebooks show the outputs of the runs with which they were committed.
nb_execution_mode = "off"
nb_merge_streams = True

default_role = "literal"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# Defaults appear as in the source.
autodoc_preserve_defaults = True
maximum_signature_line_length = 78
napoleon_use_ivar = True
napoleon_use_rtype = False
# Signatures have the types.
napoleon_attr_annotations = False

html_title = "flaxmnist"
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["flaxmnist.css"]
html_copy_source = False
html_theme_options = {
    "repository_url": REPOSITORY,
    "repository_branch": "main",
    "path_to_docs": "docs",
    "use_repository_button": True,
    "use_edit_page_button": True,
    "show_toc_level": 2,
    "home_page_in_toc": True,
    # The side bar has the search field.
    "navbar_persistent": [],
    # Wide tables take the place of the contents.
    "secondary_sidebar_items": {
        "**": ["page-toc"],
        "reference/options": [],
        "results": [],
    },
}


HERE = Path(__file__).parent


def setup(app):
    """Adds the notebooks to the pages, and corrects links that leave docs/."""
    (HERE / "tutorials").mkdir(exist_ok=True)
    for notebook in HERE.glob("../colab/*.ipynb"):
        shutil.copy2(notebook, HERE / "tutorials")
    app.connect("source-read", _redirect)


def _redirect(app, docname, source):
    """Directs links to ../colab to the tutorials, and other links to the repository."""
    depth = docname.count("/")
    outside = r"(\]\(|\]: )" + re.escape("../" * (depth + 1))
    tutorials, files = "../" * depth + "tutorials/", f"{REPOSITORY}/blob/main/"
    source[0] = re.sub(outside + "colab/", rf"\1{tutorials}", source[0])
    source[0] = re.sub(outside + r"(?!\.\.)", rf"\1{files}", source[0])
