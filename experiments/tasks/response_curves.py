"""Response curves: the accuracy under one transformation of the test images at a time."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import UserError
from experiments.data.affine import single_transformation, warp
from experiments.data.affnist_images import TRANSFORMATION_RANGES
from experiments.files import BadFile, check, is_number, is_plain, one_line, read_json
from experiments.files.forms import SUMMARY, is_count, is_percentage

# Units of experiments.data.affine; what changes nothing is in the middle of each.
CURVES: dict[str, tuple[float, ...]] = {
    "rotation": (-60, -45, -30, -20, -10, 0, 10, 20, 30, 45, 60),
    "shear": (-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6),
    "scale": (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.5),
    "shift_x": (-10, -8, -6, -4, -2, 0, 2, 4, 6, 8, 10),
    "shift_y": (-10, -8, -6, -4, -2, 0, 2, 4, 6, 8, 10),
}
# What a summary must have to be compared with.
_CURVE = {"values": [is_number], "accuracy": [is_percentage]}
_COMPARED = {
    "response": {**{f"{name}?": _CURVE for name in CURVES}},
    "response_images": is_count,
    "affnist": str,
    "affnist_error": is_percentage,
    "test_error": is_percentage,
    "model": str,
    "dataset": str,
}


def curves(evaluate: Callable, images: np.ndarray, labels: np.ndarray) -> dict[str, dict]:
    """Returns the accuracy along each of :data:`CURVES`.

    Args:
      evaluate: ``(images, labels) -> {"accuracy": [N], ...}``.
      images: uint8 ``[N, H, W, C]``. labels: ``[N]``.

    Returns:
      For each name its ``values`` and the ``accuracy`` at each, in percent.
    """
    return {
        name: {
            "values": list(values),
            "accuracy": [
                round(100 * float(evaluate(moved(images, name, v), labels)["accuracy"].mean()), 3)
                for v in values
            ],
        }
        for name, values in CURVES.items()
    }


def moved(images: np.ndarray, name: str, value: float) -> np.ndarray:
    """Returns images uint8 ``[N, H, W, C]``, all transformed in the same way."""
    transformation = jax.tree.map(jnp.float32, single_transformation(name, value))
    return np.asarray(_moved(jnp.asarray(images), transformation))


@jax.jit
def _moved(images, transformation):
    pixels = jax.vmap(warp, (0, None))(images.astype(jnp.float32), transformation)
    return jnp.round(pixels).astype(jnp.uint8)


def finished_summary(folder: str) -> dict:
    """Returns the summary of a finished affNIST run.

    Raises:
      UserError: there is none.
    """
    path = Path(folder).expanduser() / "summary.json"
    try:
        if not path.exists():
            raise BadFile("no summary.json there")
        summary = read_json(path, SUMMARY | {"program": str})
        if summary["program"] == "affnist":
            return check(summary, _COMPARED | {"*": is_plain}, "summary.json")
        reason = f"a run of {one_line(summary['program'])}"
    except (BadFile, ValueError) as error:
        reason = one_line(error)
    raise UserError(f"--compare={folder} is not a finished run of affnist: {reason}")


def plot_arguments(summaries: dict[str, dict], max_shift: int | None) -> tuple[dict, dict, str]:
    """Returns the arguments of :func:`experiments.plots.plot_responses`, of runs by folder.

    Args:
      summaries: of the runs.
      max_shift: in pixels, of the training digits; None where they were not only shifted.
    """
    curves = {}
    for folder, summary in summaries.items():
        name = summary["model"] + (f", {summary['routing']}" if summary["routing"] else "")
        error = f"{100 - summary['test_error']:.2f}% translated"
        error += f", {100 - summary['affnist_error']:.2f}% {summary['affnist']}"
        name = f"{name}: {error}"
        curves[name if name not in curves else f"{name}, {folder}"] = summary["response"]
    first = next(iter(summaries.values()))
    counts = sorted({summary["response_images"] for summary in summaries.values()})
    images = " or ".join(f"{n:,}" for n in counts)
    ranges = TRANSFORMATION_RANGES | {"scale": TRANSFORMATION_RANGES["scale_x"]}
    if max_shift is not None:
        ranges |= dict.fromkeys(("shift_x", "shift_y"), (-max_shift, max_shift))
    return (
        curves,
        ranges,
        f"{first['dataset']}: accuracy under one transformation, {images} test digits",
    )
