"""Which kernel runs where, the function of the votes kernels, and invalid input."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import capsjax
from capsjax.routing import PassInputs, PassKernels, Sizes, make_routing, route
from experiments.training.setup import has_kernels
from kernels import api, routing_pass_tpu
from kernels.blocks import Unsupported
from kernels.problems import PROBLEMS, SMALL


def device(platform, **properties):
    """Returns what the choice reads of a device that is not present."""
    return [types.SimpleNamespace(platform=platform, **properties)]


CPU, TPU = jax.devices("cpu"), device("tpu")
H200 = device("gpu", compute_capability="9.0")


# Which implementation


@pytest.mark.parametrize("devices", [CPU, TPU, H200])
@pytest.mark.parametrize("name", ["naive", "stream"])
def test_plain_jax_runs_everywhere(name, devices):
    assert api.select(name, devices) == name


def test_kernels_on_their_own_device():
    assert api.select("pallas", TPU).forward.func is routing_pass_tpu.forward
    assert api.select("pallas", H200).forward.func.__module__ == "kernels.routing_pass_gpu"
    assert isinstance(api.select("auto", TPU), PassKernels)
    assert isinstance(api.select("auto", H200), PassKernels)
    assert api.select("auto", CPU) == "auto"


@pytest.mark.parametrize(
    "devices, divided, reason",
    [
        (CPU, False, "run on TPU and NVIDIA GPU, not on cpu"),
        (TPU, True, "can't divide pallas kernels among several devices: use shard_map"),
        (device("gpu", compute_capability="7.5"), False, "A100's generation or later"),
        (device("gpu", compute_capability="gfx942"), False, "A100's generation or later"),
    ],
)
def test_pallas_that_cannot_run_raises_and_auto_falls_back(devices, divided, reason):
    with pytest.raises(ValueError, match=reason) as error:
        api.select("pallas", devices, divided=divided)
    assert "\n" not in str(error.value)
    assert api.select("auto", devices, divided=divided) == "auto"


def test_unknown_names():
    with pytest.raises(ValueError, match="implementation must be one of auto, naive, .* 'fast'"):
        api.select("fast", CPU)
    with pytest.raises(ValueError, match="platform must be one of tpu, gpu, not 'cuda'"):
        api.prediction_vectors(np.ones((2, 3, 4)), np.ones((3, 5, 6, 4)), platform="cuda")
    with pytest.raises(ValueError, match="platform must be one of tpu, gpu, not 'cpu'"):
        api.pass_kernels("cpu")


def test_auto_streams_what_a_kernel_refuses():
    problem = PROBLEMS["tiny"]
    x = problem.arrays()
    with jax.enable_x64():
        wide = {key: jnp.asarray(np.float64(a)) for key, a in x.items()}
        with pytest.raises(Unsupported, match="u is float64; Pallas kernels take float32"):
            problem.route(wide, implementation=api.select("pallas", TPU))
        auto = api.select("auto", TPU)
        pose = jax.jit(lambda x: problem.route(x, implementation=auto).pose)(wide)
        exact = jax.jit(lambda x: problem.route(x, implementation="naive").pose)(wide)
    assert pose.dtype == jnp.float64
    np.testing.assert_allclose(pose, exact, rtol=1e-12)


def test_too_many_output_capsules_for_a_tpu():
    spec = jax.ShapeDtypeStruct
    inputs = PassInputs(spec((8, 128, 128), "float32"), spec((128, 8, 2000, 16), "float32"))
    V = spec((2000, 16, 128), "float32")
    kernel = api.pass_kernels("tpu", interpret=True).forward
    with pytest.raises(Unsupported, match=r"W \[J, K, D, I\] = \(2000, 8, 16, 128\).*use stream"):
        jax.eval_shape(lambda *x: kernel(*x, "softmax"), inputs, V)


# Votes


@pytest.mark.parametrize("platform", api.PLATFORMS)
@pytest.mark.parametrize("name", ["ragged", "two_blocks"])
def test_votes_and_their_gradients(platform, name):
    x = PROBLEMS[name].arrays()
    x.pop("prior")

    def loss(x, how):
        votes = api.prediction_vectors(**x, implementation=how, platform=platform)
        return jnp.sum(jnp.sin(votes)), votes

    results = []
    for how in ("pallas_interpret", "xla"):
        step = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
        results.append(step(x, how))
    for got, expected in zip(*map(jax.tree.leaves, results)):
        assert np.abs(got - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("platform", api.PLATFORMS)
@pytest.mark.parametrize("name", ["em", pytest.param("vb", marks=pytest.mark.slow), "kde"])
def test_algorithms_that_need_votes_take_them_from_the_kernel(name, platform):
    problem = PROBLEMS["tiny"]
    x = problem.arrays()
    routing = make_routing(name)
    x["params"] = routing.init_params(
        jax.random.key(1), Sizes(problem.I, problem.J, problem.D, problem.K)
    )

    def loss(x, how):
        out = route(routing, x["params"], x["u"], x["W"], implementation=how)
        return jnp.sum(jnp.sin(5 * out.pose)) + jnp.sum(jnp.cos(out.activation)), out

    kernels = api.pass_kernels(platform, interpret=True)
    results = []
    for how in (kernels, "naive"):
        step = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
        assert ("pallas_call" in str(step.trace(x, how).jaxpr)) == (how != "naive")
        results.append(step(x, how))
    # vb of float32 votes is off by 1.3e-4 from float64, however the votes are computed.
    tolerance = 1e-4 if name == "vb" else 2e-5
    for got, expected in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def test_networks_that_run_on_the_kernel_of_votes():
    kernels, em = api.pass_kernels("tpu"), capsjax.CapsNetConfig(routing="em")
    assert has_kernels(em, kernels) and not has_kernels(em, kernels._replace(votes=None))
    assert not has_kernels(capsjax.CapsNetConfig(routing="em", votes="shared"), kernels)
    # Nothing is measured that would let auto prefer this kernel to XLA.
    assert api.select("auto", TPU).votes is None and api.select("pallas", TPU).votes is not None


def test_votes_without_a_kernel():
    u, W = jnp.ones((2, 5, 8)), jnp.ones((5, 3, 16, 8))
    np.testing.assert_array_equal(api.prediction_vectors(u, W), 8)
    with pytest.raises(ValueError, match="run on TPU and NVIDIA GPU, not on cpu; use xla"):
        api.prediction_vectors(u, W, implementation="pallas")
    with pytest.raises(ValueError, match="implementation must be one of auto, xla.*'naive'"):
        api.prediction_vectors(u, W, implementation="naive")
    with pytest.raises(AssertionError, match=r"u must be \[B, I, K\]"):
        api.prediction_vectors(u[0], W)


# Problems


def test_problems():
    assert set(SMALL) < set(PROBLEMS)
    for name, problem in PROBLEMS.items():
        specs = problem.specs("bfloat16")
        assert specs["u"].shape == (problem.B, problem.I, problem.K), name
        assert specs["W"].shape == (problem.I, problem.J, problem.D, problem.K), name
        assert ("prior" in specs) == problem.prior and specs["u"].dtype == jnp.bfloat16
    # What the papers' networks have.
    assert [PROBLEMS[f"{n}_b128"].I for n in ("mnist", "multimnist", "cifar")] == [1152, 3200, 9216]
    assert PROBLEMS["cifar_b128"].votes_bytes == 754_974_720
