"""Settings of the documentation; ``sphinx-build -W docs docs/_build`` builds it without network access."""

from __future__ import annotations

import shutil
import sys
import warnings
from importlib.metadata import version as installed_version
from pathlib import Path

from numpy.typing import ArrayLike

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "_ext")]

# Sphinx reads below its own folder only. Links between notebooks would lead out of it through a symbolic link.
shutil.rmtree(HERE / "tutorials", ignore_errors=True)
shutil.copytree(HERE.parent / "tutorials", HERE / "tutorials", ignore=shutil.ignore_patterns(".*", "*_files"))

# Of sphinx_autodoc_typehints, with Sphinx 9.
warnings.filterwarnings("ignore", message=".*set_application' is deprecated")

project = "scanpy-cnnimpute"
author = "The scanpy-cnnimpute developers"
copyright = author  # noqa: A001 - the name that Sphinx reads
release = version = installed_version("scanpy-cnnimpute")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "package_pages",
]
exclude_patterns = ["_build", "jupyter_execute"]  # the latter is written by myst_nb beside the build
templates_path = ["_templates"]
nitpicky = True
suppress_warnings = ["config.cache"]  # typehints_formatter is a function

# Notebooks are executed by the tests, and shown with the outputs that are committed.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

autosummary_generate = True
autodoc_member_order = "bysource"
default_role = "literal"  # `X` and `.obs` in docstrings
napoleon_google_docstring = False
napoleon_use_ivar = False
napoleon_use_rtype = False
# Returns are sentences, with a list of the keys that are written; napoleon would read each as a type.
napoleon_custom_sections = ["Returns"]
always_use_bars_union = True
typehints_defaults = "comma"
typehints_document_rtype = False
typehints_use_signature_return = True


def typehints_formatter(annotation: object, _config: object = None) -> str | None:
    """NumPy's ArrayLike by its name, not as the union that it stands for."""
    return ":py:data:`~numpy.typing.ArrayLike`" if annotation == ArrayLike else None


bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

html_theme = "sphinx_book_theme"
html_title = "scanpy-cnnimpute"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "home_page_in_toc": False,
    "navbar_persistent": [],  # the search field stands in the sidebar
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
