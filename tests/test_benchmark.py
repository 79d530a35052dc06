"""The benchmark counts right and says what it measured. Speeds themselves are not tested."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest
from absl import flags

from capsjax import preset
from experiments import benchmark, loop
from experiments.drawing import speed
from experiments.errors import UserError

TINY = dataclasses.replace(benchmark.DEFAULTS, preset="tiny", cache_dir="none", num_devices=1,
                           accelerator="cpu")
ROW = {"implementation": "capsjax", "function": "training", "batch_size": 4,
       "images_per_second": {"median": 10.4, "min": 9.0, "max": 12.0}, "share_of_limit": 0.5}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(benchmark, "REPETITIONS", 2)
    monkeypatch.setattr(benchmark, "LEAST", 0.01)
    monkeypatch.setattr(benchmark, "SIDE", 64)
    monkeypatch.setattr(benchmark, "first_step_seconds", lambda config: {"cold": 2.0, "warm": 1.0})


def test_program(quick, monkeypatch, tmp_path, capsys):
    values = flags.FlagValues()
    benchmark.define_flags(values)
    output = tmp_path / "b"
    values(["benchmark", "--preset=tiny", "--batch_sizes=2,4", f"--output={output}",
            "--cache_dir=none", "--num_devices=1"])
    monkeypatch.setattr(flags, "FLAGS", values)
    benchmark.main()
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert json.loads((tmp_path / "b.json").read_text()) == result
    assert [(r["function"], r["batch_size"]) for r in result["rows"]] == [
        ("training", 2), ("inference", 2), ("training", 4), ("inference", 4)]
    flop = benchmark.flops_per_image(preset("capsnet_tiny"))
    assert result["gflop_per_image"] == round(flop / 1e9, 3)
    for row in result["rows"]:
        rate = row["images_per_second"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
    assert result["command"] == (
        "python -m experiments.benchmark --preset=tiny --num_devices=1 --batch_sizes=2,4")
    table = (tmp_path / "b.md").read_text()
    assert table.count("\n| capsjax | ") == 4 and table.split("\n\n")[0] in err
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_share_of_limit(quick, monkeypatch):
    """Of images that take as long as their operations do at the rate of the matrix product."""
    flop = benchmark.flops_per_image(preset("capsnet_tiny"))
    rates = {("capsjax", "training"): [1e12 / flop], ("capsjax", "inference"): [1e12 / flop]}
    monkeypatch.setattr(benchmark, "in_turn", lambda contestants: (rates, [1000.0]))
    training, inference = benchmark.measure(TINY, [2], torch=False)["rows"]
    assert training["share_of_limit"] == 1 and inference["share_of_limit"] == 0.333


def test_operations_are_counted():
    """6x6 pixels by hand: a 3x3 convolution to 4 channels, 2 types of capsules of 2, 3 classes."""
    config = preset("capsnet_tiny", image_shape=(6, 6, 1), num_classes=3, conv_channels=4,
                    conv_kernel=3, primary_types=2, primary_pose=2, primary_kernel=3,
                    class_pose=4, decoder=(5,))
    conv, primary, votes = 4 * 4 * 9 * 4, 2 * 9 * 4 * 2 * 1 * 1, 2 * 3 * 4 * 2
    assert config.input_capsules == 2
    assert benchmark.flops_per_image(config) == 6 * (
        conv + primary + votes + 12 * 5 + 5 * 36)


def test_in_turn_counts_images(quick):
    rates, products = benchmark.in_turn({"a": lambda: 3, "b": lambda: 5})
    assert rates.keys() == {"a", "b"} and len(products) == len(rates["a"]) == 2
    assert all(rate > 0 for rate in [*products, *rates["a"], *rates["b"]])


def test_what_is_measured_is_training_and_the_scores(quick):
    setup = loop.prepare(dataclasses.replace(TINY, batch_size=3), benchmark.random_images(
        dataclasses.replace(TINY, batch_size=3)))
    functions = benchmark.ours(setup)
    assert functions["capsjax", "training"]() == benchmark.CHUNK * 3
    assert functions["capsjax", "inference"]() == 3
    assert functions["capsjax", "training"]() == benchmark.CHUNK * 3  # the state is carried on


@pytest.mark.parametrize("sizes", [["0"], ["1", "x"], [""], ["-3"], ["2.5"]])
def test_wrong_sizes(sizes):
    with pytest.raises(UserError, match="--batch_sizes=.*numbers such as"):
        benchmark.parse_sizes(sizes)


def test_picture_shows_medians_and_ranges():
    other = ROW | {"batch_size": 2, "images_per_second": {"median": 7.0, "min": 6.0, "max": 7.5}}
    rows = [row | {"function": f} for row in (ROW, other) for f in ("training", "inference")]
    page, *panels = speed._throughput_figure(rows).axes
    for panel in panels:
        line, *_, (bars,) = panel.containers[0].lines
        np.testing.assert_array_equal(line.get_xydata(), [[2, 7.0], [4, 10.4]])
        np.testing.assert_allclose(bars.get_segments(), [[[2, 6], [2, 7.5]], [[4, 9], [4, 12]]])


def test_table():
    assert benchmark.table([ROW]).splitlines()[2] == (
        "| capsjax | training | 4 | 10 | 9 to 12 | 0.50 |")


@pytest.mark.skipif(importlib.util.find_spec("torch"), reason="PyTorch is installed")
def test_without_torch():
    with pytest.raises(UserError, match="--compare=torch needs PyTorch"):
        benchmark.torch_capsnet()


def test_torch_computes_the_same():
    """Loss, scores and gradients from the same parameters."""
    torch = pytest.importorskip("torch")
    peer = benchmark.torch_capsnet()
    config = dataclasses.replace(TINY, batch_size=4)
    setup = loop.prepare(config, benchmark.random_images(config))
    params = setup.model.init(jax.random.key(0))
    images, labels = benchmark.unit(setup), setup.dataset.train_labels[:4]
    model = peer.CapsNet(setup.model_config, jax.device_get(params))
    exact, gradient = jax.value_and_grad(
        lambda p: setup.loss(p, images, labels)[0].mean())(params)
    loss = model(*peer.batch(images, labels, "cpu"))
    loss.backward()
    np.testing.assert_allclose(loss.item(), exact, rtol=1e-5)
    with torch.no_grad():
        pose = model.encode(peer.batch(images, labels, "cpu")[0])
    ours = setup.model.apply(params, images, method="encode").pose
    np.testing.assert_allclose(pose, ours, rtol=1e-3, atol=1e-6)
    for got, exact in ((model.W.grad, gradient["classes"]["kernel"]),
                       (model.conv.weight.grad.permute(2, 3, 1, 0), gradient["conv"]["kernel"])):
        np.testing.assert_allclose(got, exact, rtol=1e-3, atol=1e-5 * np.abs(exact).max())
