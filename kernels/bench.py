"""Measures how fast routing and votes are on this device, after checking their results.

    python -m kernels.bench --problem=mnist_b128 --implementation=naive,stream,pallas
    python -m kernels.bench --problem=all --implementation=all > results/speed/kernels.jsonl

Prints one JSON line for each problem, implementation and function: routing of three iterations
(routing), with gradients (routing, gradients), the votes, and those with gradients. Each line
has

* error: the worst, over all results, of the largest difference from float64 on the CPU,
  relative to the largest element; above ``tolerance`` nothing is timed and the exit status is 1
* milliseconds: median and range of the repetitions
* share_of_memory: the share of the measured time that reading the inputs once per pass, and
  writing the results, would take at the bandwidth of a copy
* share_of_arithmetic: the share that the multiplications would take at the rate of a 4096^3
  matrix product of the same type (2048^3 on CPU). Both limits are measured in the same run; the
  larger share is the one that bounds the speed.

``--precision`` is ``jax.default_matmul_precision``: ``default`` is TensorFloat-32 for float32 on
a recent GPU and bfloat16 on a TPU, hence its larger tolerance there.
"""

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from kernels import api, cli
from kernels.problems import PROBLEMS, SEED, Problem

IMPLEMENTATIONS = ("naive", "stream", "pallas")
FUNCTIONS = ("routing", "routing, gradients", "votes", "votes, gradients")
ITERATIONS = 3
SIDE = 2048  # of the matrices of a product, on CPU
REPETITIONS = 15
SECONDS = 0.02  # minimum of one repetition


def function(name: str, problem: Problem, implementation) -> Callable | None:
    """Returns a function of the arrays of a problem; None if an implementation has no votes.

    Args:
      name: one of :data:`FUNCTIONS`. implementation: naive, stream, or PassKernels.
    """
    kind, _, gradients = name.partition(", ")
    if kind == "routing":

        def run(x):
            return problem.route(x, ITERATIONS, implementation=implementation).pose

    elif implementation == "stream":
        return None
    else:
        how = "xla" if implementation == "naive" else "pallas"

        def run(x):
            return api.prediction_vectors(x["u"], x["W"], implementation=how)

    if not gradients:
        return run
    # The sine gives every element its own weight: the gradient is no multiple of the pose.
    return jax.grad(lambda x: jnp.sum(jnp.sin(5 * run(x))))


def exact(name: str, problem: Problem, dtype: str):
    """Computes the result in float64, on the CPU, from materialized votes."""
    with jax.default_device(jax.devices("cpu")[0]), jax.enable_x64():
        arrays = {key: jnp.asarray(np.float64(x)) for key, x in problem.arrays(dtype).items()}
        return jax.device_get(jax.jit(function(name, problem, "naive"))(arrays))


def error(got, expected) -> float:
    """Returns the worst, over arrays, of the largest difference relative to the largest element."""

    def one(a, b):
        # The gradient by an unused input (the prior, for votes) is zero.
        return float(np.max(np.abs(np.asarray(a, np.float64) - b)) / (np.max(np.abs(b)) or 1))

    # Unlike max of Python, that of NumPy is NaN if any number is.
    return float(np.max(jax.tree.leaves(jax.tree.map(one, got, expected))))


def tolerance(dtype: str, precision: str, platform: str) -> float:
    """Returns 2e-5 for exact float32 products, 2e-2 if their operands are rounded."""
    rounded = dtype != "float32" or (precision == "default" and platform != "cpu")
    return 2e-2 if rounded else 2e-5


def cost(name: str, p: Problem, itemsize: int) -> tuple[int, int]:
    """Returns the bytes moved, and the multiplications and additions of the passes."""
    u, W = p.B * p.I * p.K, p.I * p.J * p.D * p.K
    product = 2 * p.B * W
    votes = 4 * p.B * p.I * p.J * p.D
    return {
        # A pass with even coupling is one product, any other two; backward_state three; and
        # backward_inputs four for every iteration, two for the even one.
        "routing": (ITERATIONS * (u + W) * itemsize, (2 * ITERATIONS - 1) * product),
        "routing, gradients": (
            (2 * ITERATIONS + 1) * (u + W) * itemsize,
            (2 * ITERATIONS - 1 + 3 * (ITERATIONS - 1) + 4 * ITERATIONS - 2) * product,
        ),
        "votes": ((u + W) * itemsize + votes, product),
        "votes, gradients": (2 * (u + W) * itemsize + 3 * votes, 3 * product),
    }[name]


def seconds(run: Callable, *args) -> list[float]:
    """Returns seconds per call of a compiled function, repeated; calls overlap as in training."""

    def calls(count):
        start = time.perf_counter()
        for _ in range(count):
            out = run(*args)
        jax.block_until_ready(out)
        return time.perf_counter() - start

    calls(1)
    count = max(1, round(SECONDS / max(calls(2) / 2, 1e-6)))
    return [calls(count) / count for _ in range(REPETITIONS)]


