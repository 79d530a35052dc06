"""The structure of the repository: who may import whom, and what is public."""

import ast
import inspect
import pathlib
import tomllib

import pytest
from helpers import ROOT

import capsjax
import capsjax.models
import capsjax.routing
import kernels

ALLOWED = {
    "capsjax": {"capsjax", "jax", "flax", "optax", "chex", "numpy"},
    "kernels": {"kernels", "capsjax", "jax", "chex", "numpy", "absl"},
}
PUBLIC = [capsjax, capsjax.models, capsjax.routing]
# The input and output that the library leaves to the programs.
FORBIDDEN_IN_CAPSJAX = {"open", "print", "input"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_go_one_way(room):
    standard = set(__import__("sys").stdlib_module_names)
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        assert set(imported(path)) - standard <= ALLOWED[room], path


def test_experiments_do_not_import_tests():
    for path in (ROOT / "experiments").rglob("*.py"):
        assert "tests" not in set(imported(path)), path


def test_library_does_no_input_or_output():
    for path in (ROOT / "capsjax").rglob("*.py"):
        called = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & FORBIDDEN_IN_CAPSJAX, path


def test_wheel_holds_all_of_capsjax_and_nothing_else():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {p.parent for p in (ROOT / "capsjax").rglob("*.py")}
    names = {".".join(f.relative_to(ROOT).parts) for f in folders}
    assert sorted(packages["packages"]) == sorted(names)
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_kernels_are_ours():
    where = pathlib.Path(kernels.__file__).resolve()
    assert ROOT in where.parents, f"{where} is Hugging Face's package; run from the root"


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_public_names_exist_and_are_documented(module):
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), name


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_all_that_a_package_imports_is_public(module):
    """Of its own: what __init__ takes from other packages it merely uses."""
    tree = ast.parse(pathlib.Path(module.__file__).read_text())
    taken = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module.startswith(f"{module.__name__}.")
        for alias in node.names
    }
    assert taken <= set(module.__all__)


def test_requirements_cover_every_import_of_the_programs():
    written = (ROOT / "requirements.txt").read_text().lower()
    distributions = {"absl": "absl-py", "PIL": "pillow", "sklearn": "scikit-learn",
                     "orbax": "orbax-checkpoint", "tensorflow_datasets": "tensorflow-datasets"}
    ours = {"capsjax", "kernels", "experiments"} | set(__import__("sys").stdlib_module_names)
    # NumPy comes with JAX, requests with TensorFlow Datasets, torch only with who compares, and Ray
    # with who has several machines.
    ours |= {"numpy", "requests", "torch", "ray"}
    for path in [*(ROOT / "experiments").rglob("*.py"), *(ROOT / "kernels").glob("*.py")]:
        for name in set(imported(path)) - ours:
            assert distributions.get(name, name).lower() in written, (name, path)
