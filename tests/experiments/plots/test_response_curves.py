"""The figure of response curves, from the summaries of runs."""

import matplotlib.image
import numpy as np

from experiments import plots
from experiments.plots.response_curves import _responses_figure
from experiments.tasks import response_curves


def summary(model="capsnet", name="synthetic affNIST", **changes):
    curves = {
        key: {"values": list(values), "accuracy": [100 - abs(v) for v in values]}
        for key, values in response_curves.CURVES.items()
    }
    return {
        "model": model,
        "routing": "dynamic" if model == "capsnet" else None,
        "test_error": 0.77,
        "affnist_error": 21.0,
        "affnist": name,
        "dataset": "mnist",
        "response_images": 1000,
        "response": curves,
    } | changes


def test_response_curves_figure_shows_the_curves_of_summaries(tmp_path):
    both = {"a": summary(), "b": summary("cnn", "official affNIST", affnist_error=34.0)}
    curves, ranges, title = response_curves.plot_arguments(both, 6)
    assert list(curves) == [
        "capsnet, dynamic: 99.23% translated, 79.00% synthetic affNIST",
        "cnn: 99.23% translated, 66.00% official affNIST",
    ]
    assert title == "mnist: accuracy under one transformation, 1,000 test digits"
    assert ranges["scale"] == (0.8, 1.2) and ranges["shift_x"] == (-6, 6)
    plots.plot_responses(tmp_path / "r.png", curves, ranges, title)
    assert matplotlib.image.imread(tmp_path / "r.png").shape[1] == 1050
    figure = _responses_figure(curves, ranges, title)
    rotation = figure.axes[1]
    assert rotation.get_xlabel() == "" and rotation.get_title(loc="left") == "rotation, degrees"
    np.testing.assert_array_equal(
        rotation.lines[0].get_ydata(), curves[list(curves)[0]]["rotation"]["accuracy"]
    )
    twice, *_ = response_curves.plot_arguments({"a": summary(), "b": summary()}, None)
    assert len(twice) == 2 and list(twice)[1].endswith(", b")