def limits(dtype: str) -> tuple[float, float]:
    """Returns bytes per second of a copy, and operations per second of a matrix product."""
    x = jnp.ones(2**26 if jax.default_backend() == "cpu" else 2**28, "float32")
    bandwidth = 2 * x.nbytes / np.median(seconds(jax.jit(jnp.negative), x))
    return float(bandwidth), matrix_rate(dtype)


def matrix_rate(dtype: str = "float32") -> float:
    """Returns operations per second of a product of two square matrices."""
    side = SIDE if jax.default_backend() == "cpu" else 2 * SIDE
    square = jnp.ones((side, side), dtype)
    return float(2 * side**3 / np.median(seconds(jax.jit(jnp.matmul), square, square)))


def measure(name, problem_name, label, implementation, dtype, precision, limit) -> dict:
    """Checks and times one function, and returns its line."""
    problem, device = PROBLEMS[problem_name], jax.devices()[0]
    row = {"problem": problem_name, "implementation": label, "function": name}
    row |= {"dtype": dtype, "precision": precision, "device_kind": device.device_kind}
    arrays = problem.arrays(dtype)
    run = jax.jit(function(name, problem, implementation)).lower(arrays).compile()
    row["error"] = error(jax.device_get(run(arrays)), exact(name, problem, dtype))
    row["tolerance"] = tolerance(dtype, precision, device.platform)
    if not row["error"] <= row["tolerance"]:
        return row | {"wrong": True}
    times = seconds(run, arrays)
    moved, operations = cost(name, problem, jnp.dtype(dtype).itemsize)
    median = float(np.median(times))
    row["milliseconds"] = {
        key: round(1e3 * float(f(times)), 4)
        for key, f in (("median", np.median), ("min", np.min), ("max", np.max))
    }
    row["temporaries_mb"] = round(run.memory_analysis().temp_size_in_bytes / 1e6, 1)
    row["share_of_memory"] = round(moved / limit[0] / median, 3)
    row["share_of_arithmetic"] = round(operations / limit[1] / median, 3)
    row["bandwidth_gb"], row["rate_gflops"] = (round(x / 1e9, 1) for x in limit)
    return row


def implementations(names: list[str]) -> dict:
    """Returns implementations by name; ``all`` leaves out those that can't run here.

    Raises:
      ValueError: a named implementation can't run here, or is interpreted.
    """
    if names != ["all"]:
        return {name: _implementation(name) for name in names}
    found = {}
    for name in IMPLEMENTATIONS:
        try:
            found[name] = _implementation(name)
        except ValueError as reason:
            print(f"without {name}: {reason}", file=sys.stderr)
    return found


def _implementation(name):
    if name == "pallas_interpret":
        raise ValueError(
            "--implementation=pallas_interpret: the time of an interpreter is meaningless"
        )
    return api.select(name, jax.devices())


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    common = {"flag_values": flag_values}
    legal = {"problem": PROBLEMS, "implementation": [*IMPLEMENTATIONS, "pallas_interpret"]}
    for name, values in legal.items():
        text = f"names separated by commas, or all: {', '.join(values)}"
        flags.DEFINE_list(name, list(values)[0], text, **common)
        flags.register_validator(
            name,
            lambda given, values=values: given == ["all"] or set(given) <= set(values),
            f"must be all, or among {', '.join(values)}",
            **common,
        )
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "type of u and W", **common)
    flags.DEFINE_enum(
        "precision", "default", ["default", "highest"], "of matrix products", **common
    )


def main() -> None:
    """Checks, measures and prints.

    Raises:
      ValueError: see :func:`implementations`.
    """
    F = flags.FLAGS
    chosen = implementations(F.implementation)
    problems = list(PROBLEMS) if F.problem == ["all"] else F.problem
    about = {
        "command": shlex.join(["python", "-m", "kernels.bench", *sys.argv[1:]]),
        "jax": jax.__version__,
        "commit": cli.commit(),
        "seed": SEED,
    }
    wrong = 0
    with (
        contextlib.nullcontext()
        if F.precision == "default"
        else jax.default_matmul_precision(F.precision)
    ):
        limit = limits(F.dtype)
        for problem in problems:
            for label, implementation in chosen.items():
                for name in FUNCTIONS:
                    if function(name, PROBLEMS[problem], implementation) is None:
                        continue
                    row = measure(name, problem, label, implementation, F.dtype, F.precision, limit)
                    print(json.dumps(row | about), flush=True)
                    wrong += "wrong" in row
    if wrong:
        print(f"{wrong} results are wrong and were not timed", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
