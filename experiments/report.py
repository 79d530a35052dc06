"""What a finished run says: test error, summary.json, figures, a table."""

import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from capsjax.models import CapsNetConfig
from experiments import figures, io, probe
from kernels.program import commit

COLUMNS = 8  # correct examples in the figure of reconstructions
WRONG = 4  # wrong ones; each takes two columns
CHANGES = np.round(np.arange(-0.25, 0.2501, 0.05), 2)  # of one pose dimension, Figure 4


def finish(setup, state, workdir: Path, rows: list, evaluate: Callable, seconds: float) -> dict:
    """Read the test set, once; write summary.json and the figures; print the table.

    Args:
      setup: of :mod:`experiments.loop`. state: trained. workdir: folder of the run.
      rows: of metrics.jsonl. evaluate: of :mod:`experiments.loop`.
      seconds: wall time of this process so far.

    Returns:
      The summary.
    """
    c, d = setup.config, setup.dataset
    values = evaluate(state.params, *setup.stream.held_out("test"))
    correct = values["accuracy"] > 0
    training = [row for row in rows if "images_per_second" in row]
    validation = [row["validation_error"] for row in rows if "validation_error" in row]
    # The first chunk of a run holds the compilation.
    rates = [row["images_per_second"] for row in training[1:]] or [0.0]
    summary = {
        "program": c.program,
        "command": c.command(),
        "dataset": d.name,
        "dataset_source": d.source.split(" from ")[0],
        "model": c.model,
        "recipe": c.recipe,
        **capsule_fields(setup),
        "seed": c.seed,
        "parameters": setup.parameters,
        "steps": int(state.step),
        "epochs": training[-1]["epoch"],
        "batch_size": c.batch_size,
        "dtype": c.dtype,
        "train_examples": len(d.train_labels),
        "validation_examples": len(d.validation_labels),
        "validation_error": validation[-1] if validation else None,
        "test_examples": len(correct),
        "test_errors": int((~correct).sum()),
        "test_error": round(100 * float((~correct).mean()), 4),
        "test_loss": float(values["loss"].mean()),
        **setup.task.fields(setup, values),
        "images_per_second": float(np.median(rates)),
        "training_seconds": rows[-1]["seconds"],
        "wall_seconds": round(seconds, 1),
        "peak_memory_mb": peak_memory_mb(setup.devices[0]),
        "accelerator": setup.devices[0].platform,
        "device_kind": setup.devices[0].device_kind,
        "num_devices": len(setup.devices),
        "parallel": c.parallel,
        "versions": versions(),
        "commit": commit(),
    }
    io.write_json(workdir / "summary.json", summary)
    pictures = draw(setup, state, workdir, rows, values)
    print(table(summary, workdir, pictures))
    return summary


def capsule_fields(setup) -> dict:
    """What a summary says of capsules; None for networks without."""
    m, c = setup.model_config, setup.config
    names = ("routing", "routing_iterations", "routing_implementation", "votes", "squash", "loss")
    names += ("depth", "reconstruction")
    if not isinstance(m, CapsNetConfig):
        return dict.fromkeys(names)
    values = (m.routing, m.make_routing().passes, c.routing_implementation, m.votes)
    values += (m.primary_squash, c.loss, 1 + len(m.capsule_layers), m.decoder is not None)
    return dict(zip(names, values, strict=True))


def peak_memory_mb(device: jax.Device) -> int:
    """Of the accelerator, or on CPU of the whole process, so far."""
    if stats := device.memory_stats():
        return round(stats["peak_bytes_in_use"] / 2**20)
    unit = 1 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


