"""The structure of the repository: imports, cycles, sizes, and public names."""

import ast
import inspect
import pathlib
import re
import sys

import pytest
from helpers import ROOT

import capsjax
import capsjax.models
import capsjax.routing
import kernels

STANDARD = set(sys.stdlib_module_names)
ALLOWED = {
    "capsjax": {"capsjax", "jax", "flax", "optax", "chex", "numpy", "safetensors"},
    "kernels": {"kernels", "capsjax", "jax", "chex", "numpy", "absl"},
}
# What each folder of experiments may import of the others. "" is the top level, the commands.
FOLDERS = {
    "files": set(),
    "config": {"files"},
    "plots": {"files"},
    "data": {"files", "config", "plots"},
    "tasks": {"files", "config", "plots", "data"},
    "training": {"files", "config", "plots", "data", "tasks"},
    "analysis": {"files", "config", "plots", "data", "tasks", "training"},
    "exchange": {"files", "config", "plots", "data", "tasks", "training", "analysis"},
    "sweeps": {"files", "config", "plots", "data", "tasks", "training", "analysis"},
    "benchmarks": {"files", "config", "plots", "data", "tasks", "training"},
}
FOLDERS[""] = set(FOLDERS)
# Lines of a file, and of a function without its docstring.
MOST_LINES = {"capsjax": 220, "kernels": 250, "experiments": 250}
MOST_LINES_OF_A_FUNCTION = 60
PUBLIC = [capsjax, capsjax.models, capsjax.routing]
# Only whoever loads from there needs it.
OPTIONAL = {"capsjax.pretrained.files": {"huggingface_hub"}}
# The input and output that the library leaves to the programs.
FORBIDDEN_IN_CAPSJAX = {"open", "print", "input"}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(path): ast.parse(path.read_text())
    for top in ("capsjax", "kernels", "experiments")
    for path in sorted((ROOT / top).rglob("*.py"))
}


def imported(tree):
    """Returns all names that a module imports, anywhere in it, as written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name):
    """Returns the module of this repository that holds an imported name, or None."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


GRAPH = {
    name: {module_of(i) for i in imported(tree)} - {None, name} for name, tree in MODULES.items()
}


def folder_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS else ""


@pytest.mark.parametrize("top", ALLOWED)
def test_imports_of_the_library_and_kernels(top):
    for name, tree in MODULES.items():
        if name.split(".")[0] == top:
            tops = {i.split(".")[0] for i in imported(tree)}
            assert tops - STANDARD <= ALLOWED[top] | OPTIONAL.get(name, set()), name


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_of_experiments_import_one_way(folder):
    inside = [m for m in GRAPH if m.startswith("experiments.") and folder_of(m) == folder]
    assert inside
    for module in inside:
        ours = {m for m in GRAPH[module] if m.startswith("experiments.")}
        legal = FOLDERS[folder] | {folder}
        assert {folder_of(m) for m in ours} <= legal, (module, sorted(ours))


def test_only_commands_are_at_the_top_level_of_experiments():
    for path in (ROOT / "experiments").glob("*.py"):
        assert path.name == "__init__.py" or 'if __name__ == "__main__":' in path.read_text(), path
    folders = {p.parent.name for p in (ROOT / "experiments").glob("*/*.py")}
    assert folders == set(FOLDERS) - {""}


def test_no_command_imports_another_but_to_measure_it():
    commands = {m for m in GRAPH if m.count(".") == 1 and m.startswith("experiments.")}
    commands -= {f"experiments.{folder}" for folder in FOLDERS}
    pairs = {(a, b) for a in commands for b in GRAPH[a] & commands}
    assert pairs <= {("experiments.benchmark_vmap", "experiments.mnist")}, pairs


def circle(graph):
    """Returns modules that import each other in a cycle, or nothing."""
    done, active = set(), []

    def visit(module):
        if module in active:
            return active[active.index(module) :]
        if module in done:
            return []
        active.append(module)
        found = next(filter(None, map(visit, sorted(graph[module]))), [])
        active.pop()
        done.add(module)
        return found

    return next(filter(None, map(visit, sorted(graph))), [])


def test_module_imports_have_no_cycle():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    # A package imports its modules, whose imports of other modules of it are no circle.
    packages = {name_of(p) for p in ROOT.rglob("__init__.py") if ".venv" not in p.parts[-3:]}
    modules = {
        m: {i for i in ours if i not in packages} for m, ours in GRAPH.items() if m not in packages
    }
    assert circle(modules) == []


def test_files_and_functions_are_short():
    too_long = []
    for name, tree in MODULES.items():
        path = ROOT / (name.replace(".", "/") + ".py")
        path = path if path.exists() else ROOT / name.replace(".", "/") / "__init__.py"
        lines = len(path.read_text().splitlines())
        if lines > MOST_LINES[name.split(".")[0]]:
            too_long.append((name, lines))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                documented = ast.get_docstring(node) is not None
                docstring = first.end_lineno - first.lineno + 1 if documented else 0
                lines = node.end_lineno - node.lineno + 1 - docstring
                if lines > MOST_LINES_OF_A_FUNCTION:
                    too_long.append((f"{name}.{node.name}", lines))
    assert not too_long


def test_experiments_do_not_import_tests():
    for name, tree in MODULES.items():
        assert "tests" not in {i.split(".")[0] for i in imported(tree)}, name


def test_library_does_no_input_or_output():
    for name, tree in MODULES.items():
        if name.startswith("capsjax"):
            called = {
                node.func.id
                for node in ast.walk(tree)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            }
            assert not called & FORBIDDEN_IN_CAPSJAX, name


def test_every_folder_is_a_package():
    for top in ("capsjax", "kernels", "experiments"):
        for path in (ROOT / top).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path


def test_kernels_package_is_that_of_this_repository():
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
    """Applies to its own names: what __init__ imports from other packages is not public."""
    tree = ast.parse(pathlib.Path(module.__file__).read_text())
    taken = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module.startswith(f"{module.__name__}.")
        for alias in node.names
    }
    assert taken - {"deprecated", "make_getattr"} <= set(module.__all__)


def test_requirements_cover_every_import_of_the_programs():
    written = (ROOT / "requirements.txt").read_text().lower()
    distributions = {
        "absl": "absl-py",
        "PIL": "pillow",
        "sklearn": "scikit-learn",
        "orbax": "orbax-checkpoint",
        "tensorflow_datasets": "tensorflow-datasets",
    }
    ours = {"capsjax", "kernels", "experiments"} | STANDARD
    # NumPy comes with JAX, requests with TensorFlow Datasets, torch only with who compares, Ray
    # with who has several machines, h5py and the packages for ONNX with who reads or writes such
    # files, Grain with who has data larger than the memory.
    ours |= {"numpy", "requests", "torch", "ray", "h5py", "jax2onnx", "onnx", "onnxruntime"}
    ours |= {"grain"}
    for module, tree in MODULES.items():
        if module.split(".")[0] != "capsjax":
            for name in {i.split(".")[0] for i in imported(tree)} - ours:
                assert distributions.get(name, name).lower() in written, (name, module)


def test_files_that_the_documentation_names_exist():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    text = "".join(page.read_text() for page in pages)
    named = set(re.findall(r"`((?:capsjax|kernels|experiments|tests|docs)/[\w/.]+)`", text))
    assert len(named) > 30
    placeholders = {"experiments/NAME.py", "experiments/tasks/NAME.py"}
    assert {name for name in named if not (ROOT / name).exists()} <= placeholders
