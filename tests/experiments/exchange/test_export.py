"""Networks in other formats say what they say in JAX."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import stablehlo_artefact
from helpers import ROOT, TINY, run_command, train

import capsjax
from capsjax.models import PRESETS, CapsNetConfig, CNNConfig, HVCConfig, ResNetConfig
from capsjax.routing import ROUTINGS
from experiments import export
from experiments.config import UserError
from experiments.exchange import latency, network, onnx_file, stablehlo_file, verification
from experiments.exchange.network import Source, make_network
from experiments.export import Flags


def tiny(config):
    """The same layers with a few channels each."""
    if isinstance(config, CNNConfig):
        return dataclasses.replace(
            config, channels=(4,) * len(config.channels), dense=(8,) * len(config.dense)
        )
    if isinstance(config, ResNetConfig):
        stages = tuple((8, blocks, s) for _, blocks, s in config.stages)
        return dataclasses.replace(config, conv_channels=8, stages=stages)
    if isinstance(config, HVCConfig) or config.primary_depthwise:
        return config
    few = {
        "conv_channels": 8,
        "primary_types": 4,
        "more_convs": tuple((8, k, s) for _, k, s in config.more_convs),
        "trunk": tuple((8, blocks, s) for _, blocks, s in config.trunk),
        "capsule_layers": tuple((4, k, s) for _, k, s in config.capsule_layers),
        "decoder": config.decoder and (8,) * len(config.decoder),
    }
    return dataclasses.replace(config, **few)


SMALL = dataclasses.replace(stablehlo_artefact.CONFIG, routing_iterations=3, decoder=(5,))
CASES = {name: tiny(config) for name, config in PRESETS.items()}
CASES |= {f"routing {name}": dataclasses.replace(SMALL, routing=name) for name in ROUTINGS}
CASES |= {
    f"{norm} norm": dataclasses.replace(SMALL, conv_norm=norm)
    for norm in ("layer", "batch", "instance", "group")
}
CASES["concurrent"] = dataclasses.replace(
    SMALL, capsule_layers=((2, 2, 1),), routing_schedule="concurrent"
)
CASES["over inputs"] = dataclasses.replace(SMALL, routing_over="inputs")


# The converter has no form of their sorting under vmap.
NOT_AS_ONNX = {"routing sparsemax", "routing entmax"}


def source(config, count=1):
    """Initial weights; statistics other than zero and one."""
    variables = capsjax.create_model(config).init(jax.random.key(0))
    prepare = capsjax.Preprocessing(config.image_shape)
    labels = tuple(map(str, range(config.num_classes)))
    return Source("made-up", config, variables, prepare, labels, count)


def has_couplings(config):
    return isinstance(config, CapsNetConfig) and config.routing_schedule == "sequential"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_network_is_the_same_in_onnxruntime(name):
    pytest.importorskip("jax2onnx")
    config = CASES[name]
    made = make_network(source(config), couplings=has_couplings(config), preprocess=True)
    if name in NOT_AS_ONNX:
        with pytest.raises(UserError, match="jax2onnx can't convert this network"):
            onnx_file.to_bytes(made)
        return
    data = onnx_file.to_bytes(made)
    assert verification.verify(made, onnx_file.runner(data)) < 1e-5
    check_weights_are_stored_once(made, data)


def check_weights_are_stored_once(made, data):
    import onnx

    graph = onnx.load_from_string(data).graph
    sizes = {one.name: int(np.prod(one.dims)) for one in graph.initializer}
    weights = dict(zip(onnx_file.weight_names(made.variables), jax.tree.leaves(made.variables)))
    used = {name for node in graph.node for name in node.input}
    assert {name for name in weights if name in used} <= sizes.keys()
    # What else is stored: shapes, indices and constants of the algorithm.
    others = sum(size for name, size in sizes.items() if name not in weights)
    assert others < 0.1 * sum(w.size for w in weights.values()) + 3000


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_network_is_the_same_as_stablehlo(name):
    config = CASES[name]
    made = make_network(source(config), couplings=has_couplings(config), preprocess=True)
    data = stablehlo_file.to_bytes(made)
    assert verification.verify(made, stablehlo_file.runner(data)) < 1e-5
    assert len(data) < 1.1 * network.weight_bytes(made) + 10**6


@pytest.mark.parametrize("count", [1, 2, None])
def test_outputs_and_classes(count):
    made = make_network(source(SMALL, count), couplings=True, preprocess=True)
    name = {1: "label", 2: "labels", None: "present"}[count]
    images = network.random_images(made, 5)
    found = jax.jit(made.apply)(made.variables, images)
    assert found.keys() == {name, "scores", "poses", "couplings", "reconstruction"}
    scores = np.asarray(found["scores"])
    exact = {
        1: scores.argmax(1),
        2: np.argsort(-scores, axis=1)[:, :2],
        None: scores >= 0.5,
    }[count]
    np.testing.assert_array_equal(found[name], exact)
    plain = capsjax.create_model(SMALL).apply(made.variables, np.float32(images) / 255)
    np.testing.assert_allclose(scores, plain.scores, atol=1e-6)
    np.testing.assert_allclose(found["reconstruction"], plain.reconstruction, atol=1e-6)
    np.testing.assert_allclose(np.asarray(found["couplings"]).sum(-1), 1, atol=1e-5)


@pytest.mark.slow
def test_an_ensemble_has_the_mean_scores():
    one = source(SMALL)
    members = [capsjax.create_model(SMALL).init(jax.random.key(n)) for n in range(2)]
    made = make_network(one._replace(variables=tuple(members)))
    images = network.random_images(made, 2)
    found = jax.jit(made.apply)(made.variables, images)
    each = [capsjax.create_model(SMALL).apply(v, images).scores for v in members]
    assert list(found) == ["scores"]
    np.testing.assert_allclose(found["scores"], sum(each) / 2, atol=1e-6)
    with pytest.raises(UserError, match="ensemble"):
        make_network(one._replace(variables=tuple(members)), couplings=True)


@pytest.fixture(scope="module")
def stored():
    made = make_network(source(SMALL), preprocess=True)
    return made, stablehlo_file.to_bytes(made)


def test_stablehlo_holds_the_weights_once_and_runs_on_all_devices(stored):
    made, data = stored
    assert str(ROOT).encode() not in data and b".py" not in data
    assert jax.export.deserialize(bytearray(data)).platforms == ("cpu", "cuda", "tpu")
    assert verification.verify(made, stablehlo_file.runner(data)) < 1e-5


def test_a_file_of_an_older_jax_runs():
    made = stablehlo_artefact.made_up_network()
    data = stablehlo_artefact.FILE.read_bytes()
    assert len(data) < 20_000
    assert verification.verify(made, stablehlo_file.runner(data)) < 1e-5


def test_another_network_is_no_export(stored):
    made, data = stored
    run = stablehlo_file.runner(data)

    def changed(**changes):
        return lambda images: run(images) | {n: f(run(images)[n]) for n, f in changes.items()}

    for wrong, message in (
        (changed(scores=lambda x: x + 2e-5), "differ from those of JAX by 2.0e-05"),
        (changed(poses=lambda x: x * np.nan), "by inf"),
        (changed(poses=lambda x: x[:, :1]), "poses is"),
        (changed(label=lambda x: (x + 1) % 3), "not the classes of the scores"),
        (lambda images: {"scores": run(images)["scores"]}, "outputs are scores, not"),
    ):
        with pytest.raises(UserError, match=message):
            verification.verify(made, wrong)


def test_decisions_that_differ_are_counted(stored):
    made, data = stored
    run = stablehlo_file.runner(data)
    images = network.random_images(made, 130)
    labels = run(images)["scores"].argmax(1)
    assert verification.compare(made, run, images, labels)[:3] == (130, 0, 0)

    def turned(some):
        found = run(some)
        return found | {"scores": found["scores"][:, ::-1]}

    found = verification.compare(made, turned, images, labels)
    assert found.different == found.errors == (labels != 1).sum() > 0


def test_a_comparison_of_times_has_a_row_for_each(stored, monkeypatch):
    made, data = stored
    monkeypatch.setattr(latency, "SECONDS", 0)
    rows = latency.measure(made, {"one": stablehlo_file.runner(data), "two": lambda x: x})
    assert [(r["runtime"], r["batch"]) for r in rows] == [
        ("one", 1),
        ("two", 1),
        ("one", 128),
        ("two", 128),
    ]
    assert all(r["milliseconds"]["calls"] >= 10 for r in rows)


def test_the_table_of_times_is_that_of_the_files():
    page = (ROOT / "docs" / "results" / "export.md").read_text()
    files = sorted((ROOT / "results" / "export").glob("*.json"))
    assert files
    for path in files:
        result = json.loads(path.read_text())
        assert result["commit"][:7] in page and f"{result['file_bytes'] / 1000:,.0f} kB" in page
        for line in latency.table(result).splitlines()[4:]:
            assert line in page, line


# The command


def call(output, **flags):
    export.main(Flags(output=str(output), accelerator="cpu", **flags))


def test_the_command_writes_and_describes_a_network(tiny_run, tmp_path, capsys):
    output = tmp_path / "out"
    call(output, run=str(tiny_run), format="stablehlo", preprocess=True)
    assert sorted(p.name for p in output.iterdir()) == ["model.json", "model.stablehlo"]
    described = json.loads((output / "model.json").read_text())
    assert described["compared"]["difference"] < 1e-5
    assert described["input"]["shape"] == ["batch", "28", "28", "1"]
    assert [out["name"] for out in described["outputs"]][:2] == ["label", "scores"]
    assert "64 images: largest difference" in capsys.readouterr().out
    # The reader of the documentation.
    page = (ROOT / "docs" / "export.md").read_text()
    reader = page.split("<!-- reader -->\n```{code-block} python\n")[1].split("```")[0]
    assert len(reader.splitlines()) <= 10
    done = subprocess.run(
        [sys.executable, "-c", reader], cwd=output, capture_output=True, text=True
    )
    assert done.returncode == 0 and "label" in done.stdout, done.stderr


def test_the_command_measures_times(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "SECONDS", 0)
    call(tmp_path / "out", run=str(tiny_run), format="stablehlo", time=True)
    result = json.loads((tmp_path / "out" / "latency.json").read_text())
    assert [row["batch"] for row in result["rows"]] == [1, 1, 128, 128]
    assert result["device_kind"] == "cpu"


@pytest.mark.parametrize("name", ["cnn_tiny", "capsnet_tiny"])
def test_networks_of_bfloat16_are_exported_in_float32(name):
    config = capsjax.preset(name)
    exact = source(config)
    rounded = exact._replace(config=dataclasses.replace(config, dtype="bfloat16"))
    found, wanted = (
        made.apply(made.variables, network.random_images(made, 4))["scores"]
        for made in map(make_network, (rounded, exact))
    )
    np.testing.assert_array_equal(found, wanted)


def test_failures_are_one_line_and_write_nothing(tiny_run, tmp_path, monkeypatch):
    def refuse(match, **flags):
        with pytest.raises(UserError, match=match) as caught:
            call(tmp_path / "out", **flags)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == before

    run, before = str(tiny_run), []
    refuse("give one network")
    refuse("no such folder", run=str(tmp_path / "absent"))
    refuse("neither a folder nor a packaged", model="absent")
    refuse("needs a --run", model="absent", verify="test")
    refuse("--couplings is for", run=run, format="safetensors", couplings=True)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    refuse("pip install -r requirements-onnx.txt", run=run)
    monkeypatch.setattr(verification, "LARGEST", 0.0)
    refuse("nothing is written", run=run, format="stablehlo")
    (tmp_path / "out").mkdir()
    before = [tmp_path / "out"]
    refuse("exists already", run=run, format="stablehlo")


@pytest.mark.slow
def test_damaged_runs_end_in_one_error(tiny_run, tmp_path):
    for name, damage in (("model", "_METADATA"), ("config", "config.json")):
        damaged = tmp_path / name
        shutil.copytree(tiny_run, damaged)
        for path in damaged.rglob(damage):
            path.write_text("nonsense")
        flags = f"--run={damaged}", "--format=stablehlo", f"--output={tmp_path / 'out'}"
        done = run_command("export", *flags)
        # A damaged checkpoint is said, and the one before it would be used.
        *_, last = done.stderr.splitlines()
        assert done.returncode == 2 and last.startswith("error: "), done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_exports_an_ensemble(tmp_path):
    config = dataclasses.replace(
        capsjax_program("cifar10"), ensemble=2, workdir=str(tmp_path / "run"), reconstruction=False
    )
    train(config)
    call(tmp_path / "out", run=str(tmp_path / "run"), format="stablehlo", preprocess=True)
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    assert [out["name"] for out in described["outputs"]] == ["label", "scores"]


def capsjax_program(name):
    from experiments.tasks.registry import find_program

    changes = {f.name: getattr(TINY, f.name) for f in dataclasses.fields(TINY) if f.name in KEPT}
    return dataclasses.replace(find_program(name).defaults, **changes)


KEPT = ("dataset", "preset", "steps", "num_devices", "cache_dir", "accelerator")


@pytest.mark.slow
def test_safetensors_are_a_pretrained_network(tiny_run, tmp_path):
    call(tmp_path / "net", run=str(tiny_run), format="safetensors")
    found = capsjax.load_pretrained(tmp_path / "net")
    assert "# net\n" in (tmp_path / "net" / "README.md").read_text()
    call(tmp_path / "again", model=str(tmp_path / "net"), format="stablehlo")
    assert len(found.labels) == 10


@pytest.mark.slow
def test_the_command_writes_onnx(tiny_run, tmp_path):
    pytest.importorskip("jax2onnx")
    flags = f"--run={tiny_run}", "--verify=test", "--preprocess", "--accelerator=cpu"
    done = run_command("export", *flags, f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert described["compared"]["test"]["different"] == 0
    assert described["compared"]["test"]["errors"] == summary["test_errors"]
    assert Path(tmp_path / "out" / "model.onnx").stat().st_size < 1.1 * 1_141_280 + 60_000
