"""The wheel: what it holds and requires, and how it works where there is no clone."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
import venv
import zipfile

import jax
import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

import capsjax

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Computes one layer twice, from outside of the clone.
LAYER = """
import jax, jax.numpy as jnp, capsjax
from capsjax.companions import find_companion
assert find_companion("kernels") == "capsjax_kernels"
key = jax.random.key(0)
u, W = jax.random.normal(key, (2, 12, 8)), jax.random.normal(key, (12, 3, 16, 8))
def poses(how):
    return capsjax.routing.route(capsjax.make_routing("dynamic"), {}, u, W, implementation=how).pose
print(float(abs(poses("pallas_interpret") - poses("naive")).max()))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "-o", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def sources(path):
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        return {name: archive.read(name).decode() for name in names if name.endswith(".py")}


def test_wheel_holds_every_module_under_names_that_begin_with_capsjax(wheel):
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        assert "capsjax/py.typed" in archive.namelist()
    assert {t for t in tops if "-" not in t} == {
        "capsjax",
        "capsjax_kernels",
        "capsjax_experiments",
    }
    expected = {
        f"{'' if top == 'capsjax' else 'capsjax_'}{path.relative_to(ROOT)}"
        for top in ("capsjax", "kernels", "experiments")
        for path in (ROOT / top).rglob("*.py")
    }
    assert set(sources(wheel)) == expected


def test_wheel_holds_the_packaged_networks_whole(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("capsjax/pretrained/")}
    networks = {name for name in held if name.count("/") == 3}
    assert networks == {
        f"capsjax/pretrained/{name}/{file}"
        for name in capsjax.pretrained_names()
        for file in ("model.safetensors", "config.json", "README.md")
    }


def test_modules_of_the_wheel_import_no_name_of_the_clone(wheel):
    for name, text in sources(wheel).items():
        for node in ast.walk(ast.parse(text)):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                imported = [node.module]
            assert not {i.split(".")[0] for i in imported} & {"kernels", "experiments"}, name
        assert not re.search(
            r"""["'](kernels|experiments)\.|python -m (kernels|experiments)""", text
        )
        original = ROOT / name.removeprefix("capsjax_")
        assert len(text.splitlines()) == len(original.read_text().splitlines())


def distributions(requirements):
    """Returns the requirements without white space and quotes, sorted."""
    return sorted(r.replace(" ", "").replace('"', "'") for r in requirements)


def test_requirements_are_the_dependencies_and_extras():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    written = [line for line in lines if line and not line.startswith("#")]
    packaged = PROJECT["dependencies"] + EXTRAS["run"] + EXTRAS["tfds"]
    assert distributions(written) == distributions(packaged)
    ray = (ROOT / "requirements-ray.txt").read_text().splitlines()[-1]
    assert ray in EXTRAS["ray"]
    grain = (ROOT / "requirements-grain.txt").read_text().splitlines()[-1]
    assert EXTRAS["grain"][-1] == grain.replace('"', "'")
    onnx = (ROOT / "requirements-onnx.txt").read_text().splitlines()[1:]
    assert ["capsjax[run]", *onnx] == EXTRAS["onnx"]


def test_renaming_keeps_what_only_looks_like_a_name_of_the_clone():
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    kept = "experiments = kernels.first()\nfrom importlib import kernels\nx = 'my experiments.'\n"
    assert hook.rename(kept) == kept
    text = "    from kernels.api import select\nimport experiments\nrun('experiments.mnist')\n"
    renamed = "    from capsjax_kernels.api import select\nimport capsjax_experiments\n"
    assert hook.rename(text) == renamed + "run('capsjax_experiments.mnist')\n"
    assert hook.rename("python -m experiments.svhn --seed=1") == "capsjax svhn --seed=1"


def install(folder, *requirements):
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
    return python


def run(folder, *command):
    """Runs a command without the clone on Python's path."""
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_installed_library_has_kernels_and_says_what_commands_lack(wheel, tmp_path):
    python = install(tmp_path / "venv", wheel)
    layer = run(tmp_path, python, "-c", LAYER)
    assert float(layer.stdout) < 1e-6, layer.stderr
    command = run(tmp_path, python.parent / "capsjax", "mnist", "--dataset=digits")
    assert command.returncode == 2 and command.stderr.count("\n") == 1
    assert "pip install 'capsjax[run]'" in command.stderr
    # Predictions need nothing that is not installed with the library.
    config = capsjax.preset("capsnet_tiny", decoder=None)
    params = capsjax.create_model(config).init(jax.random.key(0))
    capsjax.save_pretrained(tmp_path / "net", config, params)
    Image.fromarray(np.full((40, 30), 255, np.uint8)).save(tmp_path / "white.png")
    flags = "--model=net", "--cache_dir=cache", "white.png"
    predicted = run(tmp_path, python.parent / "capsjax", "predict", *flags)
    assert predicted.returncode == 0, predicted.stderr
    assert predicted.stdout.splitlines()[1].startswith("white.png")
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    shown = run(tmp_path, python, "-c", example)
    assert "(8, 4, 16) (8, 24, 24, 3)" in shown.stdout, shown.stderr


@pytest.mark.slow
def test_installed_commands_train_the_digits_and_classify(wheel, tmp_path):
    python = install(tmp_path / "venv", f"{wheel}[run]")
    capsjax = python.parent / "capsjax"
    assert "  mnist " in run(tmp_path, capsjax, "--help").stdout
    assert f"capsjax {wheel.name.split('-')[1]}, JAX" in run(tmp_path, capsjax, "--version").stdout
    flags = "--dataset=digits", "--preset=tiny", "--steps=20", "--workdir=run", "--cache_dir=cache"
    trained = run(tmp_path, capsjax, "mnist", *flags)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "summary.json").exists()
    assert "python -m experiments" not in trained.stdout + trained.stderr
    swept = run(
        tmp_path, capsjax, "sweep", "--grid=seed=0..1", *flags[:3], "--output=sweep", *flags[4:]
    )
    assert swept.returncode == 0, swept.stderr
    pixels = np.random.default_rng(0).integers(0, 256, (30, 28)).astype(np.uint8)
    (tmp_path / "image.pgm").write_bytes(b"P5 28 30 255\n" + pixels.tobytes())
    predicted = run(tmp_path, capsjax, "predict", "--run=run", "image.pgm")
    assert predicted.returncode == 0, predicted.stderr
    assert "image.pgm" in predicted.stdout


@pytest.mark.slow
def test_wheel_of_the_source_distribution_is_the_same(wheel, tmp_path):
    command = [sys.executable, "-m", "build", "--no-isolation", "-o", tmp_path, ROOT]
    subprocess.run(command, check=True, capture_output=True)  # the wheel of the sdist
    (path,) = tmp_path.glob("*.whl")
    assert sources(path) == sources(wheel)
