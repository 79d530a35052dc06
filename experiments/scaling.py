"""How time and memory grow with the sizes of a network, and with what exponent.

    python -m experiments.scaling
    python -m experiments.scaling --output=results/scaling --implementation=naive

Routing with gradients, one size at a time changed from MNIST's (I = 1152, J = 10, batch 32,
three iterations), and the training step of ``--preset=small`` over the side of the image. The
exponent p is the least-squares slope of the logarithm: time grows like size^p. Beside it is that
of the multiplications and additions, which a good implementation does not exceed; below it are
fixed costs. Writes OUTPUT.json and OUTPUT.md.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from capsjax import adam, capsnet_loss, create_model, init_state, make_train_step, preset
from experiments.benchmarks import throughput
from experiments.training.results import versions
from experiments.training.workdir import write_json
from kernels import api, cli
from kernels.bench import seconds
from kernels.problems import Problem

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
    """Gradients of routing: the function, its arguments, multiplications and additions."""
    B, I, J, R = (sizes[name] for name in "BIJR")
    problem = Problem(B=B, I=I, J=J)

    def loss(arrays):
        pose = problem.route(arrays, R, implementation=implementation).pose
        return jnp.sum(jnp.sin(5 * pose))

    # As kernels.bench counts them for three iterations.
    sweeps = (2 * R - 1) + 3 * (R - 1) + (4 * R - 2)
    work = sweeps * 2 * B * I * J * problem.D * problem.K
    return jax.grad(loss), (problem.arrays(),), work


def training(implementation, pixels: int) -> tuple[Callable, tuple, float]:
    """A training step of 16 images: the function, its arguments, multiplications and additions."""
    config = preset(
        "capsnet_small", image_shape=(pixels, pixels, 1), routing_implementation=implementation
    )
    model, optimizer = create_model(config), adam(1e-3)
    state = init_state(model, optimizer, jax.random.key(0))
    step = make_train_step(capsnet_loss(model), optimizer)
    images, labels = jnp.ones((16, pixels, pixels, 1)) / 2, jnp.arange(16) % 10
    work = 16 * throughput.flops_per_image(config)
    return step, (state, images, labels, jax.random.key(1)), work


def measure(axis: str, implementation) -> dict:
    """Time, memory and arithmetic over one size."""
    times, memory, work = [], [], []
    for size in AXES[axis]:
        print(f"{NAMES[axis]}: {size} ...", file=sys.stderr)
        make = training if axis == "pixels" else routing
        sizes = {axis: size} if axis == "pixels" else BASE | {axis: size}
        function, arguments, operations = make(implementation, **sizes)
        run = jax.jit(function).lower(*arguments).compile()
        times.append(float(np.median(seconds(run, *arguments))))
        memory.append(run.memory_analysis().temp_size_in_bytes)
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
    """p of y ~ x^p."""
    return round(float(np.polyfit(np.log(x), np.log(np.maximum(y, 1e-12)), 1)[0]), 2)


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| over | sizes | ms | temporaries, MB | exponent of time, memory, arithmetic |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [NAMES[row["axis"]]]
        for values in (row["sizes"], row["milliseconds"], row["temporaries_mb"]):
            cells.append(", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values))
        cells.append(", ".join(f"{p:.2f}" for p in row["exponents"].values()))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    common = {"flag_values": flag_values}
    names = ("auto", "naive", "stream", "pallas")
    flags.DEFINE_enum("implementation", "auto", names, "of routing", **common)
    flags.DEFINE_string("output", None, "write OUTPUT.json and OUTPUT.md", **common)


def main() -> None:
    """Measure and print."""
    F = flags.FLAGS
    implementation = api.select(F.implementation, jax.devices())
    rows = [measure(axis, implementation) for axis in AXES]
    command = f"python -m experiments.scaling --implementation={F.implementation}"
    result = {
        "command": command,
        "rows": rows,
        "device_kind": jax.devices()[0].device_kind,
        "versions": versions(),
        "commit": cli.commit(),
    }
    if F.output:
        write_json(Path(f"{F.output}.json"), result)
        foot = f"\n\n`{command}`, commit {result['commit']}\n"
        Path(f"{F.output}.md").write_text(table(rows) + foot)
    print(table(rows), file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
