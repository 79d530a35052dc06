"""The configuration of a run: its default folder."""

import dataclasses
import zlib

import pytest
from helpers import MNIST, parse_mnist

from experiments.config import names_of, resolve


def test_default_workdir_depends_only_on_what_is_trained():
    base = resolve(MNIST, "digits")
    same = dataclasses.replace(
        base, epochs=99, accelerator="cpu", data_dir="x", log_every=3, diagnostics=True
    )
    assert base.default_workdir() == same.default_workdir()
    others = [
        {"seed": 1},
        {"routing": "em"},
        {"votes": "conv"},
        {"squash": "none"},
        {"depth": 1},
        {"loss": "spread"},
        {"routing_prior": "learned"},
        {"primary_types": 3},
        {"routing_schedule": "concurrent"},
        {"frozen_from": "x"},
        {"pose_norm": "none"},
        {"routing_iterations": 2},
        {"schedule": "cosine"},
        {"optimizer": "lamb"},
        {"ema": 0.9},
        {"keep": "best"},
        {"augmentation": "strong"},
    ]
    places = {dataclasses.replace(base, **other).default_workdir() for other in others}
    assert len(places | {base.default_workdir()}) == len(others) + 1
    spelt_out = resolve(parse_mnist("--routing=dynamic", "--votes=full", "--loss=margin"), "digits")
    assert spelt_out.default_workdir() == base.default_workdir()


def test_flags_that_came_later_leave_the_folders_of_earlier_runs():
    base = resolve(MNIST, "digits")
    later = names_of(base, "later")
    assert {"schedule", "optimizer", "ema", "keep", "augmentation", "max_minutes"} <= set(later)
    earlier = sorted(pair for pair in base.identity().items() if pair[0] not in later)
    code = zlib.crc32(repr(earlier).encode())
    assert base.default_workdir() == f"runs/mnist-digits-capsnet-{code:08x}"


@pytest.mark.parametrize(
    "flags, fixed",
    [((), False), (("--schedule=cosine",), True), (("--routing=em",), True)],
)
def test_runs_whose_schedule_has_their_length_have_one_length(flags, fixed):
    config = resolve(parse_mnist(*flags), "digits")
    longer = dataclasses.replace(config, epochs=config.epochs + 1)
    assert (longer.identity() != config.identity()) == fixed
