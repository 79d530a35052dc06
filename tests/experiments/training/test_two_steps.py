"""Every program, routing and network for two steps."""

import dataclasses
import resource

import jax
import numpy as np
import pytest
from helpers import QUICK, TINY, figure_names, metrics_rows, prepare_run, read_json, train
from npz_files import arrays

from capsjax import functional
from capsjax.routing import ROUTINGS
from experiments.analysis.saved_run import stored_config
from experiments.config import names_of
from experiments.tasks.registry import find_program

SMALL = ("preset", "steps", "num_devices", "cache_dir", "accelerator")  # fields of TINY


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def check_digits(summary, config, folder):
    """Checks the figures of mnist, fewer without a decoder, and the confusion of classes."""
    drawn = config.model == "capsnet" and config.reconstruction
    usual = {"training_curves", "confusion_matrix"}
    assert figure_names(folder) == usual | (
        {"perturbations", "reconstructions"} if drawn else set()
    )
    lines = (folder / "confusion_matrix.csv").read_text().splitlines()
    counts = np.array([line.split(",")[1:] for line in lines[1:]], int)
    assert counts.sum() == summary["test_examples"]
    assert counts.sum() - np.trace(counts) == summary["test_errors"]
    assert len(summary["test_error_by_class"]) == 10 and 0 <= summary["calibration_error"] <= 1


def check_pairs(summary, config, folder):
    """Checks the measures of pairs of digits: those of reconstructions only with a decoder."""
    assert summary["command"].startswith("python -m experiments.multimnist --dataset=digits")
    assert 0 <= summary["digit_accuracy"] <= summary["either_accuracy"] <= 100
    assert 0.3 < summary["overlap"] < 1
    assert sum(row["pairs"] for row in summary["test_error_by_overlap"]) == 40
    drawn = config.model == "capsnet" and config.reconstruction
    for name in ("segmentation_accuracy", "shared_ink_accuracy", "reconstruction_mse"):
        assert (summary[name] is not None) == drawn
    figures = figure_names(folder)
    assert ("segmentation" in figures) == drawn and "training_curves" in figures


def check_crops(summary, config, folder):
    """Checks the number of parameters, and the configuration read back."""
    assert summary["dataset_source"].startswith("arrays ")
    setup = prepare_run(config)
    assert setup.pipeline.shape == setup.model_config.image_shape
    one = functional.count_parameters(
        jax.eval_shape(functional.create_model(setup.model_config).init, jax.random.key(0))
    )
    count = summary.get("ensemble", 1)
    assert summary["parameters"] == count * one
    if count == 1 and config.program != "svhn":
        assert summary["member_test_error"] == summary["test_error"]
    opened = stored_config(folder)
    defaults = find_program(config.program).defaults
    here = {name: getattr(defaults, name) for name in names_of(defaults, "local")}
    assert opened == dataclasses.replace(setup.config, **here)
    assert opened.default_workdir().startswith(f"runs/{config.program}-a-")


def digits(**changes):
    return "mnist", None, changes, {"test_examples": 360}, check_digits


def pairs(**changes):
    changes = {"batch_size": 16, "test_pairs": 40} | changes
    want = {"test_examples": 40, "shift": changes.get("shift", 4)}
    return "multimnist", None, changes, want, check_pairs


def crops(program, raw, classes, shape, **changes):
    """Returns the case of a program on random arrays, whose crops have another shape."""

    def check(summary, config, folder):
        setup = prepare_run(config)
        assert setup.pipeline.shape == shape and setup.dataset.num_classes == classes
        assert summary.get("ensemble", 1) == changes.get("ensemble", 1)
        check_crops(summary, config, folder)

    return program, (raw, classes), {"batch_size": 8} | changes, {"test_examples": 30}, check


