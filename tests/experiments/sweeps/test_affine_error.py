"""The column of errors on transformed test images, measured once per run."""

import types

import jax.numpy as jnp
import numpy as np

from experiments.analysis import saved_run
from experiments.data import affnist_images
from experiments.sweeps import affine_error, ledger
from experiments.sweeps.studies import STUDIES

STUDY = STUDIES["learned_coupling"]


def test_affine_error_column(tiny_run, tmp_path, monkeypatch):
    """Replaces all images by black ones, which are all classified the same."""
    shown = []

    def black(images):
        shown.append(images)
        return np.zeros_like(images)

    monkeypatch.setattr(affnist_images, "transform_images", black)
    config = types.SimpleNamespace(accelerator="cpu", data_dir="", cache_dir="")
    run = types.SimpleNamespace(key="a", workdir=tiny_run, config=config)
    failed = types.SimpleNamespace(key="b", workdir=tmp_path)
    entries, book = (
        {"a": {"key": "a", "summary": {"data_checksum": "c"}}, "b": {"key": "b", "error": ""}},
        (tmp_path / "ledger.jsonl"),
    )
    column, (note,) = affine_error.measure(STUDY, [run, failed], entries, book)
    opened = saved_run.open_run(str(tiny_run), accelerator="cpu", examples=True)
    test = opened.setup.dataset.test_images, opened.setup.dataset.test_labels
    np.testing.assert_array_equal(shown[0], test[0])
    scores = opened.setup.model.apply(opened.variables, jnp.zeros((1, 28, 28, 1))).scores
    wrong = 100 * np.mean(test[1] != int(np.argmax(scores)))
    assert column == {"a": {affine_error.HEADING: round(wrong, 4)}} and 50 < wrong < 100
    assert "rotation -20 to 20" in note
    # The ledger keeps it: nothing is measured again, and nobody else's column is made of it.
    again = affine_error.measure(STUDY, [run, failed], entries, book)
    assert again == (column, [note]) and len(shown) == 1
    kept = ledger.read(book)["a # affine"]["summary"]
    assert kept == {"affine_error": round(wrong, 4), "data_checksum": "c"}


def test_runs_of_another_machine_are_skipped(tmp_path):
    run = types.SimpleNamespace(key="a", workdir=tmp_path)
    column, (note,) = affine_error.measure(
        STUDY, [run], {"a": {"key": "a", "summary": {}}}, tmp_path / "ledger.jsonl"
    )
    assert column == {} and "1 runs have no checkpoint on this machine" in note


def test_studies_without_affine_error_add_no_column():
    assert affine_error.measure(STUDIES["table1"], [None], {}, None) == ({}, [])
