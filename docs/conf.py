"""Sphinx configuration: `python -m sphinx -W -b html docs docs/_build/html`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate

generate.generate()

project = "lmjax"
author = "the lmjax authors"
copyright = "the lmjax authors"
extensions = ["myst_nb"]
exclude_patterns = ["_build", "_generated/parts", "**.ipynb_checkpoints"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
suppress_warnings = ["mystnb.unknown_mime_type"]
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False

html_title = "lmjax"
html_theme = "pydata_sphinx_theme"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False, "show_prev_next": False}
html_static_path = ["_static"]
html_show_sourcelink = False


def setup(app):
    """Report documentation that no longer matches the tree as warnings, which `-W` turns into errors."""
    app.connect("builder-inited", lambda app: generate.warn())
