"""A sweep whose results are made up, for tests of tables and reports."""

import pathlib

import numpy as np
from helpers import MNIST

from experiments.files.bits import pack
from experiments.sweeps import ledger, plan
from experiments.sweeps.studies import product

IMAGES = 400


def correct(wrong, seed=0):
    """Returns which images are classified correctly: all but ``wrong``, chosen by the seed."""
    right = np.ones(IMAGES, bool)
    right[np.random.default_rng(seed).permutation(IMAGES)[:wrong]] = False
    return right


def entry(key, right, together=1, **changes):
    errors = int((~right).sum())
    return ledger.success(
        key,
        {
            "test_error": 100 * errors / IMAGES,
            "test_errors": errors,
            "test_examples": IMAGES,
            "parameters": 1234567,
            "images_per_second": 100.0,
            "peak_memory_mb": 2000,
            "training_seconds": 9.6,
            "wall_seconds": 12.0,
            "seed": 0,
            "commit": "abc",
            "steps": 2,
            "device_kind": "cpu",
            "versions": {"jax": "1"},
            "routing": "em",
            "votes": "full",
            "squash": "none",
            "loss": "margin",
            "depth": 1,
            "validation_error": 3.0,
            "validation_loss": 0.5,
            "test_loss": 0.25,
            "dataset": "digits",
            "test_correct": pack(right),
        }
        | changes,
        together,
    )


def runs_of(study, tuned=None, seeds=None):
    tuned = tuned or {row: [{}] for row in study.rows}
    seeds = study.seeds if seeds is None else seeds
    return plan.make(study, {}, pathlib.Path("/f"), MNIST, tuned, seeds)


STUDY = product({"routing": ("em", "vb", "uniform"), "votes": ("full",)}, ("0", "1", "2"))
WRONG = {"em": (4, 8, 18), "vb": (40, 45, 50), "uniform": (5, 7, 18)}