def case_name(value):
    if isinstance(value, dict):
        return "-".join(map(str, value.values())) or "default"
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(
    "program, data, changes, want, check",
    [
        digits(),
        slow(*digits(recipe="official", routing_gradient="stop")),
        slow(*digits(routing_gradient="last", routing_iterations=1, max_shift=0)),
        slow(*digits(reconstruction=False, validation_fraction=0.0)),
        slow(*digits(dtype="bfloat16")),
        digits(model="cnn"),
        slow(*digits(parallel="jit", num_devices=2)),
        slow(*digits(parallel="shard_map", num_devices=2)),
        digits(parallel="pmap", num_devices=2),
        pairs(),
        slow(*pairs(model="cnn")),
        slow(*pairs(parallel="shard_map", num_devices=2, shift=6, recipe="official")),
        slow(*pairs(routing="em", diagnostics=True)),
        slow(*pairs(routing="heinsen", dtype="bfloat16")),
        slow(*pairs(parallel="pmap", num_devices=2, reconstruction=False, validation_fraction=0.0)),
        crops("cifar10", (32, 32, 3), 10, (24, 24, 3)),
        slow(*crops("cifar10", (28, 28), 10, (24, 24, 1), ensemble=2)),
        slow(
            *crops(
                "cifar10",
                (32, 32, 3),
                10,
                (24, 24, 3),
                reconstruction=True,
                parallel="shard_map",
                num_devices=2,
            )
        ),
        slow(*crops("cifar10", (32, 32, 3), 10, (24, 24, 3), ensemble=2, model="cnn")),
        crops("smallnorb", (96, 96, 2), 5, (32, 32, 2)),
        slow(*crops("smallnorb", (96, 96, 2), 5, (32, 32, 2), reconstruction=False)),
        slow(*crops("smallnorb", (48, 48, 2), 5, (32, 32, 2), preset="vb")),
        slow(*crops("smallnorb", (96, 96, 2), 5, (32, 32, 2), preset="gritzman")),
        slow(*crops("smallnorb", (48, 48, 2), 5, (48, 48, 2), preset="efficient_smallnorb")),
        slow(*digits(preset="hvc", batch_size=8, reconstruction=False)),
        slow(*crops("svhn", (32, 32, 3), 10, (32, 32, 3))),
    ],
    ids=case_name,
)
def test_every_program_for_two_steps(program, data, changes, want, check, stored, tmp_path, capsys):
    folder = tmp_path / "run"
    small = {name: getattr(TINY, name) for name in SMALL}
    dataset = stored(arrays(*data)) if data else "digits"
    config = dataclasses.replace(
        find_program(program).defaults,
        **small | {"dataset": dataset, "workdir": str(folder)} | changes,
    )
    summary = train(config)
    out, err = capsys.readouterr()
    assert read_json(folder / "summary.json") == summary
    want = {
        "program": program,
        "steps": 2,
        "dataset": dataset,
        "num_devices": config.num_devices,
    } | want
    assert {name: summary[name] for name in want} == want
    count = summary["test_examples"]
    assert summary["test_error"] == pytest.approx(100 * summary["test_errors"] / count, abs=1e-3)
    assert np.isfinite(summary["test_loss"])
    assert f"{summary['parameters']:,} parameters" in err
    figures = list((folder / "figures").iterdir())
    assert out.count(".png") == len(figures) and all(str(path) in out for path in figures)
    assert all(np.isfinite(row["loss"]) for row in metrics_rows(folder) if "loss" in row)
    assert read_json(folder / "config.json")["dataset"] == dataset
    assert list((folder / "tensorboard").iterdir())
    check(summary, config, folder)


# What differs from three passes, the margin loss and squashed primary capsules.
PASSES = {"uniform": 1, "random": 1, "static": 1, "frozen": 1, "self": 1, "self_attention": 2}
LOSS = {
    "self": "cross_entropy",
    "inverted": "cross_entropy",
    "heinsen": "cross_entropy",
    "em": "spread",
    "vb": "cross_entropy",
}
POSES = dict.fromkeys(("self", "vb", "heinsen"), "none")
POSES |= dict.fromkeys(("em", "inverted"), "layer_norm")
USUAL = {"frozen", "self"}  # of the routings; the others are slow tests


