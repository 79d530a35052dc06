"""Measure how the poses of a trained network change as an image is transformed.

    python -m experiments.equivariance --run=DIR
    python -m experiments.equivariance --run=DIR --compare=DIR      two networks in one table

Test digits are rotated, sheared, scaled and shifted, one of these at a time and by known amounts.
The features that are observed are the pose of the class capsule of the label; in a network without
capsules they are the inputs of its last layer. The measures, which are defined in
:mod:`experiments.analysis.equivariance_metrics`, are:

- how well a linear and a quadratic function of the amount explain the path of the features,
- the number of dimensions in which the path lies,
- how much length and direction change, relative to the distance between two images of one class,
- how well a linear probe for each class predicts the amount, and the thickness of the strokes of
  digits that are not transformed.

Probes learn from training images and are tested on test images. Writes OUTPUT.json, OUTPUT.md,
OUTPUT_paths.png and OUTPUT_probes.png.
"""

import dataclasses
import os
from pathlib import Path

from experiments.analysis import saved_run
from experiments.analysis.equivariance_report import draw, measure, to_markdown
from experiments.config import UserError, setting
from experiments.config.flags import run
from experiments.training.results import output_path, provenance, write_results

PROGRAMS = ("mnist", "affnist")  # their images show one object on black


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this command."""

    run: str = setting("", "folder of a finished run of mnist or affnist")
    compare: str = setting("", "folder of another run, trained on the same data")
    images: int = setting(1000, "number of test images; 0: all", low=0)
    train_images: int = setting(5000, "number of training images, for the probes; 0: all", low=0)
    output: str = setting("", "path of the results without suffix; by default RUN/equivariance")
    accelerator: str = setting("auto", "where to compute", choices=("auto", "cpu", "gpu", "tpu"))
    data_dir: str = setting(
        "", "directory of prepared TensorFlow Datasets; that of the run is not used"
    )
    cache_dir: str = setting(
        "", "data sets and compiled programs; by default the user's cache folder"
    )


DEFAULTS = Flags()


def main(flags: Flags) -> None:
    """Measures, writes and draws the results, and prints the table.

    Raises:
      UserError: a run is missing or unsuitable, or the output can't be written.
    """
    if not flags.run:
        raise UserError("name a finished run with --run=DIR")
    folders = list(dict.fromkeys(f for f in (flags.run, flags.compare) if f))
    opened = [open_finished(folder, flags) for folder in folders]
    if len({one.setup.dataset.checksum for one in opened}) > 1:
        names = sorted({one.setup.dataset.name for one in opened})
        raise UserError(
            f"--compare={flags.compare}: the runs have other data: {' and '.join(names)}"
        )
    output = output_path(flags.output or Path(flags.run) / "equivariance")
    if not os.access(output.parent, os.W_OK):
        raise UserError(f"--output={output} can't be written")
    results, mean_paths = [], {}
    for one in opened:
        result, paths = measure(one, flags.images, flags.train_images)
        if result["name"] in mean_paths:
            result["name"] += " (2)"
        results.append(result)
        mean_paths[result["name"]] = paths
    seeds = [one.setup.config.seed for one in opened]
    origin = provenance(command(flags), seeds, opened[0].setup.devices[0])
    text = to_markdown(results)
    write_results(output, {"program": "equivariance"} | origin | {"networks": results}, text)
    data = opened[0].setup.dataset
    draw(output, results, mean_paths, data.name, data.class_names[data.test_labels[0]])
    print(text)
    print(*(f"{output}{end}" for end in (".json", ".md", "_paths.png", "_probes.png")), sep="\n")


def command(flags: Flags) -> str:
    """Returns the command without places on this machine; DIR stands for the folder of a run."""
    words = ["python -m experiments.equivariance --run=DIR"]
    words += ["--compare=DIR"] if flags.compare else []
    counts = {name: getattr(flags, name) for name in ("images", "train_images")}
    words += [f"--{name}={n}" for name, n in counts.items() if n != getattr(DEFAULTS, name)]
    return " ".join(words)


def open_finished(folder: str, flags: Flags) -> saved_run.SavedRun:
    """Opens a finished run of one of :data:`PROGRAMS`, with its data.

    Raises:
      UserError: the run is missing, not finished, or of another program, or of sets of labels; or
        its summary is of other weights or data.
    """
    here = {name: getattr(flags, name) for name in ("accelerator", "data_dir", "cache_dir")}
    opened = saved_run.open_run(folder, **here, examples=True)
    if opened.setup.config.program not in PROGRAMS:
        raise UserError(
            f"{folder} is a run of {opened.setup.config.program}, not of {' or '.join(PROGRAMS)}"
        )
    saved_run.current_summary(opened)
    if opened.setup.dataset.multi_label:
        raise UserError(f"paths need images of one class each, and those of {folder} have sets")
    return opened


if __name__ == "__main__":
    run(main, DEFAULTS)
