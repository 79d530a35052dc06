"""Measure the test error of several finished runs together, as one network.

    python -m experiments.vote DIR DIR DIR                     the test images of their data set
    python -m experiments.vote --output=results/mnist/vote DIR DIR DIR

The runs are of one data set, with one class for each image, and their preprocessing may differ.
They are combined in two ways, both of which are always reported:

- vote: the class that most of them name; of several such classes the one with the largest mean
  score;
- mean: the class with the largest mean score. Scores are lengths of class capsules, activations,
  or, where a network returns logits, probabilities.

With --output, the table is also written as OUTPUT.md and everything as OUTPUT.json.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from capsjax import map_batches
from experiments.analysis import saved_run
from experiments.config import UserError, setting
from experiments.config.flags import run
from experiments.files import local_path
from experiments.plots.text_tables import markdown
from experiments.sweeps.statistics import of_rate
from experiments.tasks.figures import title_of
from experiments.tasks.predictions import network_of, score_function
from experiments.training.evaluate import BATCH
from experiments.training.results import output_path, provenance, write_results


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this command."""

    output: str = setting("", "path of the results without suffix; by default none are written")
    accelerator: str = setting("auto", "where to compute", choices=("auto", "cpu", "gpu", "tpu"))
    data_dir: str = setting(
        "", "directory of prepared TensorFlow Datasets; that of the runs is not used"
    )
    cache_dir: str = setting(
        "", "data sets and compiled programs; by default the user's cache folder"
    )


DEFAULTS = Flags()


def main(flags: Flags, *folders: str) -> None:
    """Measures, prints the table, and writes the results.

    Raises:
      UserError: there are fewer than two runs, one of them is missing or unsuitable, or the output
        can't be written.
    """
    places = {local_path(folder, "run").resolve() for folder in folders}
    if len(places) < max(2, len(folders)):
        raise UserError("name two different finished runs or more: DIR DIR")
    output = output_path(flags.output) if flags.output else None
    opened = [open_finished(folder, flags) for folder in folders]
    first = opened[0].setup
    images, labels = first.pipeline.held_out("test")
    for one in opened[1:]:
        others, _ = one.setup.pipeline.held_out("test")
        other_data = one.setup.dataset.checksum != first.dataset.checksum
        # Data in memory may have been changed after reading: affnist moves its digits.
        if other_data or isinstance(images, np.ndarray) and not np.array_equal(images, others):
            raise UserError(f"{one.folder} has other test images than {opened[0].folder}")
    rows = measure([scores(one) for one in opened], labels)
    names = [f"{one.setup.config.preset} {title_of(one.setup)}" for one in opened]
    rows = [{"name": name} | row for name, row in zip([*names, "vote", "mean"], rows, strict=True)]
    text = to_markdown(rows)
    print(text)
    if output:
        command = f"python -m experiments.vote {' '.join(['DIR'] * len(folders))}"
        seeds = [one.setup.config.seed for one in opened]
        origin = provenance(command, seeds, first.devices[0])
        runs = [saved_run.current_summary(one).get("command") for one in opened]
        result = {"program": "vote"} | origin | {"runs": runs, "networks": rows}
        write_results(output, result, text)


def open_finished(folder: str, flags: Flags) -> saved_run.SavedRun:
    """Opens a finished run with its data.

    Raises:
      UserError: the run is missing or not finished, its summary is of other weights or data, or its
        images have several classes each.
    """
    here = {name: getattr(flags, name) for name in ("accelerator", "data_dir", "cache_dir")}
    opened = saved_run.open_run(folder, **here, examples=True)
    saved_run.current_summary(opened)
    if network_of(opened.setup).labels_per_image != 1:
        raise UserError(f"a vote is about images of one class, and those of {folder} have several")
    return opened


def scores(opened: saved_run.SavedRun) -> np.ndarray:
    """Returns lengths, activations or probabilities ``[N, J]`` of all test images."""
    setup, network = opened.setup, network_of(opened.setup)

    @jax.jit
    def of_batch(variables: Any, pixels: jax.Array) -> jax.Array:
        inputs = jax.vmap(setup.pipeline.input)(pixels)
        return score_function(network)(network.model.apply(variables, inputs).scores)

    def some(pixels, count):
        return np.asarray(of_batch(opened.variables, pixels))

    images, _ = setup.pipeline.held_out("test")
    return map_batches(some, images, BATCH)


def measure(scores: list[np.ndarray], labels: np.ndarray) -> list[dict]:
    """Counts errors: of each network, of their vote, and of the mean of their scores.

    Args:
      scores: of each network, ``[N, J]``.
      labels: ``[N]``.

    Returns:
      Number of errors, percentage, and Wilson's interval of the percentage, in this order.
    """
    mean = np.mean(scores, axis=0)
    classes = np.argmax(scores, axis=2)  # [networks, N]
    votes = np.sum(classes[:, :, None] == np.arange(mean.shape[1]), axis=0)
    most = votes == votes.max(axis=1, keepdims=True)
    decided = np.argmax(np.where(most, mean, -np.inf), axis=1)
    return [_errors(found, labels) for found in (*classes, decided, mean.argmax(axis=1))]


def _errors(classes, labels):
    wrong, count = int(np.sum(classes != labels)), len(labels)
    low, high = of_rate(wrong, count)
    return {
        "test_errors": wrong,
        "test_examples": count,
        "test_error": round(100 * wrong / count, 4),
        "interval": [round(100 * low, 4), round(100 * high, 4)],
    }


def to_markdown(rows: list[dict]) -> str:
    """Returns the table for readers."""
    lines = [
        [
            row["name"],
            f"{row['test_error']:.2f} ({row['test_errors']:,} of {row['test_examples']:,})",
            "{:.2f} to {:.2f}".format(*row["interval"]),
        ]
        for row in rows
    ]
    return markdown(["network", "test error, %", "95% interval"], lines)


if __name__ == "__main__":
    run(main, DEFAULTS, words=True)
