"""The command predict: classes of images in files."""

import csv
import dataclasses
import io
import json
import subprocess
import sys
import types
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest
from helpers import ROOT, TINY, load_digits, prepare_run, train
from picture_files import BAD, of, write, written

import capsjax
from capsjax import functional
from experiments import predict
from experiments.analysis import classify_images, saved_run
from experiments.analysis.classify_images import Classification
from experiments.analysis.run_network import classifier_of
from experiments.config import UserError
from experiments.data import datasets, image_files, image_folder
from experiments.predict import Flags
from experiments.tasks.registry import find_program
from experiments.training.setup import initial_state


@pytest.fixture
def folder(tmp_path, ten_digits):
    """Returns a folder with two good images, one of them a negative, and three bad ones."""
    here = tmp_path / "folder"
    here.mkdir()
    one, two = (np.uint8(np.round(255 * ten_digits[k, ..., 0])) for k in (3, 8))
    written(here, of(one), "a.png")
    written(here, of(255 - two).convert("RGB"), "b.png")
    for name in ("empty.png", "words.png", "cut.jpg"):
        write(here, name, BAD[name][0](tmp_path))
    return here


def test_unreadable_images_of_a_folder_are_skipped(tiny_run, folder, ten_digits, tmp_path):
    output = tmp_path / "out" / "p.png"
    command = [
        sys.executable,
        "-W",
        "error::UserWarning",
        "-m",
        "experiments.predict",
        str(folder),
        f"--run={tiny_run}",
        f"--output={output}",
        "--accelerator=cpu",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith(str(folder))]
    assert [Path(line.split(":")[0]).name for line in told] == ["cut.jpg", "empty.png", "words.png"]
    assert "0.00 to 0.00 (0 is black" in done.stderr
    head, a, b = done.stdout.splitlines()
    assert "length" in head and a.endswith("as it is, pad") and b.endswith("inverted, pad")

    run = saved_run.open_run(tiny_run)
    lengths = jax.jit(run.setup.model.apply)(run.variables, ten_digits[[3, 8]]).scores
    with open(output.with_suffix(".csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == ["a.png", "b.png"]
    for row, length in zip(rows, np.asarray(lengths), strict=True):
        order = np.argsort(-length)
        assert [row["class"], row["second"]] == [str(k) for k in order[:2]]
        got = float(row["length"]), float(row["second_length"])
        np.testing.assert_allclose(got, length[order[:2]], rtol=1e-3)
        assert row["confident"] == str(int(length.max() >= 0.5))
    assert [row["inverted"] for row in rows] == ["0", "1"]
    assert matplotlib.image.imread(output).shape[1] == 1050


def call(run, *paths, **changes):
    predict.main(Flags(run=str(run), **changes), *map(str, paths))


def test_flags_decide_how_an_image_is_taken(tiny_run, folder, tmp_path, capsys, ten_digits):
    taken = {}
    for invert, fit in (("yes", "pad"), ("no", "digit"), ("auto", "auto")):
        output = tmp_path / f"{invert}.pdf"
        call(tiny_run, folder / "a.png", invert=invert, fit=fit, output=str(output))
        taken[invert] = capsys.readouterr().out.splitlines()[1]
        assert output.read_bytes().startswith(b"%PDF")
        assert not output.with_suffix(".csv").exists(), "no folder was given"
    assert taken["yes"].endswith("inverted, pad") and taken["no"].endswith("as it is, digit")
    assert taken["auto"].endswith("as it is, pad")

    run = saved_run.open_run(tiny_run)
    for invert, fit, want in (
        ("yes", "pad", 1 - ten_digits[3]),
        ("no", "pad", ten_digits[3]),
        ("no", "digit", image_files.centre_digit(ten_digits[3], (28, 28))),
    ):
        (seen,) = classify_images.prepare_images(
            classifier_of(run), [folder / "a.png"], invert, fit
        )
        assert seen.pixels.dtype == np.uint8  # the nearest level; ties are float32's to break
        assert np.abs(seen.pixels - 255 * np.float64(want)).max() <= 0.5 + 1e-4


def test_mnist_digits_are_centred_unless_they_have_the_size(tiny_run, folder, tmp_path, ten_digits):
    opened = saved_run.open_run(tiny_run)
    config = dataclasses.replace(opened.setup.config, dataset="mnist")
    run = opened._replace(setup=opened.setup._replace(config=config))
    large = written(tmp_path, of(np.uint8(255 * np.kron(ten_digits[3, ..., 0], np.ones((3, 3))))))
    found = classify_images.prepare_images(
        classifier_of(run), [large, folder / "a.png"], "auto", "auto"
    )
    assert [seen.fit for seen in found] == ["digit", "pad"]
    (seen,) = classify_images.prepare_images(classifier_of(opened), [large], "auto", "auto")
    assert seen.fit == "pad"


def test_predictions_below_one_half_are_not_confident(ten_digits):
    sure, unsure = (
        Classification(("cat", "dog"), (score, 0.25), ten_digits[0], None) for score in (0.5, 0.499)
    )
    assert predict.describe(sure) == ("cat 0.500", "dog 0.250")
    assert predict.describe(unsure) == ("none with confidence (cat 0.499)", "dog 0.250")


@pytest.mark.slow
def test_cnn_predicts_probabilities(folder, ten_digits, tmp_path, capsys):
    config = dataclasses.replace(TINY, model="cnn", steps=1, workdir=str(tmp_path / "run"))
    train(config)
    call(tmp_path / "run", folder / "a.png")
    out = capsys.readouterr().out.splitlines()
    assert "class, probability" in out[-2]
    run = saved_run.open_run(tmp_path / "run")
    logits = np.float64(run.setup.model.apply(run.variables, ten_digits[[3]]).scores[0])
    likely = np.exp(logits) / np.exp(logits).sum()
    images = classify_images.prepare_images(classifier_of(run), [folder / "a.png"], "no", "pad")
    (found,) = classify_images.classify(classifier_of(run), images)
    np.testing.assert_allclose(found.scores, np.sort(likely)[:-3:-1], rtol=1e-5)
    assert found.names == tuple(str(k) for k in np.argsort(-likely)[:2])
    assert found.reconstruction is None
    assert (tmp_path / "run" / "predictions.png").exists()


def short(program, folder, **changes):
    """Returns the configuration of a step of a tiny network of a program."""
    common = {"dataset": "digits", "preset": "tiny", "steps": 1, "num_devices": 1, "batch_size": 8}
    common |= {"cache_dir": "none", "accelerator": "cpu", "validation_fraction": 0.0}
    if program == "affnist":
        common |= {"stop_at": 0.0, "curve_images": 1}
    changes = common | changes | {"workdir": str(folder)}
    return dataclasses.replace(find_program(program).defaults, **changes)


def untrained(program, folder, **changes):
    """Returns a saved run as it is opened without its data, with initial variables."""
    config = short(program, folder, **changes)
    facts = datasets.dataset_facts(load_digits())
    setup = prepare_run(config, saved_run._without_examples(config, facts))
    return saved_run.SavedRun(folder, setup, facts, 0, initial_state(setup).variables)


def test_pairs_name_both_digits(folder, ten_digits, tmp_path, capsys):
    run = untrained("multimnist", tmp_path)
    pair = np.zeros((36, 36), np.uint8)
    pair[2:30, 2:30] = np.uint8(255 * ten_digits[3, ..., 0])
    pair[8:36, 8:36] = np.maximum(pair[8:36, 8:36], np.uint8(255 * ten_digits[8, ..., 0]))
    file = written(tmp_path, of(pair), "pair.png")
    (image,) = classify_images.prepare_images(classifier_of(run), [file], "no", "auto")
    np.testing.assert_array_equal(image.pixels[..., 0], pair)
    (found,) = classify_images.classify(classifier_of(run), [image])
    x = np.float32(pair)[None, ..., None] / 255
    out = functional.create_model(run.setup.model_config).apply(run.variables, x, method="encode")
    order = np.argsort(-np.asarray(out.activation[0]), kind="stable")
    assert found.names == tuple(str(k) for k in order[:3]) and found.named == 2
    each = [
        run.setup.model.apply(
            run.variables, out.pose, np.eye(10, dtype=np.float32)[[k]], method="decode"
        )
        for k in order[:2]
    ]
    want = np.minimum(np.asarray(each[0][0]) + np.asarray(each[1][0]), 1)
    np.testing.assert_allclose(found.reconstruction, want, atol=1e-5)
    both = " + ".join(f"{k} {score:.3f}" for k, score in zip(order, found.scores[:2]))
    first, third = predict.describe(found)
    assert both in first and third == f"{order[2]} {found.scores[2]:.3f}"
    sure = found._replace(scores=(0.9, 0.5, 0.4))
    assert sure.confident and not sure._replace(scores=(0.9, 0.4, 0.3)).confident


def test_ensembles_average_their_scores(folder, ten_digits, tmp_path):
    run = untrained("cifar10", tmp_path, ensemble=2)
    images = classify_images.prepare_images(classifier_of(run), [folder / "a.png"], "no", "pad")
    (found,) = classify_images.classify(classifier_of(run), images)
    one = functional.create_model(run.setup.model_config)
    x = np.asarray(run.setup.pipeline.input(images[0].pixels))[None]
    members = [
        one.apply(jax.tree.map(lambda v, n=n: v[n], run.variables), x).scores[0] for n in (0, 1)
    ]
    mean = np.mean(np.float64(members), axis=0)
    np.testing.assert_allclose([found.every[str(k)] for k in range(10)], mean, rtol=1e-4)
    assert found.names[0] == str(mean.argmax())


@pytest.mark.slow
@pytest.mark.parametrize(
    "program, changes",
    [
        ("affnist", {}),
        ("affnist", {"model": "cnn"}),
        ("multimnist", {"test_pairs": 8}),
        ("multimnist", {"test_pairs": 8, "model": "cnn"}),
        ("cifar10", {"ensemble": 2}),
    ],
)
def test_every_kind_of_run_classifies_files(folder, tmp_path, capsys, program, changes):
    train(short(program, tmp_path / "run", **changes))
    capsys.readouterr()
    call(tmp_path / "run", folder / "a.png", json=True)
    (found,) = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert len(found["classes"]) == (2 if program == "multimnist" else 1)
    assert all(name in capsys.readouterr().out for name in found["classes"][:1])


def test_standard_input_and_json(tiny_run, folder, tmp_path, monkeypatch, capsys):
    content = (folder / "a.png").read_bytes()
    stdin = types.SimpleNamespace(buffer=io.BytesIO(content))
    monkeypatch.setattr(sys, "stdin", stdin)
    call(tiny_run, "-", folder / "a.png", json=True, output=str(tmp_path / "p.png"))
    piped, read = json.loads((tmp_path / "p.json").read_text())
    assert (piped.pop("file"), read.pop("file")) == ("-", str(folder / "a.png"))
    assert piped == read and len(read["scores"]) == 10
    best = max(read["scores"], key=read["scores"].get)
    assert read["classes"] == [best] and read["measure"] == "length"
    with pytest.raises(UserError, match="holds one image"):
        call(tiny_run, "-", "-")
    for closed in (types.SimpleNamespace(buffer=io.BytesIO(b"hello")), None):
        monkeypatch.setattr(sys, "stdin", closed)
        with pytest.raises(UserError, match="no image could be read"):
            call(tiny_run, "-")


def test_output_goes_to_a_new_folder(tiny_run, folder, tmp_path):
    call(tiny_run, folder / "a.png", json=True, output=str(tmp_path / "new" / "p.png"))
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["p.json", "p.png"]


def test_images_of_a_folder_are_fitted_as_in_training(tiny_run, tmp_path):
    opened = saved_run.open_run(tiny_run)
    wide = np.random.default_rng(0).integers(0, 256, (30, 60), np.uint8)
    file = written(tmp_path, of(wide), "wide.png")
    for resize in ("pad", "crop", "stretch"):
        config = dataclasses.replace(opened.setup.config, dataset="x/", resize=resize)
        run = opened._replace(setup=opened.setup._replace(config=config))
        (seen,) = classify_images.prepare_images(classifier_of(run), [file], "no", "auto")
        for split in ("train/a", "train/b", "test/a", "test/b"):
            (tmp_path / resize / split).mkdir(parents=True)
            written(tmp_path / resize / split, of(wide), "wide.png")
        folder = str(tmp_path / resize)
        options = image_folder.ImageOptions(image_size="28,28", resize=resize)
        dataset = datasets.load(folder, cache_dir="none", options=options)
        np.testing.assert_array_equal(dataset.test_images[0], seen.pixels)
        assert seen.fit == resize


def test_stereo_pairs_are_read_from_two_files(tmp_path, capsys):
    rng = np.random.default_rng(0)
    pair = rng.integers(0, 256, (48, 48, 2), np.uint8)
    left, right = (written(tmp_path, of(pair[..., k]), f"{'lr'[k]}.png") for k in (0, 1))
    small = written(tmp_path, of(pair[:40, :, 0]), "small.png")
    paths = [f"{left},{right}", f"{right},{left}"]
    output = tmp_path / "p.png"
    predict.main(Flags(model="smallnorb_matrix", json=True, output=str(output)), *paths)
    model, variables, labels, preprocessing = capsjax.load_pretrained("smallnorb_matrix")
    seen = preprocessing(np.stack([pair, pair[..., ::-1]]))
    exact = np.asarray(model.apply(variables, seen).scores)
    for found, path, scores in zip(
        json.loads(output.with_suffix(".json").read_text()), paths, exact
    ):
        assert found["file"] == path
        np.testing.assert_allclose([found["scores"][n] for n in labels], scores, atol=1e-5)
    assert abs(exact[0] - exact[1]).max() > 1e-3  # the order counts
    capsys.readouterr()
    classifier = classify_images.open_pretrained("smallnorb_matrix")
    files = [tmp_path / "l.png,r.png", Path(f"{left},{small}")]
    assert not classify_images.prepare_images(classifier, files, "no", "auto")
    assert "the channels have different sizes" in capsys.readouterr().err
    for few in (str(left), "-", f"{left},{right},{left}"):
        with pytest.raises(UserError, match="give the 2 files of its channels, joined by commas"):
            classify_images.prepare_images(classifier, [Path(few)], "no", "auto")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "give images"),
        (("--run={run}",), "give images"),
        (("{folder}/a.png", "--run={run}", "--model=x"), "not both"),
        (("{folder}/a.png", "--model={run}x"), "neither a folder nor a packaged network"),
        (("{folder}/a.png", "--model={run}"), "config.json is not understood"),
        (("{folder}/a.png", "--model={run}", "--json=1"), "needs --output"),
        (("{folder}/a.png", "--run={run}x"), "no such folder, did you mean {run}?"),
        (("{folder}/a.png", "--run={run}", "--output=p.jpg"), "must end in .png or .pdf"),
        (("--run={run}", "{run}"), "contains no images"),
    ],
)
def test_user_errors(arguments, message, tiny_run, folder):
    places = {"run": str(tiny_run), "folder": str(folder)}
    given = [argument.format(**places) for argument in arguments]
    flags = dict(a[2:].split("=") for a in given if a.startswith("--"))
    with pytest.raises(UserError) as error:
        predict.main(Flags(**flags), *(a for a in given if not a.startswith("--")))
    assert message.format(**places) in str(error.value)


def test_unwritable_figure_is_an_error(tiny_run, folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output=.*can't be written"):
        call(tiny_run, folder / "a.png", output=str(tmp_path / "file" / "p.png"))


def test_only_unreadable_images_are_an_error_and_give_no_figure(tiny_run, folder, tmp_path):
    with pytest.raises(UserError, match="no image could be read"):
        call(tiny_run, folder / "empty.png", output=str(tmp_path / "p.png"))
    assert not (tmp_path / "p.png").exists()
