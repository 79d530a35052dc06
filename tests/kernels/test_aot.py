"""The kernels, and whole training steps with them, compile for TPUs and GPUs that are not present.

Needs the compilers of requirements-aot.txt; without them every test here is skipped.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from kernels import aot, api, plan, targets
from kernels.problems import PROBLEMS


@functools.cache
def row(target, problem, implementation, function, dtype="float32"):
    """Returns the row of kernels.aot for a compiled program."""
    if reason := targets.why_unavailable(target):
        pytest.skip(reason)
    how = plan.implementation(implementation, target)
    call = aot.programs(problem, dtype, how)[function]
    return aot.describe(targets.compile(*call, target=target), PROBLEMS[problem].votes_bytes // 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("problem", ["mnist_b128", "ragged"])
@pytest.mark.parametrize("target", targets.TARGETS)
def test_kernels_compile(target, problem, dtype):
    for function in ("pass", "pass, gradients"):
        assert row(target, problem, "pallas", function, dtype)["votes"] == "no"


def mostly_slow(*quick):
    """Returns all targets, of which others than some are for slow tests: steps take a minute."""
    slow = pytest.mark.slow
    return [t if t in quick else pytest.param(t, marks=slow) for t in targets.TARGETS]


@pytest.mark.parametrize("target", mostly_slow("tpu_v5e", "h200"))
def test_the_training_step_compiles_without_votes(target):
    assert row(target, "mnist_b128", "pallas", "step")["votes"] == "no"


@pytest.mark.parametrize("target", [pytest.param("tpu_v5e", marks=pytest.mark.slow), "h200"])
def test_the_training_step_on_cifar_has_no_votes(target):
    assert row(target, "cifar_b128", "pallas", "step")["votes"] == "no"
    # The same check finds the votes of a step that materializes them.
    assert row(target, "cifar_b128", "naive", "step")["votes"] != "no"


def test_a_pass_moves_its_arguments_and_its_result():
    p = PROBLEMS["mnist_b128"]
    sizes = [p.B * p.I * p.K, p.I * p.J * p.D * p.K, 2 * p.J * p.D * p.B]  # u, W, V and S
    one_pass = row("tpu_v5e", "mnist_b128", "pallas", "pass")
    assert one_pass["temporaries"] == 0
    assert 4 * sum(sizes) <= one_pass["accessed"] <= 1.1 * 4 * sum(sizes)


@pytest.mark.parametrize("target", ["tpu_v5e", "h200"])
def test_routing_needs_an_eighth_of_the_memory_of_votes(target):
    naive, pallas = (
        row(target, "mnist_b128", how, "routing, gradients") for how in ("naive", "pallas")
    )
    assert naive["votes"] != "no" and pallas["votes"] == "no"
    assert pallas["temporaries"] <= naive["temporaries"] / 8
    if target == "tpu_v5e":
        assert pallas["accessed"] <= naive["accessed"] / 8


@pytest.mark.parametrize("target", ["tpu_v5e", "h200"])
def test_seeds_in_one_program_compile(target):
    if reason := targets.why_unavailable(target):
        pytest.skip(reason)
    problem, how = PROBLEMS["mnist_b128"], plan.implementation("pallas", target)

    def loss(x):
        return (problem.route(x, 2, implementation=how).pose ** 2).sum()

    seeds = jax.eval_shape(lambda x: jax.tree.map(lambda a: jnp.stack([a, a]), x), problem.specs())
    compiled = targets.compile(jax.vmap(jax.grad(loss)), seeds, target=target)
    # Two gradients by W, and none for each example.
    votes = 2 * problem.votes_bytes // 4
    assert aot.describe(compiled, votes)["largest_elements"] < votes / 4


@pytest.mark.parametrize("target", ["tpu_v5e", "h200"])
def test_the_kernels_of_votes_compile(target):
    platform = "tpu" if target in targets.TPUS else "gpu"
    if reason := targets.why_unavailable(target):
        pytest.skip(reason)
    for dtype in ("float32", "bfloat16"):
        specs = PROBLEMS["mnist_b128"].specs(dtype)

        def loss(u, W):
            votes = api.prediction_vectors(u, W, implementation="pallas", platform=platform)
            return (votes**2).sum()

        compiled = targets.compile(jax.grad(loss, (0, 1)), specs["u"], specs["W"], target=target)
        assert compiled.memory_analysis().argument_size_in_bytes > 0
