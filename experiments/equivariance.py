"""How the poses of a trained network follow what is done to an image.

    python -m experiments.equivariance --run=DIR
    python -m experiments.equivariance --run=DIR --compare=DIR      beside another network

Test digits are rotated, sheared, scaled and shifted, one of these at a time and by known amounts,
and the pose of the class capsule of their label is watched; in a network without capsules what its
last layer sees stands for the pose. Measured are, see :mod:`experiments.analysis.equivariance_metrics`: how well a linear
and a quadratic function of the amount explain the path of the pose; in how many dimensions it
lies; how much length and direction change, where 1 is the distance between two images of one
class; and what a linear probe of the class reads from the pose: the amount, and the thickness of
the strokes of untouched digits. Probes learn from training images and are tested on test images.
Writes OUTPUT.json, OUTPUT.md, OUTPUT_paths.png and OUTPUT_probes.png.
"""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np

from experiments import plots
from experiments.analysis import saved_run
from experiments.analysis.feature_paths import (
    AMOUNTS,
    COMPONENTS,
    STEPS,
    follow,
    make_features,
    of_paths,
    probe_all,
    typical,
)
from experiments.config import UserError, setting
from experiments.config.flags import run
from experiments.training.results import versions
from experiments.training.workdir import write_json
from kernels.cli import commit

PROGRAMS = ("mnist", "affnist")  # whose images hold one thing, on black


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this program."""

    run: str = setting("", "folder of a finished run of mnist or affnist")
    compare: str = setting("", "folder of another one, trained on the same data")
    images: int = setting(1000, "test images; 0: all", low=0)
    train_images: int = setting(5000, "training images, for the probes; 0: all", low=0)
    output: str = setting("", "where results go, without suffix; by default RUN/equivariance")
    accelerator: str = setting("auto", "where to compute", choices=("auto", "cpu", "gpu", "tpu"))
    data_dir: str = setting("", "prepared TensorFlow Datasets; by default where the run had them")
    cache_dir: str = setting("", "data sets and compiled programs; by default as in the run")


DEFAULTS = Flags()


def main(flags: Flags) -> None:
    """Measure, write and draw, print the table."""
    if not flags.run:
        raise UserError("name a finished run with --run=DIR")
    folders = list(dict.fromkeys(f for f in (flags.run, flags.compare) if f))
    opened = [open_finished(folder, flags) for folder in folders]
    datasets = {one.setup.dataset.name for one in opened}
    if len(datasets) > 1:
        raise UserError(f"--compare={flags.compare}: trained on {' and '.join(sorted(datasets))}")
    output = Path(flags.output or Path(flags.run) / "equivariance")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output} can't be written: {error.strerror}") from error
    if not os.access(output.parent, os.W_OK):
        raise UserError(f"--output={output} can't be written")
    results, shown = [], {}
    for one in opened:
        result, paths = measure(one, flags)
        if result["name"] in shown:
            result["name"] += " (2)"
        results.append(result)
        shown[result["name"]] = paths
    about = {"program": "equivariance", "device_kind": opened[0].setup.devices[0].device_kind}
    about |= {"versions": versions(), "commit": commit(), "networks": results}
    write_json(output.with_name(f"{output.name}.json"), about)
    text = table(results)
    output.with_name(f"{output.name}.md").write_text(text + "\n")
    data = opened[0].setup.dataset
    draw(output, results, shown, data.name, data.class_names[data.test_labels[0]])
    print(text)
    print(*(f"{output}{end}" for end in (".json", ".md", "_paths.png", "_probes.png")), sep="\n")


def open_finished(folder: str, flags: Flags) -> saved_run.SavedRun:
    """A finished run of one of :data:`PROGRAMS`, with its data.

    Raises:
      UserError: it is not there, not finished, or of another program.
    """
    here = {name: getattr(flags, name) for name in ("accelerator", "data_dir", "cache_dir")}
    opened = saved_run.open_run(folder, **here, examples=True)
    if opened.setup.config.program not in PROGRAMS:
        raise UserError(
            f"{folder} is a run of {opened.setup.config.program}, not of {' or '.join(PROGRAMS)}"
        )
    if not (opened.folder / "summary.json").exists():
        raise UserError(f"{folder} has not finished; the command that began it continues")
    return opened


def measure(opened: saved_run.SavedRun, flags: Flags) -> tuple[dict, dict]:
    """All measures of one network, and what its picture of paths shows."""
    setup, data = opened.setup, opened.setup.dataset
    features = make_features(setup, opened.params)
    few, many = flags.images or None, flags.train_images or None
    test, train = (
        (data.test_images[:few], data.test_labels[:few]),
        (data.train_images[:many], data.train_labels[:many]),
    )
    summary = json.loads((opened.folder / "summary.json").read_text())
    routing = f", {setup.config.routing} routing" if setup.config.routing else ""
    result = {
        "name": f"{setup.config.model}{routing}, {opened.folder.name}",
        "command": summary["command"],
        "test_error": summary["test_error"],
        "images": len(test[1]),
        "train_images": len(train[1]),
        "paths": {},
    }
    shown = {}
    for name, most in AMOUNTS.items():
        amounts = np.linspace(-most, most, STEPS)
        paths = follow(features, *test, name, amounts)
        result["paths"][name] = of_paths(paths, amounts, test[1])
        shown[name] = amounts, typical(paths[test[1] == data.test_labels[0]])
    result["features"] = paths.shape[2]
    return result | probe_all(features, train, test), shown


def table(results: list[dict]) -> str:
    """Markdown."""
    heads = (
        "network",
        "transformation",
        "linear R²",
        "quadratic R²",
        "dimensions",
        "length",
        "direction",
        "probe R²",
        f"of {COMPONENTS} components",
    )
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    names = ("linear", "quadratic", "dimensions", "length", "direction")
    for result in results:
        for target, probe in result["probes"].items():
            path = result["paths"].get(target, {})
            cells = [path.get(name) for name in names] + [probe["pooled"]]
            cells.append(result.get("probes_of_components", {}).get(target, {}).get("pooled"))
            texts = ["" if cell is None else f"{cell:.2f}" for cell in cells]
            lines.append(f"| {result['name']} | {target} | {' | '.join(texts)} |")
    about = [
        f"{r['name']}: {r['features']} features, {r['test_error']:.2f}% test error, "
        f"{r['images']:,} test and {r['train_images']:,} training images, `{r['command']}`"
        for r in results
    ]
    notes = (
        "R² of paths is adjusted and averaged over images; dimensions is 1 / sum of squared "
        "shares; length and direction are root mean squares, 1 as between two images of a class; "
        "probes are one ridge regression a class, their squares pooled."
    )
    return "\n".join([*lines, "", notes, "", *(f"- {line}" for line in about)])


def draw(output: Path, results: list[dict], shown: dict, dataset: str, class_name: str) -> None:
    """Both pictures; the paths are those of one class."""
    title = f"{dataset}, {results[0]['images']:,} test images"
    path = output.with_name(f"{output.name}_paths.png")
    plots.plot_pose_paths(path, shown, f"Mean path of the features of class {class_name}, {title}")
    bars = {}
    for result in results:
        name = f"{result['name']}, {result['features']} features"
        bars[name] = {t: p["pooled"] for t, p in result["probes"].items()}
        if reduced := result.get("probes_of_components"):
            bars[f"{name}, their first {COMPONENTS} principal components"] = {
                t: p["pooled"] for t, p in reduced.items()
            }
    plots.plot_probes(
        output.with_name(f"{output.name}_probes.png"), bars, f"Linear probes, {title}"
    )


if __name__ == "__main__":
    run(main, DEFAULTS)
