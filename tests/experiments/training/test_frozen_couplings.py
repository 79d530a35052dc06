"""Couplings taken from a finished run."""

import dataclasses
import re
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import QUICK, TINY, prepare_run, train

from capsjax import functional
from experiments.config import Config, UserError
from experiments.config.flags import parse_flags
from experiments.training.checkpoints import Checkpoints
from experiments.training.setup import initial_state


@pytest.mark.slow
def test_frozen_names_the_command_to_run_first(tmp_path, monkeypatch):
    """After the named command, the run without --frozen_from works."""
    monkeypatch.chdir(tmp_path)
    frozen = dataclasses.replace(QUICK, routing="frozen", workdir="frozen", steps=1)
    with pytest.raises(UserError, match="first run") as error:
        train(frozen)
    command = re.search(r"first run python -m experiments.mnist (.*?), or", str(error.value))[1]
    train(dataclasses.replace(parse_flags(Config(), command.split()), cache_dir="none", steps=1))
    assert train(frozen)["routing"] == "frozen"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"preset": "small"}, "preset=tiny there, small here"),
        ({"validation_fraction": 0.1}, "validation_fraction=0.3 there, 0.1 here"),
        ({"votes": "shared"}, "votes=full there, shared here"),
    ],
)
def test_couplings_of_a_different_network_are_refused(dynamic, changes, message, tmp_path):
    config, source, _ = dynamic
    with pytest.raises(UserError, match=f"--frozen_from={source} is another kind.*{message}"):
        train(
            dataclasses.replace(
                config, routing="frozen", frozen_from=str(source), workdir=str(tmp_path), **changes
            )
        )


def test_couplings_of_an_unfinished_run_are_refused(dynamic, tmp_path):
    config, source, _ = dynamic
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", source, copy], check=True)
    (copy / "summary.json").unlink()
    with pytest.raises(UserError, match="a finished dynamic run"):
        train(
            dataclasses.replace(
                config, routing="frozen", frozen_from=str(copy), workdir=str(tmp_path / "run")
            )
        )


def test_frozen_couplings_are_means_and_stay_constant(dynamic, tmp_path):
    config, source, _ = dynamic
    # Another seed, so that nothing but the couplings comes from there.
    config_here = dataclasses.replace(
        config, routing="frozen", frozen_from=str(source), workdir=str(tmp_path), seed=1, steps=2
    )
    setup = prepare_run(config_here)
    before = jax.device_get(initial_state(setup).params)

    other = prepare_run(config)
    with Checkpoints(source) as checkpoints:
        params = checkpoints.restore(initial_state(other)).params
    naive = dataclasses.replace(other.model_config, routing_implementation="naive")
    encode = jax.jit(
        lambda x: functional.create_model(naive).apply(params, x, method="encode").coupling
    )
    images = other.dataset.train_images.astype(np.float32) / 255
    # In two parts of the same size and in float64.
    couplings = [np.float64(encode(part)) for part in np.split(images, 2)]
    want = np.concatenate(couplings).mean(axis=0)
    assert len(images) == 1006 and want.shape == (144, 10)
    assert np.abs(want - 0.1).max() > 0.003, "the couplings are no longer even"
    got = np.exp(np.float64(before["classes"]["prior"]))
    np.testing.assert_allclose(got, want, rtol=2e-5)

    train(config_here)
    with Checkpoints(tmp_path) as checkpoints:
        after = jax.device_get(checkpoints.restore(initial_state(setup)).params)
    np.testing.assert_array_equal(after["classes"]["prior"], before["classes"]["prior"])
    assert np.abs(after["classes"]["kernel"] - before["classes"]["kernel"]).max() > 0
    assert np.abs(before["classes"]["kernel"] - params["classes"]["kernel"]).max() > 0.01


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_constant_couplings_are_not_decayed(optimizer):
    config = dataclasses.replace(
        TINY, routing="random", optimizer=optimizer, weight_decay=0.1, freeze="^conv"
    )
    setup = prepare_run(config)
    state = initial_state(setup)
    before = jax.device_get(state.params)
    gradients = jax.tree.map(jnp.ones_like, state.params)
    updates, _ = setup.optimizer.update(gradients, state.opt_state, state.params)
    after = jax.device_get(jax.tree.map(jnp.add, state.params, updates))
    kept = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
        )
        if np.array_equal(a, b)
    }
    assert {name.split(".")[0] for name in kept} == {"conv", "classes"}
    assert [name for name in kept if name.startswith("classes")] == ["classes.prior"]
