"""The command data_efficiency: the figure of a sweep over the number of training examples."""

import json

import matplotlib.image
import numpy as np
import pytest

from experiments import data_efficiency
from experiments.config import Config, UserError
from experiments.config.flags import parse_flags
from experiments.data_efficiency import Flags
from experiments.plots.response_curves import _data_efficiency_figure
from experiments.sweeps.studies import STUDIES


def rows():
    """Returns errors 90 / examples for capsnet and twice that for cnn, varied by 10% by seed."""
    return [
        {
            "train_examples": str(n),
            "model": model,
            "seed": seed,
            "test_error": factor * (0.9 + 0.1 * seed) / n,
        }
        for n in (10, 100, 1000)
        for model, factor in (("capsnet", 90), ("cnn", 180))
        for seed in range(3)
    ]


def test_lines_are_means_and_bars_ranges():
    axes = _data_efficiency_figure([row | {"network": row["model"]} for row in rows()]).axes[1]
    assert axes.get_xscale() == "log"
    for (line, _, (bars,)), factor in zip(axes.containers, (90, 180), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [10, 100, 1000])
        np.testing.assert_allclose(line.get_ydata(), factor / np.array([10, 100, 1000]))
        ends = [segment[:, 1] for segment in bars.get_segments()]
        np.testing.assert_allclose(
            ends, [(0.9 * factor / n, 1.1 * factor / n) for n in (10, 100, 1000)]
        )
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["capsnet", "cnn"]


def test_program(tmp_path, capsys):
    path = tmp_path / "few.json"
    path.write_text(json.dumps({"runs": rows()}))
    data_efficiency.main(Flags(sweep=str(path)))
    assert capsys.readouterr().out.strip() == str(tmp_path / "few_examples.png")
    assert matplotlib.image.imread(tmp_path / "few_examples.png").shape[1] == 1050


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{",
        "[]",
        "{}",
        '{"runs": [{"test_error": 1}]}',
        '{"runs": [{"test_error": 1, "train_examples": "x"}]}',
    ],
)
def test_other_files_are_refused(text, tmp_path):
    path = tmp_path / "few.json"
    if text:
        path.write_text(text)
    with pytest.raises(UserError, match="is not the JSON file of a sweep"):
        data_efficiency.main(Flags(sweep=str(path)))
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    "more, said",
    [
        ([rows()[0]], "2 runs of capsnet with 10 examples and seed 0"),
        ([rows()[0] | {"preset": f"p{n}"} for n in range(3)], "5 networks, more than 4 colours"),
    ],
)
def test_what_the_figure_cannot_tell_apart_is_refused(more, said, tmp_path):
    path = tmp_path / "few.json"
    path.write_text(json.dumps({"runs": rows() + more}))
    with pytest.raises(UserError, match=said):
        data_efficiency.main(Flags(sweep=str(path)))


def test_networks_are_distinguished_by_model_and_preset(tmp_path, monkeypatch):
    drawn = []

    def draw(path, rows, title):
        drawn.extend(rows)

    monkeypatch.setattr(data_efficiency.plots, "plot_data_efficiency", draw)
    path = tmp_path / "few.json"
    own = [row | {"preset": "small"} for row in rows()]
    del own[0]["model"]
    path.write_text(json.dumps({"runs": [*own, {"train_examples": 5, "test_error": 1}]}))
    data_efficiency.main(Flags(sweep=str(path)))
    found = [row["network"] for row in drawn[::3]]
    assert found == [*["capsnet small", "cnn small"] * 3, "capsnet"]


@pytest.mark.parametrize(
    "name, steps, counts",
    [
        ("data_efficiency", 2000, [10, 100, 1000, 10000, 57000]),
        ("data_efficiency_small", 200, [10, 100, 1000, 57000]),
        ("data_efficiency_digits", 200, [10, 30, 100, 300, 1000]),
    ],
)
def test_study_trains_all_runs_for_as_many_steps(name, steps, counts):
    """All runs take the same number of steps and are not evaluated after every short epoch."""
    study = STUDIES[name]
    made = [
        parse_flags(Config(), [f"--{n}={v}" for n, v in row.items()]) for row in study.rows.values()
    ]
    assert {(c.steps, c.log_every) for c in made} == {(steps, 100)} and len(study.seeds) == 3
    assert len({c.batch_size for c in made}) == 1
    assert len({(c.model, c.preset) for c in made}) == 3
    assert sorted({c.train_examples for c in made}) == counts and len(made) == 3 * len(counts)
