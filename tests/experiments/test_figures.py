"""The command figures: what the figures of a run show."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from helpers import read_json, train

from experiments import figures, plots
from experiments.analysis import saved_run
from experiments.config import UserError
from experiments.figures import Flags
from experiments.tasks import figures as run_figures
from experiments.tasks import routing_diagnostics
from experiments.tasks.registry import find_program
from experiments.training.metrics import read_rows

ALL = [
    "couplings",
    "logit_changes",
    "perturbations",
    "reconstructions",
    "routing",
    "training_curves",
]


@pytest.fixture(scope="module")
def opened(tiny_run):
    return saved_run.open_run(tiny_run, accelerator="cpu", examples=True)


def decoded(opened, pose, label):
    """Returns the image that the decoder draws, in float64, from one capsule ``[D]``."""
    weights = jax.tree.map(np.float64, jax.device_get(opened.variables["decoder"]))
    x = np.zeros((10, len(pose)))
    x[label] = pose
    layers = [weights["layers"][k] for k in sorted(weights["layers"])]
    x = x.reshape(-1)
    for layer in layers[:-1]:
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return 1 / (1 + np.exp(-(x @ layers[-1]["kernel"] + layers[-1]["bias"])))


def test_dimensions_come_in_the_order_of_their_effect(opened):
    """Compares with a decoder in NumPy, float64, one capsule at a time."""
    changed = run_figures.perturbed(opened.setup, opened.variables, 5, 3)
    (pose,) = run_figures.encode(opened.setup, opened.variables, np.array([5])).pose
    before = decoded(opened, np.float64(pose[3]), 3)
    effects = np.zeros(16)
    for dim in range(16):
        for change in run_figures.CHANGES[run_figures.CHANGES != 0]:
            after = np.float64(pose[3])
            after[dim] += change
            effects[dim] += np.mean((decoded(opened, after, 3) - before) ** 2) / 10
    assert (changed.example, changed.label) == (5, 3)
    np.testing.assert_allclose(changed.effects, effects[changed.dims], rtol=1e-3)
    assert changed.effects == sorted(changed.effects, reverse=True) and changed.effects[-1] > 0
    assert sorted(changed.dims) == list(range(16)) and changed.dims != list(range(16))
    assert changed.images.shape == (16, 11, 28, 28, 1)
    last = np.float64(pose[3])
    last[changed.dims[0]] += 0.25
    np.testing.assert_allclose(
        changed.images[0, -1].reshape(-1), decoded(opened, last, 3), atol=1e-5
    )


def test_columns_are_correct_examples_before_wrong_ones(opened):
    labels = opened.setup.dataset.test_labels
    _, _, activation, pose = (
        np.concatenate(parts)
        for parts in zip(
            *(
                run_figures.encode(opened.setup, opened.variables, np.arange(n, n + 16))
                for n in (0, 16, 32)
            )
        )
    )
    correct = np.argmax(activation, axis=1) == labels[:48]
    right, wrong = np.flatnonzero(correct)[:8], np.flatnonzero(~correct)[:4]
    columns = run_figures.reconstruction_columns(opened.setup, opened.variables, correct)
    rows = np.concatenate([right, np.repeat(wrong, 2)])
    assert [column.label for column in columns] == labels[rows].tolist()
    targets = [column.target for column in columns]
    assert targets[: len(right)] == labels[right].tolist()
    for n, row in enumerate(wrong):
        pair = targets[len(right) + 2 * n : len(right) + 2 * n + 2]
        assert pair == [labels[row], np.argmax(activation[row])]
    for row, column in zip(rows, columns, strict=True):
        image = np.float64(opened.setup.dataset.test_images[row]) / 255
        np.testing.assert_allclose(column.image, image, atol=1e-6)
        want = decoded(opened, np.float64(pose[row, column.target]), column.target)
        np.testing.assert_allclose(column.reconstruction.reshape(-1), want, atol=1e-5)


def test_first_correct_example_is_selected():
    correct = np.array([False, True, False, True])
    assert run_figures.first_correct(correct) == 1
    assert run_figures.first_correct(correct, np.array([True, False, True, True])) == 3
    assert run_figures.first_correct(correct, np.array([False, False, True, False])) == 2
    assert run_figures.first_correct(np.zeros(4, bool)) == 0


def test_figures_compile_once(opened, monkeypatch):
    traced = []
    real = opened.setup.model.apply

    def apply(*args, **kwargs):
        traced.append(kwargs["method"])
        return real(*args, **kwargs)

    setup = opened.setup._replace(model=opened.setup.model._replace(apply=apply))
    monkeypatch.setattr(routing_diagnostics, "IMAGES", 8)
    for example in (3, 4):
        changed = run_figures.perturbed(setup, opened.variables, example, 0)
        accuracy = np.float32(np.arange(360) % (example + 2) > 0)
        found = list(run_figures.of_decoder(setup, opened.variables, {"accuracy": accuracy}))
        assert len(found) == 2 and run_figures.of_class(setup, changed)
        drawn = routing_diagnostics.figures(setup, opened.variables, [{"epoch": 1.0}], "")
        assert len(list(drawn)) == 3
    decodings = 2  # of 16 examples and of all changes
    assert sorted(traced) == [*["decode"] * decodings, "encode", "encode", "votes"]


def test_all_figures_in_two_formats(tiny_run, tmp_path, capsys):
    output = tmp_path / "out"
    figures.main(
        Flags(
            run=str(tiny_run),
            format="png,pdf",
            class_="7",
            image=2,
            output=str(output),
            accelerator="cpu",
        )
    )
    out = capsys.readouterr().out.splitlines()
    effects = [float(line.split()[-1]) for line in out if line.startswith("dim")]
    assert len(effects) == 16 and effects == sorted(effects, reverse=True)
    want = [output / f"{name}.{kind}" for name in ALL for kind in ("pdf", "png")]
    assert sorted(output.iterdir()) == want and sorted(out[16:]) == list(map(str, want))
    assert all(path.stat().st_size > 5000 for path in want)


def test_a_summary_of_other_weights_is_not_drawn(tiny_run, tmp_path, monkeypatch):
    drawn, later = [], [0]
    monkeypatch.setattr(figures.figures, "save", lambda found, output, kinds: [])
    real = saved_run.open_run

    def open_run(*places, **options):
        opened = real(*places, **options)
        with_figures = {"summary_figures": lambda *_: drawn.append(1) or ()}
        task = dataclasses.replace(opened.setup.task, **with_figures)
        program = opened.setup.program._replace(task=task)
        step = opened.step + later[0]
        return opened._replace(setup=opened.setup._replace(program=program), step=step)

    monkeypatch.setattr(saved_run, "open_run", open_run)
    for later[0] in (0, 1):
        figures.main(Flags(run=str(tiny_run), output=str(tmp_path / "x"), accelerator="cpu"))
        assert len(drawn) == 1


def shown(monkeypatch, name):
    """Records the arguments, after the path, with which a figure would be drawn."""
    calls = []
    monkeypatch.setattr(plots, f"plot_{name}", lambda path, *arguments: calls.append(arguments))
    return calls


def test_logit_changes_are_measured_if_training_did_not(opened, monkeypatch):
    rows = [{"step": 1, "epoch": 0.5, "loss": 1.0}, {"step": 2, "epoch": 1.0, "loss": 1.0}]
    setup = opened.setup
    images = setup.dataset.test_images[[k * 360 // 128 for k in range(128)]]
    d = routing_diagnostics.diagnostics(setup, opened.variables, images)

    def changes(rows):
        for name, _, arguments in routing_diagnostics.figures(setup, opened.variables, rows, "T"):
            if name == "logit_changes":
                return arguments

    (row,), title = changes(rows)
    assert title == "T; measured after training alone" and row["epoch"] == 1.0
    np.testing.assert_allclose(row["logit_change"], d.logit_change, rtol=1e-6)
    measured = [*rows, {"step": 2, "epoch": 1.0, "logit_change": [0.5, 0.25]}]
    assert changes(measured) == (measured[2:], "T")


def test_several_runs_are_named_by_what_differs(tiny_run, tmp_path, monkeypatch):
    others = [tmp_path / name for name in ("one", "two")]
    for iterations, other in enumerate(others, 1):
        other.mkdir()
        config = read_json(tiny_run / "config.json")
        config |= {"routing_iterations": iterations, "data_dir": "/elsewhere"}
        (other / "config.json").write_text(json.dumps(config))
        shutil.copy(tiny_run / "metrics.jsonl", other)
    calls = shown(monkeypatch, "losses")
    figures.main(Flags(run=f"{tiny_run},{others[0]},{others[1]}", output=str(tmp_path)))
    ((runs_, title),) = calls
    assert list(runs_) == [f"routing_iterations={n}" for n in (3, 1, 2)]
    assert title == "digits, capsnet"
    assert runs_["routing_iterations=1"] == read_rows(tiny_run / "metrics.jsonl")
    shutil.copytree(others[0], tmp_path / "three")
    figures.main(Flags(run=f"{others[0]},{tmp_path / 'three'}", output=str(tmp_path)))
    assert list(calls[1][0]) == [str(others[0]), str(tmp_path / "three")]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"run": ""}, "give a run"),
        ({"run": "a,"}, "give a run, or several"),
        ({"run": "a,a"}, "several different ones"),
        ({"format": "png,jpg"}, "--format=png,jpg: png, pdf, or png,pdf"),
        ({"format": ""}, "--format="),
        ({"class_": "10"}, "--class=10: the classes are 0, 1, .*or 0 to 9"),
        ({"class_": "seven"}, "--class=seven"),
        ({"image": 360}, "--image=360: there are 360 test images"),
        ({"run": "a,b"}, "a: no such folder"),
        ({"run": "a,b", "image": 3}, "figures of one run"),
        ({"run": "a,b", "class_": "7"}, "figures of one run"),
        ({"run": "~/a,~/b"}, "^[^~]*/a: no such folder"),
    ],
    ids=lambda x: str(x),
)
def test_user_errors(changes, message, tiny_run, tmp_path):
    flags = dataclasses.replace(Flags(run=str(tiny_run), output=str(tmp_path / "x")), **changes)
    with pytest.raises(UserError, match=message):
        figures.main(flags)
    assert not (tmp_path / "x").exists()


def test_classes_have_numbers_and_names():
    names = ("cat", "dog", "7")
    assert [figures.number(name, names) for name in ("", "dog", "1", "7")] == [None, 1, 1, 2]


def test_runs_of_pairs_have_figures(tmp_path, capsys):
    defaults = find_program("multimnist").defaults
    here = {"num_devices": 1, "cache_dir": "none", "accelerator": "cpu"}
    changes = {"dataset": "digits", "preset": "tiny", "steps": 2, "batch_size": 16}
    folder = tmp_path / "run"
    train(dataclasses.replace(defaults, test_pairs=16, workdir=str(folder), **here, **changes))
    drawn = sorted(path.stem for path in (folder / "figures").iterdir())
    shutil.rmtree(folder / "figures")
    (folder / "metrics.jsonl").unlink()  # which may be lost
    figures.main(Flags(run=str(folder), accelerator="cpu", cache_dir="none"))
    again = sorted(path.stem for path in (folder / "figures").iterdir())
    assert "segmentation" in drawn
    # Those of training need metrics.jsonl; those of routing need no --diagnostics here.
    assert set(drawn) - {"training_curves"} <= set(again)
    assert {"couplings", "logit_changes", "routing"} <= set(again)
