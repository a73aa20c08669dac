"""Sphinx settings. `make docs` builds with warnings as errors.

Code cells of the pages and the notebooks of `examples/` run during the build (a cache keeps what has not changed), and
a cell that raises fails it. `make notebooks` runs the same notebooks once more from an installed wheel.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import tubelet

project = "tubelet"
author = "The tubelet authors"
copyright = "2026, The tubelet authors"
version = release = tubelet.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "api_pages",
    "notebooks",
]
exclude_patterns = ["_build", "_ext", "**.ipynb_checkpoints"]

html_theme = "furo"
html_title = f"tubelet {version}"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # a field described under Attributes is not a second definition of it