@pytest.mark.parametrize(
    "routing", [r if r in USUAL else slow(r) for r in ROUTINGS if r != "dynamic"]
)
def test_every_routing_for_two_steps(routing, dynamic, tmp_path):
    config, source, _ = dynamic
    summary = train(
        dataclasses.replace(
            config,
            routing=routing,
            workdir=str(tmp_path),
            steps=2,
            diagnostics=True,
            frozen_from=str(source) if routing == "frozen" else "",
        )
    )
    passes = PASSES.get(routing, 3)
    loss = LOSS.get(routing, "margin")
    want = {
        "routing": routing,
        "routing_iterations": passes,
        "votes": "full",
        "loss": loss,
        "squash": POSES.get(routing, "paper"),
        "depth": 1,
        "steps": 2,
        "reconstruction": False,
    }
    assert {name: summary[name] for name in want} == want
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    assert 100 < summary["peak_memory_mb"] <= used + 1
    assert np.isfinite(summary["test_loss"])
    rows = metrics_rows(tmp_path)
    trained, validated, measured = (row for row in rows if "layer_entropy" not in row)
    assert np.isfinite(trained[f"{loss}_loss"]) and "validation_error" in validated
    assert len(measured["entropy"]) == passes and len(measured["logit_change"]) == passes - 1
    pictures = {
        "training_curves",
        "confusion_matrix",
        "routing",
        "couplings",
        *["logit_changes"] * (passes > 1),
    }
    assert figure_names(tmp_path) == pictures


@pytest.mark.parametrize(
    "changes, want",
    [
        slow(
            {"preset": "matrix", "primary_types": 2},
            {
                "routing": "em",
                "votes": "conv_matrix",
                "squash": "none",
                "loss": "spread",
                "depth": 3,
            },
        ),
        slow(
            {"preset": "efficient"},
            {
                "routing": "self_attention",
                "routing_iterations": 2,
                "squash": "exponential",
                "parameters": 161_824,
            },
        ),
        slow(
            {
                "preset": "deep",
                "depth": 2,
                "primary_types": 2,
                "routing": "inverted",
                "routing_schedule": "concurrent",
            },
            {"squash": "layer_norm", "loss": "cross_entropy", "depth": 2},
        ),
        slow(
            {"preset": "deep", "depth": 4, "primary_types": 2}, {"routing": "dynamic", "depth": 4}
        ),
        slow(
            {"preset": "deep", "primary_types": 2, "routing": "uniform"},
            {"routing_iterations": 1, "depth": 4},
        ),
        (
            {"votes": "conv", "routing": "em", "loss": "margin", "routing_iterations": 2},
            {
                "routing_iterations": 2,
                "squash": "layer_norm",
                "parameters": 16 * 82 + 16 * 81 * (32 + 4) + 36 + 4 * 10 * 16 * 8 + 2 * 10,
            },
        ),
        ({"votes": "matrix", "primary_pose": 16}, {"depth": 1}),
        slow({"votes": "shared", "routing_prior": "learned"}, {}),
        slow({"votes": "elementwise", "routing": "vb", "loss": "cross_entropy"}, {}),
        slow({"votes": "conv_matrix", "primary_pose": 9, "squash": "half"}, {}),
        slow({"routing_schedule": "concurrent"}, {"routing_iterations": 3}),
    ],
    ids=lambda x: "-".join(map(str, x.values())),
)
def test_networks_for_two_steps(changes, want, tmp_path):
    summary = train(dataclasses.replace(QUICK, workdir=str(tmp_path), **changes))
    given = {name: changes[name] for name in changes.keys() & summary.keys()}
    want = {"steps": 2, "routing": "dynamic", "votes": "full", "loss": "margin"} | given | want
    assert {name: summary[name] for name in want} == want
    (row,) = metrics_rows(tmp_path)
    assert np.isfinite(row["loss"]) and row[f"{want['loss']}_loss"] == pytest.approx(row["loss"])
    assert np.isfinite(summary["test_loss"])
