"""The named studies: the rows that each compares, and the flags of every row."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from capsjax.recipes import RECIPES
from capsjax.routing import GRADIENTS, ROUTINGS
from capsjax.squash import SQUASHES

Flags = Mapping[str, str]
SEEDS = ("0", "1", "2")


class Study(NamedTuple):
    """Rows of a table; the first is the one with which the others are compared."""

    rows: Mapping[str, Flags]  # by name; all of them have the same seeds
    axes: tuple[str, ...] = ()  # flags that name the rows, one column each; empty: one name each
    seeds: tuple[str, ...] = ()  # empty: one run for each row, with the seed of the flags
    program: str = "mnist"
    # A flag whose values have separate tables, each compared with its own first row.
    group_by: str = ""
    # Flags and values that are tuned for every row, on validation data, before its seeds run.
    tuning: Mapping[str, Sequence[str]] = {}
    affine: bool = False  # also measure the error on transformed test images
    columns: Mapping[str, str] = {}  # further fields of summary.json, by heading: means over seeds
    about: str = ""  # the question and what differs between rows, for the report


def product(axes: Mapping[str, Sequence[str]], seeds: Sequence[str] = (), **fields) -> Study:
    """Returns the study of all combinations of the values of some flags."""
    points = [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    named = tuple(name for name, values in axes.items() if len(values) > 1)
    rows = {", ".join(f"{n}={point[n]}" for n in named): point for point in points}
    return Study(rows, named, tuple(seeds), **fields)


def few_examples(
    counts: Sequence[str], steps: int, batch_size: int, networks: Sequence[tuple[str, str]]
) -> Study:
    """Returns the study of networks (model, preset) over the number of training examples."""
    rows = {
        f"{model} {preset}, {count} examples": {
            "train_examples": count,
            "model": model,
            "preset": preset,
            "steps": str(steps),
            "batch_size": str(batch_size),
            "log_every": "100",
        }
        for count in counts
        for model, preset in networks
    }
    return Study(rows, ("train_examples", "model", "preset"), SEEDS, group_by="train_examples")


SOURCE = "mnist_small"  # the packaged network that the study transfer starts from
PAPERS = (("capsnet", "mnist"), ("cnn", "mnist"), ("cnn", "multimnist"))
SMALL = (("capsnet", "small"), ("cnn", "mnist_small"), ("cnn", "small"))


def _rows(iterations: str, reconstruction: str) -> Flags:
    return {"routing_iterations": iterations, "reconstruction": reconstruction}


TABLE_1 = {
    "CNN": {"model": "cnn"},
    "CapsNet, r=1, no reconstruction": _rows("1", "false"),
    "CapsNet, r=1, reconstruction": _rows("1", "true"),
    "CapsNet, r=3, no reconstruction": _rows("3", "false"),
    "CapsNet, r=3, reconstruction": _rows("3", "true"),
}

# The coupling coefficients of dynamic routing depend on the example; what if they are learned?
COUPLINGS = {
    "dynamic": {"routing": "dynamic"},
    "dynamic, learned prior": {"routing": "dynamic", "routing_prior": "learned"},
    "uniform": {"routing": "uniform"},
    "random": {"routing": "random"},
    "static": {"routing": "static"},
    "frozen": {"routing": "frozen"},
    "self": {"routing": "self"},
}


def couplings(*names: str) -> Mapping[str, Flags]:
    """Returns rows of :data:`COUPLINGS`, with both kinds of votes."""
    return {
        f"{name}, {votes} votes": {**COUPLINGS[name], "votes": votes}
        for votes in ("full", "shared")
        for name in names
    }


STUDIES: dict[str, Study] = {
    # Table 1 of Sabour, Frosst & Hinton (2017).
    "table1": Study(TABLE_1, seeds=SEEDS),
    # All routing algorithms; the frozen network takes the couplings of the dynamic one.
    "routing": product({"routing": tuple(ROUTINGS)}, SEEDS),
    "iterations": product({"routing_iterations": tuple("1234567")}, SEEDS),
    "gradient": product({"routing_gradient": GRADIENTS}, SEEDS),
    # What the authors' code does and the text does not say, one by one and all together.
    "official_switches": Study(
        {
            "recipe=paper": {"recipe": "paper"},
            **{f"{n}={v}": {n: str(v)} for n, v in RECIPES["official"].items()},
            "recipe=official": {"recipe": "official"},
        },
        seeds=SEEDS,
    ),
    "learned_coupling": Study(
        couplings(*COUPLINGS),
        seeds=("0", "1", "2", "3", "4"),
        group_by="votes",
        affine=True,
        tuning={"learning_rate": ("0.0003", "0.001", "0.003")},
        about="Coupling coefficients are usually obtained by dynamic routing. Here everything but "
        "their origin is fixed: **uniform**, **random** (drawn once), **static** (logits learned "
        "by back-propagation), **frozen** (mean couplings of the trained dynamic network of the "
        "same seed), **dynamic** with or without a learned prior. With full votes the first four "
        "have one function class, as c_ij W_ij is but another W_ij, and differ in optimization "
        "alone; with shared votes they do not. **self** (learned functions of the input capsule) "
        "stands beside them: its class scores are shares of couplings, its loss is cross-entropy.",
    ),
    "learned_coupling_pairs": Study(
        couplings("dynamic", "uniform", "static", "self"),
        seeds=SEEDS,
        group_by="votes",
        program="multimnist",
        about="Where the coupling coefficients come from, as in the study learned_coupling, for "
        "overlapping digits, which routing is said to tell apart; one learning rate for all.",
    ),
    "squash": product({"squash": tuple(SQUASHES)}, SEEDS),
    "capsule_dim": Study(
        {
            "16-D class, 8-D primary": {},
            **{f"{d}-D class": {"class_pose": d} for d in ("4", "8", "32")},
            **{f"{d}-D primary": {"primary_pose": d} for d in ("4", "16")},
        },
        seeds=SEEDS,
    ),
    "reconstruction_weight": Study(
        {
            "0.0005": {},
            **{w: {"reconstruction_weight": w} for w in ("0", "0.00005", "0.005", "0.05")},
            "no decoder": {"reconstruction": "false"},
        },
        seeds=SEEDS,
    ),
    # The paper's comparison on pairs of overlapping digits, and on digits that are transformed.
    "multimnist": Study(
        {name: flags for name, flags in TABLE_1.items() if "no reconstruction" not in name},
        seeds=SEEDS,
        program="multimnist",
    ),
    "affnist": product(
        {"model": ("cnn", "capsnet")},
        SEEDS,
        program="affnist",
        columns={"affNIST error, %": "affnist_error"},
    ),
    # One trunk of five convolutions below three heads, of 1.06 to 1.13 million parameters together.
    "heads": Study(
        {
            "dense layer": {"model": "cnn", "preset": "m5"},
            "homogeneous vector capsules": {"preset": "m5_hvc"},
            "self-attention routing": {"preset": "m5"},
        },
        seeds=SEEDS,
    ),
    # Learning from few examples, of all classes alike, in as many steps: the CapsNet and both CNNs
    # of the paper, on MNIST; small ones of these, there and on the digits.
    "data_efficiency": few_examples(("10", "100", "1000", "10000", "57000"), 2000, 128, PAPERS),
    "data_efficiency_small": few_examples(("10", "100", "1000", "57000"), 200, 64, SMALL),
    "data_efficiency_digits": few_examples(("10", "30", "100", "300", "1000"), 200, 64, SMALL),
    # Routed capsule layers of --preset=deep.
    "depth": product(
        {
            "preset": ("deep",),
            "routing": ("dynamic", "uniform", "kmeans", "inverted", "self", "em", "vb"),
            "depth": ("1", "4"),
        },
        SEEDS,
    ),
    # Why mixture models fail in four layers: short poses, or competition among random votes.
    "deep_mixtures": product(
        {
            "preset": ("deep",),
            "routing": ("em", "vb"),
            "routing_iterations": ("1", "2"),
            "pose_norm": ("auto", "none"),
        },
        SEEDS,
    ),
    # Fashion-MNIST from weights for MNIST: --dataset=fashion_mnist --train_examples=1000.
    "transfer": Study(
        {
            "random weights": {"init_from": ""},
            "weights for MNIST": {"init_from": SOURCE},
            "weights for MNIST, convolutions frozen": {
                "init_from": SOURCE,
                "freeze": "^(conv|primary)",
            },
            "weights for MNIST, convolutions at a tenth of the rate": {
                "init_from": SOURCE,
                "learning_rate_of": "^(conv|primary)=0.1",
            },
        },
        seeds=SEEDS,
        about="Whether weights that were trained on digits help on articles of clothing, of which "
        "there are few images. The classes are ten in both, so that all arrays are kept. The "
        "first row is trained from random weights, in as many steps.",
    ),
    # What a squash does to a stack.
    "deep_squash": product(
        {
            "preset": ("deep",),
            "routing": ("dynamic", "uniform"),
            "squash": ("paper", "half", "exponential"),
        }
    ),
}
