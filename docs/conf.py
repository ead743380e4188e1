"""How Sphinx builds the site: Markdown pages, and an API reference read from the source text."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

project = "e5spark"
author = "The e5spark authors"
copyright = f"2026, {author}"

extensions = ["myst_parser", "sphinx.ext.napoleon", "autoapi.extension", "reference"]
exclude_patterns = ["_ext"]

myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3
smartquotes_action = "D"  # dashes, and no curly quotes around values

# The source is parsed and never imported: no torch, no pyspark.
autoapi_dirs = [str(ROOT / "e5spark")]
autoapi_generate_api_docs = False
autoapi_add_toctree_entry = False
autoapi_keep_files = False
autoapi_ignore = ["*/tables/*", "*/job/*", "*/benchmark/*", "*/cli/*", "*/__main__.py"]
# Imports of the modules ignored above, and of names that an assignment defines together.
suppress_warnings = ["autoapi.python_import_resolution"]
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False
python_display_short_literal_types = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 60

html_theme = "furo"
html_title = "e5spark"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_style = "friendly"
pygments_dark_style = "github-dark"
