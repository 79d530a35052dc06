"""Every program, routing and network for two steps."""

import dataclasses
import resource

import numpy as np
import pytest
from helpers import QUICK, TINY, figure_names, metrics_rows, read_json, train

from capsjax.routing import ROUTINGS


@pytest.mark.parametrize("changes", [
    {},
    {"recipe": "official", "routing_gradient": "stop"},
    {"routing_gradient": "last", "routing_iterations": 1, "max_shift": 0},
    {"reconstruction": False, "validation_fraction": 0.0},
    {"dtype": "bfloat16"},
    {"model": "cnn"},
    {"parallel": "jit", "num_devices": 2},
    {"parallel": "shard_map", "num_devices": 2},
    {"parallel": "pmap", "num_devices": 2},
], ids=lambda c: "-".join(map(str, c.values())) or "default")
def test_every_path_for_two_steps(changes, tmp_path, capsys):
    config = dataclasses.replace(TINY, workdir=str(tmp_path), **changes)
    summary = train(config)
    out, err = capsys.readouterr()
    assert read_json(tmp_path / "summary.json") == summary
    assert summary["steps"] == 2 and summary["test_examples"] == 360
    assert summary["test_error"] == pytest.approx(100 * summary["test_errors"] / 360, abs=1e-3)
    assert summary["dataset"] == "digits" and summary["num_devices"] == config.num_devices
    assert f"{summary['parameters']:,} parameters" in err
    drawn = config.model == "capsnet" and config.reconstruction
    pictures = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert pictures == (["perturbations.png", "reconstructions.png", "training_curves.png"]
                        if drawn else ["training_curves.png"])
    assert all(str(tmp_path / "figures" / name) in out for name in pictures)
    assert all(np.isfinite(row["loss"]) for row in metrics_rows(tmp_path) if "loss" in row)
    assert read_json(tmp_path / "config.json")["dataset"] == "digits"
    assert list((tmp_path / "tensorboard").iterdir())


# What differs from three passes, the margin loss and squashed primary capsules.
PASSES = {"uniform": 1, "random": 1, "static": 1, "frozen": 1, "self": 1, "self_attention": 2}
LOSS = {"self": "cross_entropy", "inverted": "cross_entropy", "heinsen": "cross_entropy",
        "em": "spread"}
UNSQUASHED = {"self", "em", "vb"}
USUAL = {"frozen", "sparsemax", "self", "heinsen"}  # of the routings; the others are slow tests


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("routing", [
    r if r in USUAL else slow(r) for r in ROUTINGS if r != "dynamic"])
def test_every_routing_for_two_steps(routing, dynamic, tmp_path):
    config, source, _ = dynamic
    summary = train(dataclasses.replace(
        config, routing=routing, workdir=str(tmp_path), steps=2, diagnostics=True,
        frozen_from=str(source) if routing == "frozen" else ""))
    passes = PASSES.get(routing, 3)
    loss = LOSS.get(routing, "margin")
    want = {"routing": routing, "routing_iterations": passes, "votes": "full", "loss": loss,
            "squash": "none" if routing in UNSQUASHED else "paper", "depth": 1, "steps": 2,
            "reconstruction": False}
    assert {name: summary[name] for name in want} == want
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    assert 100 < summary["peak_memory_mb"] <= used + 1
    assert np.isfinite(summary["test_loss"])
    trained, validated, measured = metrics_rows(tmp_path)
    assert np.isfinite(trained[f"{loss}_loss"]) and "validation_error" in validated
    assert len(measured["entropy"]) == passes and len(measured["logit_change"]) == passes - 1
    pictures = {"training_curves", "routing", "couplings", *["logit_changes"] * (passes > 1)}
    assert figure_names(tmp_path) == pictures


@pytest.mark.parametrize("changes, want", [
    slow({"preset": "matrix", "primary_types": 2},
         {"routing": "em", "votes": "conv_matrix", "squash": "none", "loss": "spread", "depth": 3}),
    ({"preset": "efficient"},
     {"routing": "self_attention", "routing_iterations": 2, "squash": "exponential",
      "parameters": 161_824}),
    ({"preset": "deep", "depth": 2, "primary_types": 2, "routing": "inverted",
      "routing_schedule": "concurrent"},
     {"squash": "exponential", "loss": "cross_entropy", "depth": 2}),
    slow({"preset": "deep", "depth": 4, "primary_types": 2}, {"routing": "dynamic", "depth": 4}),
    slow({"preset": "deep", "primary_types": 2, "routing": "uniform"},
         {"routing_iterations": 1, "depth": 4}),
    ({"votes": "conv", "routing": "em", "loss": "margin", "routing_iterations": 2},
     {"routing_iterations": 2, "squash": "none", "parameters": 16 * 82 + 16 * 81 * 32 + 32
      + 4 * 10 * 16 * 8 + 2 * 10}),
    ({"votes": "matrix", "primary_pose": 16}, {"depth": 1}),
    slow({"votes": "shared", "routing_prior": "learned"}, {}),
    slow({"votes": "elementwise", "routing": "vb", "loss": "cross_entropy"}, {}),
    slow({"votes": "conv_matrix", "primary_pose": 9, "squash": "half"}, {}),
    slow({"routing_schedule": "concurrent"}, {"routing_iterations": 3}),
], ids=lambda x: "-".join(map(str, x.values())))
def test_networks_for_two_steps(changes, want, tmp_path):
    summary = train(dataclasses.replace(QUICK, workdir=str(tmp_path), **changes))
    given = {name: changes[name] for name in changes.keys() & summary.keys()}
    want = {"steps": 2, "routing": "dynamic", "votes": "full", "loss": "margin"} | given | want
    assert {name: summary[name] for name in want} == want
    (row,) = metrics_rows(tmp_path)
    assert np.isfinite(row["loss"]) and row[f"{want['loss']}_loss"] == pytest.approx(row["loss"])
    assert np.isfinite(summary["test_loss"])