def versions() -> dict[str, str]:
    """Of Python and the packages that numbers depend on."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
    }


def table(summary: dict, workdir: Path, pictures: list[Path]) -> str:
    """The last lines of a run."""
    lines = [f"{'':12}{'error':>8}{'images':>9}"]
    for name in ("validation", "test"):
        error, examples = summary[f"{name}_error"], summary[f"{name}_examples"]
        if error is not None:
            lines.append(f"{name:12}{error:>7.2f}%{examples:>9,}")
    lines.append(
        f"{summary['epochs']:g} epochs, {summary['steps']:,} steps, "
        f"{summary['images_per_second']:.0f} images/s, "
        f"{summary['training_seconds']:.0f} s of training"
    )
    lines += [f"{'summary':12}{workdir / 'summary.json'}"]
    lines += [f"{'picture':12}{path}" for path in pictures]
    return "\n".join(lines)


def draw(setup, state, workdir: Path, rows: list, values: dict) -> list[Path]:
    """All figures of a run; returns their paths."""
    c, d = setup.config, setup.dataset
    folder = workdir / "figures"
    routing = f", {c.routing} routing" if c.routing else ""
    title = f"{c.model}{routing} on {d.name}, seed {c.seed}"
    paths = [folder / "training_curves.png"]
    figures.training_curves(paths[0], rows, title=title)
    if getattr(setup.model_config, "decoder", None) is not None:
        paths += setup.task.draw(setup, state.params, folder, values, title)
    if c.diagnostics and isinstance(setup.model_config, CapsNetConfig):
        paths += probe.draw(setup, state.params, folder, rows, title)
    return paths


def draw_reconstructions(setup, params, folder: Path, values: dict, title: str) -> list[Path]:
    """Figures 3 and 4 of the paper; returns their paths."""
    paths = [folder / "reconstructions.png", folder / "perturbations.png"]
    correct = values["accuracy"] > 0
    columns = reconstruction_columns(setup, params, correct)
    figures.reconstructions(paths[0], columns, setup.dataset.class_names, title=title)
    images, name = perturbed(setup, params, correct)
    figures.perturbations(paths[1], images, CHANGES, title=f"{title}: class {name}")
    return paths


def encode(setup, params, pixels: np.ndarray):
    """Class capsules of raw examples."""

    @jax.jit
    def capsules(params, pixels):
        return setup.model.apply(params, jax.vmap(setup.stream.input)(pixels), method="encode")

    return capsules(params, pixels)


def decode(setup, params, pose: jax.Array, targets: np.ndarray) -> np.ndarray:
    """Images drawn from poses ``[B, J, D]``, each from the capsule of its target ``[B]``."""
    mask = jax.nn.one_hot(jnp.asarray(targets), pose.shape[1])
    drawn = jax.jit(lambda p, x, m: setup.model.apply(p, x, m, method="decode"))
    return np.asarray(drawn(params, pose, mask))


def reconstruction_columns(setup, params, correct: np.ndarray) -> list:
    """Figure 3 of the paper: some correct test examples, then wrong ones twice.

    A wrong one is reconstructed from the capsule of its label and from that of the
    prediction.
    """
    right, wrong = np.flatnonzero(correct)[:COLUMNS], np.flatnonzero(~correct)[:WRONG]
    rows = np.concatenate([right, np.repeat(wrong, 2)])
    pixels, labels = (part[rows] for part in setup.stream.held_out("test"))
    images = np.asarray(jax.vmap(setup.stream.input)(jnp.asarray(pixels)))
    capsules = encode(setup, params, pixels)
    predictions = np.argmax(np.asarray(capsules.activation), axis=1)
    targets = labels.copy()
    targets[len(right) + 1 :: 2] = predictions[len(right) + 1 :: 2]
    decoded = decode(setup, params, capsules.pose, targets)
    fields = zip(images, decoded, labels, predictions, targets, strict=True)
    return [
        figures.ReconstructionColumn(
            side_by_side(image), side_by_side(drawn), int(label), int(prediction), int(target)
        )
        for image, drawn, label, prediction, target in fields
    ]


def side_by_side(image: np.ndarray) -> np.ndarray:
    """``[..., H, W, C]`` as it can be shown: of a stereo pair the second eye beside the first."""
    return np.concatenate(np.split(image, 2, -1), axis=-2) if image.shape[-1] == 2 else image


def perturbed(setup, params, correct: np.ndarray) -> tuple[np.ndarray, str]:
    """Figure 4 of the paper: one pose, one dimension changed at a time, decoded.

    Returns:
      Images ``[D, V, H, W, C]`` and the name of the class, that of the first test example
      that is classified rightly (the first one where none is).
    """
    rows = np.flatnonzero(correct)[:1] if correct.any() else np.array([0])
    pixels, labels = (part[rows] for part in setup.stream.held_out("test"))
    capsules = encode(setup, params, pixels)
    pose, label = np.asarray(capsules.pose[0]), int(labels[0])
    dims, values = pose.shape[1], len(CHANGES)
    changed = np.tile(pose, (dims, values, 1, 1))
    for dim in range(dims):
        changed[dim, :, label, dim] += CHANGES
    changed = jnp.asarray(changed.reshape(dims * values, *pose.shape))
    images = side_by_side(decode(setup, params, changed, np.full(dims * values, label)))
    return images.reshape(dims, values, *images.shape[1:]), setup.dataset.class_names[label]
