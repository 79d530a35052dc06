"""How Sphinx builds the documentation; docs/development.md has the command."""

import dataclasses
import inspect
import os
import pydoc
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Of Sphinx itself, which imports the packages, and of the processes that run the notebooks.
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from flax import nnx  # noqa: E402
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
exclude_patterns = ["_build", "**/.ipynb_checkpoints", "jupyter_execute"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
smartquotes = False

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
napoleon_custom_sections = [("Fields", "params_style")]
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

# Types of other projects, which are not looked up: the build needs no network.
MODULES = "jax jaxlib jnp flax nnx optax chex numpy collections os pathlib types typing"
nitpick_ignore_regex = [
    ("py:class", "ArrayTree"),  # of chex
    ("py:.*", rf"({MODULES.replace(' ', '|')})\..*"),
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


def _is_record(value):
    named_tuple = inspect.isclass(value) and issubclass(value, tuple) and hasattr(value, "_fields")
    return named_tuple or (inspect.isclass(value) and dataclasses.is_dataclass(value))


def _describe_fields(app, what, name, value, options, lines):
    """Adds the fields of a record to its docstring, with the comments beside or above them."""
    if not _is_record(value):
        return
    above, found = [], []
    for line in inspect.getsource(value).splitlines():
        field = re.match(r"    (\w+): ([^#]*)(?:# (.*))?$", line)
        if comment := re.match(r"    # (.*)", line):
            above.append(comment[1])
        elif field:
            text = " ".join([*above, *filter(None, [field[3]])])
            kind, _, default = (part.strip() for part in field[2].partition(" = "))
            value_of = f" Default: ``{default}``." if default else ""
            text = re.sub(r"([*|])", r"\\\1", text)
            text += "" if not text or text.endswith(".") else "."
            found.append(f"  {field[1]} (``{kind}``): {text}{value_of}")
            above = []
        else:
            above = []
    lines += ["", "Fields:", *found]


def _signature(app, what, name, value, options, signature, returns):
    """Leaves types and defaults of records, which are listed with the fields, out of the signature.

    The metaclass of NNX hides the signatures of modules.
    """
    if inspect.isclass(value) and issubclass(value, nnx.Module):
        given = list(inspect.signature(value.__init__).parameters.values())[1:]
        return str(inspect.Signature([p.replace(annotation=p.empty) for p in given])), None
    if not _is_record(value):
        return None
    names = list(inspect.signature(value).parameters)
    return "(" + ", ".join(names if len(names) < 16 else ["**fields"]) + ")", None


def setup(app):
    app.connect("autodoc-process-docstring", _describe_fields, priority=100)
    app.connect("autodoc-process-signature", _signature)
    app.connect("missing-reference", _documented)
