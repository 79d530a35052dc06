"""Runs trained together equal the same runs trained alone."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import keep_rounding_small, prepare_run, read_json, train

from experiments import mnist
from experiments.config import Config, UserError, names_of, resolve
from experiments.tasks import figures
from experiments.training import vmapped_loop
from experiments.training.checkpoints import Checkpoints
from experiments.training.metrics import read_rows
from experiments.training.setup import initial_state
from experiments.training.workdir import write_config

BASE = dataclasses.replace(
    mnist.PROGRAM.defaults,
    seed=4,
    dataset="digits",
    preset="tiny",
    steps=5,
    batch_size=8,
    log_every=2,
    validate_every=3,
    accelerator="cpu",
    num_devices=1,
    cache_dir="none",
    routing_iterations=2,
)
OTHER = {
    "seed": 5,
    "learning_rate": 0.003,
    "decay_rate": 0.5,
    "decay_steps": 3,
    "learning_rate_floor": 0.002,
    "margin_weight": "official",
    "reconstruction_weight": 0.005,
}


@pytest.fixture(scope="module", autouse=True)
def fast():
    """Draws no figures, and keeps rounding errors small.

    tests/capsjax/test_conv.py has the other form of convolutions mapped over kernels.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "of_finished_run", lambda *_: [])
        keep_rounding_small(patch)
        yield


def parameters(config):
    setup = prepare_run(config)
    with Checkpoints(pathlib.Path(config.workdir)) as checkpoints:
        return checkpoints.restore(initial_state(setup)).params


def at(folder, **changes):
    return dataclasses.replace(BASE, workdir=str(folder), **changes)


@pytest.fixture(scope="module", params=["one by one", "vmap"])
def finished(request, tmp_path_factory, fast):
    """Trains two runs alone and together, as on a CPU and as on an accelerator."""
    folder = tmp_path_factory.mktemp("vmapped")
    alone = [at(folder / "a0"), at(folder / "a1", **OTHER)]
    together = [at(folder / "t0"), at(folder / "t1", **OTHER)]
    for config in alone:
        train(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vmapped_loop, "ONE_BY_ONE", ("cpu",) if request.param == "one by one" else ())
        vmapped_loop.run(mnist.PROGRAM, together)
    return folder, alone, together


def test_cases_differ_in_every_numeric_setting():
    assert set(OTHER) == {"seed", *names_of(Config, "numeric")}


def test_metrics_and_parameters_are_those_of_runs_alone(finished):
    folder, alone, together = finished
    for n in range(2):
        want, got = (read_rows(folder / f"{run}{n}" / "metrics.jsonl") for run in "at")
        assert [row["step"] for row in got] == [row["step"] for row in want] == [2, 3, 3, 4, 5, 5]
        for a, b in zip(want, got):
            assert a.keys() == b.keys()
            for name in a.keys() - {"seconds", "images_per_second"}:
                np.testing.assert_allclose(b[name], a[name], rtol=2e-4, err_msg=name)
        want, got = parameters(alone[n]), parameters(together[n])
        start = initial_state(prepare_run(alone[n])).params
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
        moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), want, start)
        assert max(jax.tree.leaves(moved)) > 1e-3, "the tolerance would hide a step"
    first, second = (parameters(config)["conv"]["kernel"] for config in together)
    assert abs(np.asarray(first - second)).max() > 1e-2


def test_summaries_are_those_of_runs_alone(finished):
    folder, *_ = finished
    for n in range(2):
        want, got = (read_json(folder / f"{run}{n}" / "summary.json") for run in "at")
        differ = {name for name in want if want[name] != got[name]}
        assert (want["together"], got["together"]) == (1, 2)
        assert differ <= {
            "together",
            "test_loss",
            "validation_loss",
            "images_per_second",
            "training_seconds",
            "wall_seconds",
            "peak_memory_mb",
        }
        np.testing.assert_allclose(got["test_loss"], want["test_loss"], rtol=2e-4)
    first, second = (read_json(folder / run / "summary.json") for run in ("t0", "t1"))
    assert first["test_correct"] != second["test_correct"]


def test_finished_run_of_a_group_is_not_continued(finished, capsys):
    folder, _, together = finished
    before = read_rows(folder / "t1" / "metrics.jsonl")
    train(together[1])
    assert "after step 5" in capsys.readouterr().err
    assert read_rows(folder / "t1" / "metrics.jsonl") == before


def test_failed_run_does_not_stop_the_others(tmp_path):
    bad = at(tmp_path / "bad", learning_rate=1e30)
    good = at(tmp_path / "good")
    vmapped_loop.run(mnist.PROGRAM, [bad, good])
    assert "the loss is nan" in (tmp_path / "bad" / "error.txt").read_text()
    assert not (tmp_path / "bad" / "summary.json").exists()
    assert read_json(tmp_path / "good" / "summary.json")["steps"] == 5


@pytest.mark.slow
def test_runs_at_the_same_step_resume_together(tmp_path, capsys):
    short = [at(tmp_path / name, steps=2, seed=n) for n, name in enumerate("ab")]
    vmapped_loop.run(mnist.PROGRAM, short)
    longer = [dataclasses.replace(config, steps=4) for config in short]
    capsys.readouterr()
    vmapped_loop.run(mnist.PROGRAM, longer)
    assert "2 runs together" in capsys.readouterr().err
    assert [row["step"] for row in read_rows(tmp_path / "a" / "metrics.jsonl")] == [
        2,
        2,
        3,
        3,
        4,
        4,
    ]
    train(at(tmp_path / "a", steps=6))
    vmapped_loop.run(mnist.PROGRAM, [dataclasses.replace(config, steps=8) for config in short])
    assert read_json(tmp_path / "a" / "summary.json")["steps"] == 8
    assert read_json(tmp_path / "b" / "summary.json")["steps"] == 4


def test_folder_of_another_run_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    write_config(resolve(BASE, "digits"), tmp_path / "a")
    with pytest.raises(UserError, match="holds another run"):
        vmapped_loop.run(
            mnist.PROGRAM, [at(tmp_path / "a", steps=1, seed=3), at(tmp_path / "b", steps=1)]
        )


class _Device:
    platform = "gpu"

    def __init__(self, limit):
        self.limit = limit

    def memory_stats(self):
        return {"bytes_limit": self.limit, "bytes_in_use": 0}


@pytest.mark.slow
def test_number_of_runs_that_fit_in_memory():
    setup = prepare_run(BASE)
    configs = [setup.config] * 10
    assert vmapped_loop.capacity(setup, configs) == 10, "no limit is known of a CPU"
    one = jax.eval_shape(lambda: vmapped_loop.inputs(setup, configs[:1]))
    setup = setup._replace(devices=[_Device(0)])
    memory = vmapped_loop.make_chunk(setup).lower(*one).compile().memory_analysis()
    need = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(one[1]))
    assert need > state > 12 * setup.parameters
    for limit, want in ((0, 1), (4 * need, 3), (100 * need, 10)):
        assert vmapped_loop.capacity(setup._replace(devices=[_Device(limit)]), configs) == want
