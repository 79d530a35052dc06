"""The equivariance of one network: its measures, their table and their figures."""

from pathlib import Path

import numpy as np

from experiments import plots
from experiments.analysis.feature_paths import (
    COMPONENTS,
    MAX_AMOUNTS,
    STEPS,
    compute_paths,
    make_features,
    mean_path,
    path_metrics,
    probe_all,
)
from experiments.analysis.saved_run import SavedRun
from experiments.data.batching import spread_rows
from experiments.files import read_json
from experiments.files.forms import SUMMARY, is_percentage
from experiments.plots.text_tables import markdown

REQUIRED = {"command": str, "test_error": is_percentage}  # of a summary
MEASURES = ("linear", "quadratic", "dimensions", "length", "direction")  # of paths, as in the table


def measure(opened: SavedRun, test_count: int, train_count: int) -> tuple[dict, dict]:
    """Returns all measures of one network, and the mean paths for the figure.

    Args:
      opened: a finished run, with its data.
      test_count: number of test images; 0: all.
      train_count: number of training images, for the probes; 0: all.
    """
    setup, data = opened.setup, opened.setup.dataset
    features = make_features(setup, opened.variables)
    test = sample(data.test_images, data.test_labels, test_count)
    train = sample(data.train_images, data.train_labels, train_count)
    summary = read_json(opened.folder / "summary.json", SUMMARY | REQUIRED)
    routing = f", {setup.config.routing} routing" if setup.config.routing else ""
    result = {
        "name": f"{setup.config.model}{routing}, {opened.folder.name}",
        "command": summary["command"],
        "test_error": summary["test_error"],
        "images": len(test[1]),
        "train_images": len(train[1]),
        "paths": {},
    }
    mean_paths = {}
    for name, largest in MAX_AMOUNTS.items():
        amounts = np.linspace(-largest, largest, STEPS)
        paths = compute_paths(features, *test, name, amounts)
        result["paths"][name] = path_metrics(paths, amounts, test[1])
        mean_paths[name] = amounts, mean_path(paths[test[1] == data.test_labels[0]])
    result["features"] = paths.shape[2]
    return result | probe_all(features, train, test), mean_paths


def sample(images: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels evenly from all, which may be sorted by class; 0 takes all."""
    rows = spread_rows(len(labels), count or len(labels))
    return images[rows], labels[rows]


def to_markdown(results: list[dict]) -> str:
    """Returns the measures of all networks as a table in Markdown, with notes."""
    headings = ["network", "transformation", "linear R²", "quadratic R²", "dimensions", "length"]
    headings += ["direction", "probe R²", f"of {COMPONENTS} components"]
    lines = []
    for result in results:
        for target, probe in result["probes"].items():
            path = result["paths"].get(target, {})
            cells = [path.get(name) for name in MEASURES] + [probe["pooled"]]
            cells.append(result.get("probes_of_components", {}).get(target, {}).get("pooled"))
            texts = ["" if cell is None else f"{cell:.2f}" for cell in cells]
            lines.append([result["name"], target, *texts])
    notes = (
        "R² of paths is adjusted and averaged over images; dimensions is 1 / sum of squared "
        "shares; length and direction are root mean squares, 1 as between two images of a class; "
        "probes are one ridge regression a class, their squares pooled."
    )
    networks = [
        f"- {r['name']}: {r['features']} features, {r['test_error']:.2f}% test error, "
        f"{r['images']:,} test and {r['train_images']:,} training images, `{r['command']}`"
        for r in results
    ]
    return "\n\n".join([markdown(headings, lines), notes, "\n".join(networks)])


def draw(
    output: Path, results: list[dict], mean_paths: dict, dataset: str, class_name: str
) -> None:
    """Draws both figures, OUTPUT_paths.png and OUTPUT_probes.png.

    Args:
      output: path without suffix.
      results: what :func:`measure` returns for each network.
      mean_paths: by name of the network, of one class.
      dataset: its name.
      class_name: of the class.
    """
    title = f"{dataset}, {results[0]['images']:,} test images"
    path = output.with_name(f"{output.name}_paths.png")
    about = f"Mean path of the features of class {class_name}, {title}"
    plots.plot_pose_paths(path, mean_paths, about)
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
