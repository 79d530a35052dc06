"""Measure how time and memory grow with the sizes of a network, and with which exponents.

    python -m experiments.scaling
    python -m experiments.scaling --output=results/speed/scaling --implementation=naive

One size at a time is changed: those of routing with gradients, starting from MNIST's (I = 1152,
J = 10, batch 32, three iterations), and the side of the image in the training step of
``--preset=small``. The exponent p is the least-squares slope of the logarithm, so that time grows
like size^p. The exponent of the number of multiplications and additions is given as well: that of a
good implementation is not larger. It is smaller where constant costs dominate. Writes OUTPUT.json
and OUTPUT.md.
"""

import dataclasses
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from capsjax import adam, capsnet_loss, create_model, init_state, make_train_step, preset
from experiments.benchmarks import throughput
from experiments.config import UserError, setting
from experiments.config.flags import run
from experiments.plots.text_tables import markdown
from experiments.training.results import output_path, print_results, provenance, write_results
from kernels import api
from kernels.bench import seconds
from kernels.problems import Problem

SEED = 0  # of the weights and inputs
BASE = {"B": 32, "I": 1152, "J": 10, "R": 3}
AXES = {
    "I": (288, 576, 1152, 2304, 4608),
    "J": (5, 10, 20, 40),
    "R": (2, 3, 4, 6, 8),
    "B": (16, 32, 64, 128, 256),
    "pixels": (20, 28, 40, 56),
}
NAMES = {
    "I": "input capsules",
    "J": "output capsules",
    "R": "iterations",
    "B": "batch",
    "pixels": "side of the image",
}


def routing(implementation, **sizes: int) -> tuple[Callable, tuple, float]:
    """Returns the gradients of routing: function, arguments, multiplications and additions."""
    B, I, J, R = (sizes[name] for name in "BIJR")
    problem = Problem(B=B, I=I, J=J)

    def loss(arrays):
        pose = problem.route(arrays, R, implementation=implementation).pose
        return jnp.sum(jnp.sin(5 * pose))

    # As kernels.bench counts them for three iterations.
    products = (2 * R - 1) + 3 * (R - 1) + (4 * R - 2)
    work = products * 2 * B * I * J * problem.D * problem.K
    return jax.grad(loss), (problem.arrays(seed=SEED),), work


def training(implementation, pixels: int) -> tuple[Callable, tuple, float]:
    """Returns a training step of 16 images: function, arguments, multiplications and additions."""
    config = preset(
        "capsnet_small", image_shape=(pixels, pixels, 1), routing_implementation=implementation
    )
    model, optimizer = create_model(config), adam(1e-3)
    state = init_state(model, optimizer, jax.random.key(SEED))
    step = make_train_step(capsnet_loss(model), optimizer)
    images, labels = jnp.ones((16, pixels, pixels, 1)) / 2, jnp.arange(16) % 10
    work = 16 * throughput.flops_per_image(config)
    return step, (state, images, labels, jax.random.key(1)), work


def measure(axis: str, implementation) -> dict:
    """Measures time and memory, and counts arithmetic, over the values of one size."""
    times, memory, work = [], [], []
    for size in AXES[axis]:
        print(f"{NAMES[axis]}: {size} ...", file=sys.stderr)
        make = training if axis == "pixels" else routing
        sizes = {axis: size} if axis == "pixels" else BASE | {axis: size}
        function, arguments, operations = make(implementation, **sizes)
        compiled = jax.jit(function).lower(*arguments).compile()
        times.append(float(np.median(seconds(compiled, *arguments))))
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        work.append(float(operations))
    exponents = {"time": times, "memory": memory, "arithmetic": work}
    return {
        "axis": axis,
        "sizes": AXES[axis],
        "milliseconds": [round(1e3 * t, 3) for t in times],
        "temporaries_mb": [round(m / 1e6, 2) for m in memory],
        "exponents": {name: exponent(AXES[axis], y) for name, y in exponents.items()},
    }


def exponent(x, y) -> float:
    """Returns p of y ~ x^p."""
    return round(float(np.polyfit(np.log(x), np.log(np.maximum(y, 1e-12)), 1)[0]), 2)


def table(rows: list[dict]) -> str:
    """Returns the measurements as a table in Markdown."""
    headings = ["over", "sizes", "ms", "temporaries, MB", "exponent of time, memory, arithmetic"]
    lines = []
    for row in rows:
        lines.append([NAMES[row["axis"]]])
        for values in (row["sizes"], row["milliseconds"], row["temporaries_mb"]):
            texts = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
            lines[-1].append(", ".join(texts))
        lines[-1].append(", ".join(f"{p:.2f}" for p in row["exponents"].values()))
    return markdown(headings, lines)


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this command."""

    implementation: str = setting(
        "auto", "implementation of routing", choices=("auto", "naive", "stream", "pallas")
    )
    output: str = setting("", "write OUTPUT.json and OUTPUT.md")


DEFAULTS = Flags()


def main(flags: Flags) -> None:
    """Measures, writes and prints.

    Raises:
      UserError: the implementation does not run here, or the output can't be written.
    """
    try:
        implementation = api.select(flags.implementation, jax.devices())
    except ValueError as error:
        raise UserError(f"--implementation={flags.implementation}: {error}") from error
    if flags.output:
        output_path(flags.output)
    rows = [measure(axis, implementation) for axis in AXES]
    command = f"python -m experiments.scaling --implementation={flags.implementation}"
    result = {"rows": rows} | provenance(command, SEED, jax.devices()[0])
    text = table(rows)
    if flags.output:
        write_results(flags.output, result, text)
    print_results(result, text)


if __name__ == "__main__":
    run(main, DEFAULTS)
