"""The benchmark: its counts and reports. Speeds themselves are not tested."""

import dataclasses
import importlib.util
import json
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import MNIST, parse_mnist, read_json

from capsjax import functional, preset
from experiments import benchmark, benchmark_vmap
from experiments.benchmarks import measurement, startup, throughput, variants
from experiments.config import UserError
from experiments.config.flags import parse_flags
from experiments.plots.throughput import _throughput_figure as throughput_figure
from experiments.training.setup import prepare
from kernels import bench

TINY = dataclasses.replace(
    benchmark.DEFAULTS, preset="tiny", cache_dir="none", num_devices=1, accelerator="cpu"
)
ROW = {
    "network": "capsjax",
    "function": "training",
    "pixels": 28,
    "batch_size": 4,
    "images_per_second": {"median": 10.4, "min": 9.0, "max": 12.0},
    "share_of_limit": 0.5,
    "megabytes": 30.2,
}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(throughput, "MIN_SECONDS", 0.01)
    monkeypatch.setattr(bench, "SIDE", 64)
    seconds = {"cold": [2.0, 4.0], "warm": [1.0, 1.5]}
    monkeypatch.setattr(startup, "first_step_seconds", lambda config, repetitions: seconds)


def run(*arguments):
    benchmark.main(
        parse_flags(
            benchmark.DEFAULTS,
            ["--preset=tiny", "--repetitions=2", "--cache_dir=none", "--num_devices=1", *arguments],
        )
    )


def small(batch_size, pixels=28, **changes):
    config = dataclasses.replace(TINY, batch_size=batch_size, **changes)
    return prepare(benchmark.PROGRAM, config, throughput.random_images(config, pixels))


@pytest.fixture
def stubs(quick, monkeypatch):
    """Replaces the measured functions by ones that do nothing, to test the report."""
    nothing = throughput.Implementation(lambda: 2, 3_000_000)
    found = {("capsjax", name): nothing for name in throughput.FUNCTIONS}
    monkeypatch.setattr(throughput, "capsjax_implementations", lambda setup: found)


