"""Which weights a run reports, and when it ends, from rows of metrics and from NumPy."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import QUICK, metrics_rows, prepare_run, read_json, train

from capsjax.functional import Variables
from capsjax.models import PRESETS
from experiments.analysis import saved_run
from experiments.data import batching
from experiments.tasks import figures
from experiments.tasks.registry import find_program
from experiments.training import selection, vmapped_loop
from experiments.training.evaluate import make_evaluate
from experiments.training.setup import initial_state, random_keys

CONFIG = dataclasses.replace(
    QUICK,
    validation_fraction=0.2,
    train_examples=60,
    batch_size=8,
    log_every=2,
    routing_iterations=1,
)


@pytest.fixture(scope="module", autouse=True)
def fast():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "of_finished_run", lambda *_: [])
        yield


def rows_of(errors, losses=None):
    losses = losses or [1.0] * len(errors)
    found = [{"step": 0, "loss": 2.0}]
    for n, (error, loss) in enumerate(zip(errors, losses, strict=True), 1):
        found += [{"step": n, "loss": 2.0}]
        found += [{"step": n, "validation_error": error, "validation_loss": loss}]
    return found


@pytest.mark.parametrize(
    "errors, losses, best",
    [([3, 2, 4], None, 2), ([3, 2, 2], None, 2), ([3, 2, 2], [1, 2, 1], 3), ([5], None, 1)],
)
def test_the_best_validation(errors, losses, best):
    assert selection.best_row(rows_of(errors, losses))["step"] == best


def test_patience_counts_validations_after_the_best():
    for patience, errors, ended in [
        (2, [3, 2, 4], False),
        (2, [3, 2, 4, 5], True),
        (1, [3, 3], True),
        (1, [3], False),
        (0, [3, 4, 5, 6], False),
        (3, [], False),
    ]:
        config = dataclasses.replace(CONFIG, early_stopping=patience)
        assert selection.out_of_patience(config, rows_of(errors)) == ended, (patience, errors)


def test_chosen_variables():
    last, averaged, best = (
        CONFIG,
        *(dataclasses.replace(CONFIG, **change) for change in ({"ema": 0.9}, {"keep": "best"})),
    )
    earlier, current = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}

    def chosen(config, before, errors, validated=True):
        found = selection.choose(config, before, current, rows_of(errors), validated)
        return None if found is None else float(found["w"][0])

    assert chosen(last, None, [3, 4]) is None
    assert chosen(averaged, earlier, [3, 4]) == 1 and chosen(averaged, None, []) == 1
    assert chosen(best, earlier, [3, 4]) == 0 and chosen(best, earlier, [3, 2]) == 1
    assert chosen(best, None, [3], validated=False) == 1
    assert chosen(best, earlier, [3, 2], validated=False) == 0, "those were other weights"


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["uniform", "balanced"])
def test_statistics_of_averaged_weights_are_means_over_batches(sampler, monkeypatch):
    """Each from an update of zeros with momentum m, which gives 1 - m of those of the batch."""
    tiny = dataclasses.replace(PRESETS["capsnet_tiny"], conv_norm="batch", norm_momentum=0.75)
    monkeypatch.setitem(PRESETS, "capsnet_tiny", tiny)
    monkeypatch.setattr(selection, "STATISTICS_BATCHES", 3)
    config = dataclasses.replace(CONFIG, ema=0.9, sampler=sampler)
    setup = prepare_run(config)
    state = initial_state(setup)
    average = jax.tree.map(lambda x: x * 1.5, state.params)
    state = state._replace(average=average)
    got = selection.make_current(setup)(config, state)
    assert isinstance(got, Variables)
    jax.tree.map(np.testing.assert_array_equal, got.params, average)
    _, key = random_keys(config)
    labels = jnp.asarray(setup.dataset.train_labels)
    orders = batching.epoch_orders(key, 0, len(labels))
    if sampler == "balanced":
        orders = batching.balanced_orders(key, 0, labels, setup.dataset.num_classes)
    zeros = jax.tree.map(jnp.zeros_like, state.stats)
    apply = jax.jit(lambda images: setup.model.apply(Variables(average, zeros), images, train=True))
    total = jax.tree.map(lambda x: np.zeros(x.shape), zeros)
    source = jax.device_put(setup.pipeline.source)
    for n in range(3):
        batch = batching.make_batch(setup.pipeline.example, source, orders, key, n, batch_size=8)
        _, stats = apply(batch.images)
        total = jax.tree.map(lambda t, s: t + np.float64(s) / 0.25 / 3, total, stats)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), got.state, total)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """Trains with a rate that makes the last validation no good, and averaged weights."""
    config = dataclasses.replace(
        CONFIG,
        steps=12,
        validate_every=2,
        learning_rate=0.01,
        ema=0.8,
        keep="best",
        workdir=str(tmp_path_factory.mktemp("averaged") / "run"),
    )
    return config, train(config)


def test_the_reported_weights_are_saved_and_give_the_figures(averaged):
    config, summary = averaged
    rows = [row for row in metrics_rows(_folder(config)) if "validation_error" in row]
    best = min(rows, key=lambda row: (row["validation_error"], row["validation_loss"]))
    assert all({"validation_error_last", "validation_loss_last"} <= row.keys() for row in rows)
    assert summary["weights_step"] == best["step"]
    assert summary["validation_error"] == best["validation_error"]
    assert summary["validation_error_last"] == rows[-1]["validation_error_last"]
    assert (
        "averaged with decay 0.8" in summary["weights"] and "of 6 validations" in summary["weights"]
    )
    run = saved_run.open_run(config.workdir, accelerator="cpu", cache_dir="none", examples=True)
    evaluate = make_evaluate(run.setup)
    for split in ("validation", "test"):
        values = evaluate(run.variables, *run.setup.pipeline.held_out(split))
        error = 100 * (1 - values["accuracy"].mean())
        np.testing.assert_allclose(error, summary[f"{split}_error"], atol=1e-3)
    assert read_json(_folder(config) / "summary.json") == summary


def _folder(config):
    return pathlib.Path(config.workdir)


@pytest.mark.slow
def test_runs_together_report_what_they_report_alone(tmp_path):
    """With averaged weights, of the best validation."""
    base = dataclasses.replace(
        CONFIG, steps=4, validate_every=2, ema=0.5, keep="best", seed=4, optimizer="lamb"
    )

    def at(name, seed):
        return dataclasses.replace(base, seed=seed, workdir=str(tmp_path / name))

    train(at("alone", 5))
    vmapped_loop.run(find_program("mnist"), [at("a", 4), at("b", 5)])
    alone, together = (read_json(tmp_path / name / "summary.json") for name in ("alone", "b"))
    for name in ("test_error", "test_loss", "validation_loss", "test_loss_last", "weights_step"):
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-4)
    assert together["together"] == 2


def test_early_stopping_ends_a_run(tmp_path):
    config = dataclasses.replace(
        CONFIG,
        steps=40,
        validate_every=2,
        learning_rate=0.0,
        early_stopping=2,
        workdir=str(tmp_path / "run"),
    )
    summary = train(config)
    assert summary["steps"] == 6 and summary["stopped_early"]
    assert train(config)["steps"] == 6, "repeating the command does not continue it"


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["jit", "shard_map", "pmap"])
def test_averages_on_several_devices(parallel, tmp_path):
    config = dataclasses.replace(
        CONFIG, steps=2, ema=0.5, optimizer="lamb", clip_norm=1.0, weight_decay=0.1, max_shift=0
    )
    one = train(dataclasses.replace(config, workdir=str(tmp_path / "one")))
    many = dataclasses.replace(config, num_devices=4, parallel=parallel)
    several = train(dataclasses.replace(many, workdir=str(tmp_path / "several")))
    np.testing.assert_allclose(several["test_loss"], one["test_loss"], rtol=1e-4)
    np.testing.assert_allclose(several["test_loss_last"], one["test_loss_last"], rtol=1e-4)


def test_an_early_end_does_not_depend_on_the_spacing_of_validations(tmp_path):
    config = dataclasses.replace(
        CONFIG, steps=12, learning_rate=0.0, early_stopping=1, workdir=str(tmp_path / "run")
    )
    first = train(dataclasses.replace(config, validate_every=2))
    again = train(dataclasses.replace(config, validate_every=5))
    assert first["steps"] == again["steps"] == 4
