"""A finished run as a pretrained network: weights, configuration, and a card."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import capsjax
from capsjax.pretrained import weights
from experiments.analysis.run_network import preprocessing_of
from experiments.analysis.saved_run import SavedRun, current_summary
from experiments.config import UserError
from experiments.config.own_images import stem_of
from experiments.tasks.predictions import network_of
from experiments.training.evaluate import make_evaluate

DECISIONS = ("prediction", "accuracy", "label_accuracy", "digits")  # measured of each test image
PROBES = 32
STROKES = 3  # in an image of probe_images


def publish(run: SavedRun, folder: Path | str, dtype: str = "float32", fit: str = "auto") -> dict:
    """Writes the network of a finished run for :func:`capsjax.load_pretrained`.

    The test error of the card is that of the weights as they are in the file, on all test images.
    With ``float16`` they are rounded, and that is refused if any decision changes.

    Args:
      run: opened with its examples.
      folder: is created.
      dtype: ``float32`` or ``float16``.
      fit: of :class:`capsjax.Preprocessing`; ``auto``: that of the run.

    Returns:
      The facts of the card.

    Raises:
      UserError: the run is not finished, has other data, is an ensemble, or a decision changes.
    """
    setup, summary = run.setup, current_summary(run)
    if getattr(setup.config, "ensemble", 1) > 1:
        raise UserError(f"{run.folder} is an ensemble; a pretrained network is a single one")
    try:
        data = weights.to_bytes(run.variables, dtype)
    except ValueError as error:  # numbers that float16 has not
        raise UserError(f"{error}; use --dtype=float32") from error
    stored = weights.from_bytes(data, setup.model)
    evaluate, test = make_evaluate(setup), setup.pipeline.held_out("test")
    values = evaluate(stored, *test)
    facts = _facts(run, summary) | {
        "test_errors": int((values["accuracy"] < 1).sum()),
        "test_examples": len(values["accuracy"]),
    }
    if dtype == "float16":
        changed = changed_decisions(evaluate(run.variables, *test), values)
        if changed:
            raise UserError(
                f"float16 changes {changed} of {len(values['accuracy']):,} test decisions; use "
                "--dtype=float32"
            )
        facts["float16"] = f"0 of {len(values['accuracy']):,} test decisions change by rounding"
    network, preprocessing = network_of(setup), preprocessing_of(run)
    if fit != "auto":
        preprocessing = dataclasses.replace(preprocessing, fit=fit)
    facts["probe"] = probe(network.model, stored, preprocessing)
    try:
        capsjax.save_pretrained(
            folder,
            setup.model_config,
            stored,
            labels=run.facts["class_names"],
            preprocessing=preprocessing,
            labels_per_image=network.labels_per_image,
            facts=facts,
            dtype=dtype,
        )
    except capsjax.PretrainedError as error:
        raise UserError(str(error)) from error
    return facts


def _facts(run: SavedRun, summary: dict) -> dict:
    setup = run.setup
    names = {"recipe": "recipe", "command": "command", "commit": "commit", "seed": "seed"}
    names |= {"steps": "steps", "device": "device_kind", "weights": "weights"}
    names |= {"routing": "routing", "train_examples": "train_examples"}
    found = {name: summary.get(field) for name, field in names.items()}
    return found | {"data": stem_of(setup.dataset.name), "data_checksum": setup.dataset.checksum}


def changed_decisions(before: dict, after: dict) -> int:
    """Returns for how many images two evaluations decide differently.

    Args:
      before, after: arrays ``[N]`` by name, of :func:`experiments.training.evaluate.make_evaluate`.
    """
    names = [name for name in DECISIONS if name in before]
    return int(np.any([before[name] != after[name] for name in names], axis=0).sum())


def probe(
    model: capsjax.Model, variables, preprocessing: capsjax.Preprocessing, count: int = PROBES
) -> str:
    """Returns what a network says of made-up images: the class and the score of each, as text."""
    images = probe_images(preprocessing.image_shape, count)
    apply = jax.jit(lambda variables, x: model.apply(variables, preprocessing(x)).scores)
    scores = np.asarray(apply(variables, jnp.asarray(images)))
    best = scores.argmax(axis=1)
    return " ".join(f"{k}:{row[k]:.4f}" for k, row in zip(best, scores, strict=True))


def probe_images(shape: tuple[int, int, int], count: int = PROBES) -> np.ndarray:
    """Returns made-up images uint8 ``[N, H, W, C]``: bright strokes with soft edges on black."""
    rng = np.random.default_rng(0)
    height, width, channels = shape
    size = min(height, width)
    ends = rng.uniform(0.2, 0.8, (count, STROKES, 2, 1, 1, 2)) * (height, width)
    place = np.stack(np.mgrid[:height, :width], axis=-1)
    start, along = ends[:, :, 0], ends[:, :, 1] - ends[:, :, 0]
    share = ((place - start) * along).sum(-1) / (along**2).sum(-1)
    nearest = start + np.clip(share, 0, 1)[..., None] * along
    distance = np.sqrt(((place - nearest) ** 2).sum(-1)).min(axis=1)
    ink = np.clip(1.5 - distance / (size / 20), 0, 1)[..., None]
    tint = rng.uniform(0.5, 1, (count, 1, 1, channels)) if channels > 1 else 1
    return np.uint8(np.rint(255 * ink * tint * np.ones(channels)))
