"""How Sphinx builds the documentation; docs/development.md has the command."""

import os
import pydoc
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Of Sphinx itself, which imports the packages, and of the processes that run the notebooks.
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from sphinx.util.nodes import make_refnode  # noqa: E402

import capsjax  # noqa: E402

project = "capsjax"
author = "the authors of capsjax"
version = release = capsjax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Notebooks run whenever the documentation is built, and a cell that fails ends the build.
nb_execution_mode = "force"
nb_execution_timeout = 600  # seconds for a cell
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88

# Types of other projects, which are not looked up: the build needs no network.
nitpick_ignore_regex = [
    ("py:class", "ArrayTree"),  # of chex
    ("py:.*", r"(jax|jaxlib|jnp|flax|nnx|optax|chex|numpy|collections|types|typing)\..*"),
]

html_theme = "sphinx_book_theme"
html_title = "capsjax"
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],
}


def _documented(app, env, node, content):
    """Links a name to where the object is documented, under whichever name that is.

    The API pages document an object once, under the name by which it is imported. Docstrings name
    it as its module does, and a module by its own name, which leads to the page of its objects.
    """
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or ("." in target and pydoc.locate(target) is None):
        return None
    objects = env.get_domain("py").objects
    last = target.rpartition(".")[2]
    if node["reftype"] == "mod":
        places = [
            (o.docname, "")
            for n, o in objects.items()
            if getattr(pydoc.locate(n), "__module__", "") == target
        ]
    else:
        found = ((n, o) for n, o in objects.items() if not o.aliased)
        places = [(o.docname, o.node_id) for n, o in found if n.rpartition(".")[2] == last]
    if len(set(places)) != 1:
        return None
    return make_refnode(app.builder, node["refdoc"], *places[0], content, target)


def setup(app):
    app.connect("missing-reference", _documented)