@pytest.mark.slow
def test_program(quick, tmp_path, capsys):
    run("--batch_size=2", f"--output={tmp_path / 'b'}")
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert read_json(tmp_path / "b.json") == result
    assert [row["function"] for row in result["rows"]] == list(throughput.FUNCTIONS)
    flop = throughput.flops_per_image(preset("capsnet_tiny"))
    parameters = 4 * functional.count_parameters(small(2).model.init(jax.random.key(0))) / 1e6
    for row in result["rows"]:
        rate = row["images_per_second"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
        assert row["gflop_per_image"] == round(flop / 1e9, 3)
        # Adam keeps two moments of every parameter.
        assert row["megabytes"] > parameters * (3 if row["function"] == "training" else 0.5)
    assert result["command"] == (
        "python -m experiments.benchmark --preset=tiny --batch_size=2 --num_devices=1 "
        "--repetitions=2"
    )
    assert result["first_step_seconds"] == {
        "cold": {"median": 3.0, "min": 2.0, "max": 4.0},
        "warm": {"median": 1.25, "min": 1.0, "max": 1.5},
    }
    table = (tmp_path / "b.md").read_text()
    assert "cold 3.0 s (2.0 to 4.0), warm 1.2 s (1.0 to 1.5)." in table and "cold 3.0 s" in err
    assert table.count("\n| capsjax | ") == 3 and table.split("\n\n")[0] in err
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_first_steps_are_those_of_the_program():
    began = time.perf_counter()
    took = startup.first_step_seconds(dataclasses.replace(TINY, batch_size=2), 1)
    both = time.perf_counter() - began
    assert list(took) == ["cold", "warm"] and all(len(values) == 1 for values in took.values())
    assert min(took["warm"] + took["cold"]) > 0 and took["warm"][0] + took["cold"][0] < both


def test_program_without_a_first_step_is_an_error():
    with pytest.raises(UserError, match="--preset=nothing.* ended before its first step"):
        startup.first_step_seconds(dataclasses.replace(TINY, preset="nothing"), 1)


def test_sizes(stubs, capsys):
    run("--batch_sizes=2,4", "--pixels=24,28", "--seed=7")
    result = json.loads(capsys.readouterr().out)
    assert [(row["pixels"], row["batch_size"]) for row in result["rows"][::3]] == [
        (24, 2),
        (24, 4),
        (28, 2),
        (28, 4),
    ]
    assert result["command"].endswith("--batch_sizes=2,4 --pixels=24,28 --repetitions=2")
    assert result["seed"] == 7 and " --seed=7 " in result["command"]


def test_variants(stubs, tmp_path, capsys):
    run(
        "--batch_size=2",
        "--routings=em,uniform",
        "--implementations=all",
        "--dtypes=bfloat16",
        f"--output={tmp_path / 'b'}",
    )
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert [row["network"] for row in result["rows"][::3]] == [
        f"{routing}, {how}, bfloat16"
        for routing in ("em", "uniform")
        for how in ("naive", "stream")
    ]
    assert len(result["left_out"]) == 2 and "em, pallas, bfloat16" in result["left_out"][0]
    assert err.count("skipped: --routing_implementation=pallas") == 2
    assert (tmp_path / "b.png").exists()


def test_variants_measure_the_named_networks():
    """Guards against a bug in which all rows measure the same network."""
    axes = {"routings": ["em", "self"], "dtypes": ["bfloat16", "float32"]}
    found = dict(variants.make_variants(TINY, axes))
    assert {(name, c.routing, c.dtype) for name, c in found.items()} == {
        (f"{r}, {d}", r, d) for r in axes["routings"] for d in axes["dtypes"]
    }
    assert list(variants.make_variants(TINY, {})) == [("capsjax", TINY)]


def test_unavailable_implementation_is_an_error(stubs, capsys):
    with pytest.raises(UserError, match="--routing_implementation=pallas"):
        run("--batch_size=2", "--implementations=pallas")


def test_image_sizes(quick):
    setup = small(2, pixels=24)
    assert setup.model_config.image_shape == (24, 24, 1)


@pytest.mark.slow
def test_share_of_limit(quick, monkeypatch):
    """The share is 1 for images that take as long as their operations in a matrix product."""
    flop = throughput.flops_per_image(preset("capsnet_tiny"))
    rates = {("capsjax", "training"): [1e12 / flop], ("capsjax", "inference"): [1e12 / flop]}
    monkeypatch.setattr(throughput, "measure_in_turn", lambda found, repetitions: (rates, [1000.0]))
    training, inference = measurement.measure(
        benchmark.PROGRAM, TINY, {}, [28], [2], 1, torch=False
    )["rows"]
    assert training["share_of_limit"] == 1 and inference["share_of_limit"] == 0.333


def test_operations_are_counted():
    """Counts by hand, for 6x6 pixels, a 3x3 convolution to 4 channels, 2 types of 2, 3 classes."""
    config = preset(
        "capsnet_tiny",
        image_shape=(6, 6, 1),
        num_classes=3,
        conv_channels=4,
        conv_kernel=3,
        primary_types=2,
        primary_pose=2,
        primary_kernel=3,
        class_pose=4,
        decoder=(5,),
    )
    conv, primary, votes = 4 * 4 * 9 * 4, 2 * 9 * 4 * 2 * 1 * 1, 2 * 3 * 4 * 2
    assert config.input_capsules == 2
    assert throughput.flops_per_image(config) == 6 * (conv + primary + votes + 12 * 5 + 5 * 36)


def test_unknown_operations_give_no_share_of_a_limit():
    """No share is stated of an unknown limit."""
    assert measurement.countable_flops(preset("capsnet_small")) > 0
    for name in ("capsnet_deep", "capsnet_efficient", "capsnet_matrix"):
        assert measurement.countable_flops(preset(name)) is None


def test_in_turn_counts_images(quick):
    found = {name: throughput.Implementation(lambda n=n: n) for name, n in (("a", 3), ("b", 5))}
    rates, products = throughput.measure_in_turn(found, 2)
    assert rates.keys() == {"a", "b"} and len(products) == len(rates["a"]) == 2
    assert all(rate > 0 for rate in [*products, *rates["a"], *rates["b"]])


def test_benchmark_measures_training_and_scores(quick):
    functions = throughput.capsjax_implementations(small(3))
    for name, images in (("training", 30), ("inference", 30), ("one call", 3), ("training", 30)):
        assert functions["capsjax", name].run() == images  # the state of training is carried on


def test_pmap_can_be_measured_too(quick):
    functions = throughput.capsjax_implementations(small(2, parallel="pmap"))
    assert functions["capsjax", "training"].run() == 20


@pytest.mark.parametrize("sizes", ["0", "1,x", "", "-3", "2.5", ","])
def test_wrong_sizes(sizes):
    with pytest.raises(UserError, match="--batch_sizes=.*numbers such as"):
        variants.parse_numbers("batch_sizes", sizes)


def test_wrong_variants():
    with pytest.raises(UserError, match="--routings: .*did you mean dynamic"):
        variants.parse_values("routings", "em,dynamik")
    assert variants.parse_values("dtypes", "all") == ["float32", "bfloat16"]


def test_figure_shows_medians_and_ranges():
    other = ROW | {"batch_size": 2, "images_per_second": {"median": 7.0, "min": 6.0, "max": 7.5}}
    rows = [row | {"function": f} for row in (ROW, other) for f in ("training", "inference")]
    page, *panels = throughput_figure(rows).axes
    for panel in panels[:2]:
        line, *_, (bars,) = panel.containers[0].lines
        np.testing.assert_array_equal(line.get_xydata(), [[2, 7.0], [4, 10.4]])
        np.testing.assert_allclose(bars.get_segments(), [[[2, 6], [2, 7.5]], [[4, 9], [4, 12]]])
    for panel, value in zip(panels[2:], (0.5, 30.2)):
        np.testing.assert_array_equal(
            panel.containers[0].lines[0].get_xydata(), [[2, value], [4, value]]
        )


def test_figure_of_one_batch_size():
    rows = [ROW | {"network": name, "share_of_limit": None} for name in ("em", "vb", "self")]
    page, training, inference, share, memory = throughput_figure(rows).axes
    dots = [line.get_xydata().tolist() for line in training.lines if len(line.get_xdata()) == 1]
    assert dots == [[[10.4, place]] for place in range(3)]
    assert not share.lines and not inference.lines and len(memory.lines) == 6
    assert [text.get_text() for text in page.texts[1:]] == ["em", "vb", "self"]


def test_table():
    none = ROW | {"share_of_limit": None, "megabytes": None}
    assert measurement.table([ROW, none]).splitlines()[2:] == [
        "| capsjax | training | 28 | 4 | 10 | 9 to 12 | 0.50 | 30 |",
        "| capsjax | training | 28 | 4 | 10 | 9 to 12 |  |  |",
    ]


@pytest.mark.slow
def test_program_for_runs_together(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark_vmap, "seconds", lambda run, *arguments: [0.02])
    benchmark_vmap.main(
        parse_flags(
            benchmark_vmap.DEFAULTS, ["--sizes=tiny,4", "--runs=2", f"--output={tmp_path / 'v'}"]
        )
    )
    result = json.loads(capsys.readouterr().out)
    assert read_json(tmp_path / "v.json") == result
    assert result["command"] == "python -m experiments.benchmark_vmap --sizes='tiny,4' --runs=2"
    assert result["seed"] == [0, 1]
    # A call is 10 steps, of one run and of two.
    assert result["rows"] == [
        {
            "preset": "tiny",
            "batch_size": 4,
            "runs": 2,
            "alone_ms": 2.0,
            "together_ms": 1.0,
            "gain": 2.0,
        }
    ]
    assert "\n| tiny | 4 | 2 | 2.0 | 1.0 | 2.0 |\n" in (tmp_path / "v.md").read_text()


@pytest.mark.parametrize("text", ["tiny", "tiny,x", "", "tiny,8;"])
def test_wrong_sizes_of_runs_together(text):
    with pytest.raises(UserError, match=f"--sizes={text}: write it as"):
        benchmark_vmap.parse_sizes(text)


@pytest.mark.skipif(importlib.util.find_spec("torch"), reason="PyTorch is installed")
def test_without_torch():
    with pytest.raises(UserError, match="--compare=torch needs PyTorch"):
        throughput.torch_capsnet()


def test_torch_computes_the_same():
    """Compares loss, scores and gradients from the same parameters, of the paper's network.

    Initial sums of votes of smaller networks get a factor, which the one in PyTorch does not have.
    """
    torch = pytest.importorskip("torch")
    baseline = throughput.torch_capsnet()
    setup = small(4, preset="mnist")
    params = setup.model.init(jax.random.key(0))
    images, labels = throughput.unit_images(setup), setup.dataset.train_labels[:4]
    model = baseline.CapsNet(setup.model_config, jax.device_get(params))
    exact, gradient = jax.value_and_grad(lambda p: setup.loss(p, images, labels)[0].mean())(params)
    loss = model(*baseline.batch(images, labels, "cpu"))
    loss.backward()
    np.testing.assert_allclose(loss.item(), exact, rtol=1e-5)
    with torch.no_grad():
        pose = model.encode(baseline.batch(images, labels, "cpu")[0])
    ours = setup.model.apply(params, images, method="encode").pose
    np.testing.assert_allclose(pose, ours, rtol=1e-3, atol=1e-6)
    for got, exact in (
        (model.W.grad, gradient["classes"]["kernel"]),
        (model.conv.weight.grad.permute(2, 3, 1, 0), gradient["conv"]["kernel"]),
    ):
        np.testing.assert_allclose(got, exact, rtol=1e-3, atol=1e-5 * np.abs(exact).max())


def test_the_first_step_is_that_of_the_network_of_the_benchmark():
    changes = {"routing": "em", "votes": "matrix", "primary_types": 2, "reconstruction": False}
    config = dataclasses.replace(benchmark.DEFAULTS, preset="tiny", batch_size=32, **changes)
    python, _, module, *words = startup.command_of(config, Path("c"), Path("w"))
    assert module == "experiments.mnist"
    got = parse_mnist(*words)
    want = dict(changes, preset="tiny", batch_size=32, steps=1, dataset="digits", workdir="w")
    assert got == dataclasses.replace(MNIST, cache_dir="c", **want)
