"""The site: `make docs` builds it into docs/_build, from the pages here, the docstrings and the examples."""

import os
import re
from importlib.metadata import version as version_of

project = "normscope"
author = "the normscope developers"
copyright = "the normscope developers"  # Sphinx's own name for it
version = release = version_of("normscope")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
default_role = "py:obj"  # names in docstrings stand in single backticks
exclude_patterns = ["_build", "gallery/*.ipynb", "gallery/*.md5", "gallery/*.py", "gallery/backreferences", "README.md"]
templates_path = ["_templates"]
# Links to files of the repository beside docs/ lead nowhere here; tests/test_docs.py follows all links.
suppress_warnings = ["config.cache", "myst.xref_missing"]
nitpicky = False

# Pages are Markdown. Equations are plain text, so that a page needs no script from elsewhere.
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# The API is what `normscope.__all__` lists; each name has a page with its docstring and the examples that use it.
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# Every example runs, and an error in one fails the build. Their scripts and notebooks can be downloaded from the pages.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"deep_cnn\.py$|__init__\.py$",
    "backreferences_dir": "gallery/backreferences",
    "doc_module": ("normscope",),
    "within_subsection_order": "FileNameSortKey",
    "matplotlib_animations": False,
    "download_all_examples": False,
    "show_signature": False,
    "abort_on_example_error": False,
    "min_reported_time": 0,
    "capture_repr": (),
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,
    "reference_url": {"normscope": None},
    "plot_gallery": os.environ.get("NORMSCOPE_GALLERY", "1") == "1",
}

html_theme = "furo"
html_title = "normscope"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
linkcheck_timeout = 10


def _plain_bars(app, what, name, obj, options, lines):
    """|B| and |mean| in docstrings are magnitudes, not reStructuredText's substitutions."""
    for i, line in enumerate(lines):
        parts = re.split(r"(`+[^`]*`+)", line)
        lines[i] = "".join(part if part.startswith("`") else part.replace("|", r"\|") for part in parts)


def _returned_in_words(app, what, name, obj, options, lines):
    """What is returned is described in words, its type is in the signature: what stands before a colon is no type."""
    for i, line in enumerate(lines[:-1]):
        if line.strip() in ("Returns:", "Yields:"):
            indent = lines[i + 1][: -len(lines[i + 1].lstrip())]
            lines[i + 1] = f"{indent}: {lines[i + 1].lstrip()}"


def setup(app):
    """Connect what is done to docstrings."""
    app.connect("autodoc-process-docstring", _plain_bars)
    app.connect("autodoc-process-docstring", _returned_in_words, priority=100)  # before napoleon reads it
