"""The Pallas kernels for the votes, in Pallas' interpreter, against float64 einsums of NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import prediction_vectors_gpu, prediction_vectors_tpu
from kernels.problems import PROBLEMS, SMALL

BACKENDS = {"tpu": prediction_vectors_tpu, "gpu": prediction_vectors_gpu}
TOLERANCES = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 2e-3}


@functools.cache
def data(name):
    """u ``[I, K, B]``, W ``[J, D, I, K]``, dvotes ``[I, J, D, B]`` in float32."""
    problem = PROBLEMS[name]
    arrays = problem.arrays()
    shape = (problem.I, problem.J, problem.D, problem.B)
    dvotes = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return arrays["u"].transpose(1, 2, 0), arrays["W"].transpose(1, 2, 0, 3), dvotes


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SMALL)
def test_votes_and_gradients(name, backend, dtype):
    kernels = BACKENDS[backend]
    options = {"interpret": True}
    if backend == "tpu":
        # Several blocks of capsules even here, and a last one that reaches beyond them.
        options["config"] = prediction_vectors_tpu.BlockConfig(operand_bytes=2**17)

    @jax.jit
    def run(u, W, dvotes):
        return (
            kernels.forward(u, W, **options),
            kernels.backward_u(W, dvotes, **options),
            kernels.backward_W(u, dvotes, **options),
        )

    u, W, dvotes = data(name)
    results = run(u.astype(dtype), W.astype(dtype), jnp.asarray(dvotes))
    # References of the inputs before they are rounded to dtype.
    u, W, dvotes = (np.asarray(x, np.float64) for x in (u, W, dvotes))
    references = (
        np.einsum("jdik,ikb->ijdb", W, u),
        np.einsum("jdik,ijdb->ikb", W, dvotes),
        np.einsum("ikb,ijdb->jdik", u, dvotes),
    )
    for result, reference in zip(results, references):
        assert result.dtype == jnp.float32
        assert result.shape == reference.shape
        error = np.max(np.abs(np.asarray(result) - reference)) / np.max(np.abs(reference))
        assert error <= TOLERANCES[dtype]
