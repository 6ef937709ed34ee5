"""Configuration of Sphinx."""

from importlib.metadata import version as version_of

project = "executorlib"
copyright = "the executorlib developers"  # noqa: A001  # the name that Sphinx reads
version = release = version_of("executorlib")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run what is to be run
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "executorlib"

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True
