"""Combinations of flags that are refused before anything is written."""

import dataclasses

import pytest
from helpers import QUICK, TINY, train

from experiments.config import UserError


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"routing_prior": "learned", "routing": "em"}, "--routing_prior=learned: em has no prior"),
        ({"frozen_from": "runs/x"}, "--frozen_from requires --routing=frozen"),
        ({"preset": "deep", "depth": 5}, "--depth=5: --preset=deep has 4 routed"),
        ({"preset": "mnist", "depth": 2}, "--depth=2: --preset=mnist has 1 routed"),
        ({"votes": "matrix", "primary_pose": 8}, "square number of components, not 8"),
        ({"votes": "elementwise", "class_pose": 4}, "8 can't become 4"),
        ({"routing": "inverted", "loss": "margin"}, "--loss=margin: .*use cross_entropy"),
        ({"preset": "deep", "model": "cnn"}, "deep"),
        (
            {"routing": "em", "votes": "shared", "routing_implementation": "pallas_interpret"},
            "--routing_implementation=pallas_interpret: em routing .*use stream",
        ),
        (
            {"votes": "conv", "routing_implementation": "pallas_interpret"},
            "--routing_implementation=pallas_interpret: .*these votes has no kernels, use stream",
        ),
        (
            {"diagnostics": True, "routing_schedule": "concurrent"},
            "--diagnostics requires --routing_schedule=sequential",
        ),
        ({"preset": "matrix", "routing_schedule": "concurrent"}, "'em' has no concurrent schedule"),
        ({"preset": "matrix", "primary_pose": 8}, "8 can't become 16"),
        ({"routing_schedule": "concurrent", "routing_gradient": "stop"}, "concurrent .*'stop'"),
        ({"preset": "deep", "depth": 2, "routing": "frozen"}, "one routed layer"),
        (
            {"routing": "frozen", "routing_iterations": 2},
            "first run python -m experiments.mnist "
            "--dataset=digits .*--preset=tiny .*--routing_iterations=2",
        ),
        ({"preset": "efficient", "primary_types": 8}, "128"),
        ({"model": "cnn", "routing": "frozen"}, "cnn"),
    ],
    ids=lambda x: "-".join(map(str, x.values())) if isinstance(x, dict) else "",
)
def test_contradictory_flags_are_refused_before_the_workdir_exists(
    changes, message, tmp_path, capsys
):
    config = dataclasses.replace(QUICK, workdir=str(tmp_path / "run"), **changes)
    with pytest.raises(UserError, match=message):
        train(config)
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "run").exists()


def test_kernels_are_refused_where_they_cannot_run(tmp_path):
    config = dataclasses.replace(TINY, routing_implementation="pallas", workdir=str(tmp_path / "x"))
    with pytest.raises(UserError, match="--routing_implementation=pallas: .* not on cpu"):
        train(config)
    assert not (tmp_path / "x").exists()
