"""Test images that a network gets wrong, or right with the least certainty."""

from collections.abc import Iterator

import jax
import numpy as np

from experiments import plots
from experiments.plots.contact_sheet import Frame, cut, plot_contact_sheet
from experiments.tasks import figures
from experiments.tasks.base import Figure, Setup
from experiments.tasks.predictions import network_of, predict

WRONG, UNSURE = 20, 12  # images, at most
NAME = 6  # letters of a class, so that two of them and their scores fit below an image


def hardest(values: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of wrong test images, and of the least certain ones among the right.

    Both come in the order of the loss of their scores, the largest first.

    Args:
      values: what the evaluation says of the test set, arrays ``[N]``.
    """
    of_scores = [name for name in values if name.endswith("_loss") and "reconstruction" not in name]
    loss = values[of_scores[0] if of_scores else "loss"]
    order = np.argsort(-loss, kind="stable")
    correct = values["accuracy"][order] > 0
    return order[~correct][:WRONG], order[correct][:UNSURE]


def contact_sheet(setup: Setup, variables, values: dict[str, np.ndarray]) -> Iterator[Figure]:
    """Yields the contact sheet of a trained network; nothing for pairs, which have a figure."""
    if setup.pipeline.labels != 1:
        return
    wrong, unsure = hardest(values)
    rows = np.concatenate([wrong, unsure])
    raw, labels = setup.pipeline.held_out("test")
    inputs = np.asarray(jax.jit(jax.vmap(setup.pipeline.input))(raw[rows]))
    found, shown = predict(network_of(setup), variables, inputs), figures.drawable(setup)
    images = shown(inputs)
    drawn = [None] * len(rows) if found.reconstruction is None else shown(found.reconstruction)
    names = setup.dataset.class_names

    def frame(k):
        truth = np.atleast_1d(labels[rows[k]])
        truth = np.flatnonzero(truth) if setup.dataset.multi_label else truth
        best = np.argsort(-found.scores[k], kind="stable")[:2]
        chosen = found.named[k] if setup.dataset.multi_label else best
        said = ", ".join(f"{cut(names[n], NAME)} {found.scores[k, n]:.2f}" for n in chosen)
        truth = " + ".join(names[n] for n in truth)
        return Frame(images[k], drawn[k], truth or "nothing", said or "none", k >= len(wrong))

    frames = [frame(k) for k in range(len(rows))]
    groups = [
        ("wrong, the most certain first", frames[: len(wrong)]),
        ("right, the least certain first", frames[len(wrong) :]),
    ]
    arguments = (groups, figures.title_of(setup) + plots.note_of_channels(setup.pipeline.shape[-1]))
    yield "contact_sheet", plot_contact_sheet, arguments
