"""Configuration of Sphinx."""

import shutil
from importlib.metadata import version as version_of

# The notebooks lie beside the folder of the documentation; Sphinx reads what is in it.
shutil.rmtree("notebooks", ignore_errors=True)
shutil.copytree("../notebooks", "notebooks")

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
