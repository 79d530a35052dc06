"""affNIST: digits on a canvas, an early end of training, further test sets."""

import dataclasses
import functools

from capsjax.preprocessing import pad, to_unit
from experiments import plots
from experiments.config import Config, UserError, setting
from experiments.data import affnist_images
from experiments.data.affnist_images import (
    BORDER,
    PLACEMENTS,
    distances_from_centre,
    pad_to_canvas,
    random_place,
    transform_images,
    translate_images,
)
from experiments.data.augment import random_shifts_on_canvas
from experiments.data.batching import image_source
from experiments.data.datasets import Dataset
from experiments.files.bits import pack
from experiments.tasks import response_curves
from experiments.tasks.base import Figure, InputPipeline, Setup, Task
from experiments.tasks.classification import check_shift, classify
from experiments.tasks.errors_in_bins import error_by_bin
from experiments.tasks.figures import of_decoder

DISTANCES = (0, 2, 4, 6, 8, 10, 20)  # edges of bins, in pixels


@dataclasses.dataclass(frozen=True)
class AffnistConfig(Config):
    """Settings with the flags of affNIST."""

    affnist_dir: str = setting(
        "",
        "official affNIST test files: test.mat, or a folder with test_batches",
        roles="free path contents",
    )
    placement: str = setting(
        "shift",
        "where training and held-out digits are. shift: up to --max_shift, held-out ones 6, pixels "
        "from the middle. canvas: anywhere, as in affNIST",
        choices=PLACEMENTS,
    )
    stop_at: float = setting(
        99.23,
        "stop when this percentage of the translated validation digits is recognized, checked "
        "after each epoch or every --validate_every steps; 0: never",
        low=0.0,
        high=100.0,
        roles="free",
    )
    curve_images: int = setting(
        1000, "number of test digits for the response curves; 0: all", low=0, roles="free"
    )
    compare: str = setting(
        "", "folder of a finished run, whose response curves are plotted too", roles="free path"
    )


def canvas_pipeline(config: AffnistConfig, dataset: Dataset) -> InputPipeline:
    """Returns digits anywhere on a canvas; held-out ones are where a fixed draw has put them.

    Raises:
      UserError: flags contradict each other or the data set, or name files that can't be read.
    """
    # A saved run that is opened without its data has no training digits either.
    if config.stop_at and len(dataset.train_labels) and not len(dataset.validation_labels):
        raise UserError(
            f"--stop_at={config.stop_at:g} needs validation data: raise --validation_fraction"
        )
    if config.placement != "shift" and config.augmentation not in ("auto", "shift"):
        raise UserError(
            f"--placement={config.placement} needs --augmentation=auto, not {config.augmentation}"
        )
    if config.placement != "shift" and config.max_shift != BORDER:
        raise UserError(f"--max_shift={config.max_shift} applies to --placement=shift")
    check_shift(config, BORDER)
    if config.affnist_dir and (dataset.image_shape != (28, 28, 1) or dataset.num_classes != 10):
        raise UserError(f"--affnist_dir requires MNIST, not --dataset={dataset.name}")
    # What is only needed after training fails before it.
    if config.affnist_dir:
        affnist_images.official_test_set(config.affnist_dir)
    if config.compare:
        response_curves.finished_summary(config.compare)
    height, width, channels = dataset.image_shape

    train, _ = random_shifts_on_canvas(BORDER, config.max_shift, config.augmentation)
    if config.placement == "canvas":

        def train(key, image):
            return to_unit(random_place(key, pad(image, BORDER)))

    def example(key, source, row):
        return train(key, source.images[row]), source.labels[row]

    @functools.cache
    def held_out(split):
        images = pad_to_canvas(getattr(dataset, f"{split}_images"))
        labels = getattr(dataset, f"{split}_labels")
        return images if split == "train" else translate_images(images, config.placement), labels

    def to_input(pixels):
        """Pixels of a canvas, or of a digit that is placed in its middle."""
        return to_unit(pad(pixels, (height + 2 * BORDER - pixels.shape[0]) // 2))

    shape = (height + 2 * BORDER, width + 2 * BORDER, channels)
    source = image_source(dataset.train_images, dataset.train_labels, config.batch_size)
    steps = (("pad", BORDER), ("unit",))
    return InputPipeline(shape, source, example, held_out, to_input, steps=steps)


def should_stop(config: AffnistConfig, rows: list[dict]) -> bool:
    """Returns whether the newest validation is as good as ``--stop_at`` demands."""
    errors = [row["validation_error"] for row in rows if "validation_error" in row]
    # The accuracy is a mean of float32 ones and zeros.
    return bool(config.stop_at and errors and 100 - errors[-1] >= config.stop_at - 1e-4)


def evaluate_affnist(setup: Setup, evaluate, rows: list[dict]) -> dict:
    """Returns fields of summary.json: where training stopped, affNIST, response curves."""
    config, data = setup.config, setup.dataset
    digits, labels = pad_to_canvas(data.test_images), data.test_labels
    if config.affnist_dir:
        name, examples = "official affNIST", affnist_images.official_test_set(config.affnist_dir)
    else:
        name, examples = "synthetic affNIST", (transform_images(digits), labels)
    accuracy = evaluate(*examples)["accuracy"]
    wrong = accuracy < 1
    distance = distances_from_centre(examples[0])
    few = config.curve_images or len(labels)
    return {
        "stop_at": config.stop_at,
        "stopped_at": rows[-1]["step"] if should_stop(config, rows) else None,
        "affnist": name,
        "affnist_examples": len(wrong),
        "affnist_errors": int(wrong.sum()),
        "affnist_error": round(100 * float(wrong.mean()), 4),
        "affnist_correct": pack(~wrong),
        "affnist_error_by_distance": error_by_bin(
            accuracy, distance, DISTANCES, ("distance", "images")
        ),
        "response_images": len(labels[:few]),
        "response": response_curves.curves(evaluate, digits[:few], labels[:few]),
    }


def _compared(setup: Setup, summary: dict) -> dict[str, dict]:
    """The summary of this run and of the one it is compared with, by folder."""
    other = setup.config.compare
    compared = {other: response_curves.finished_summary(other)} if other else {}
    return {str(setup.config.folder()): summary} | compared


def response_figure(setup: Setup, summary: dict) -> list[Figure]:
    """Returns the figure of response curves, of this run and of the one it is compared with."""
    c = setup.config
    shifts = c.max_shift if c.placement == "shift" and c.augmentation in ("auto", "shift") else None
    arguments = response_curves.plot_arguments(_compared(setup, summary), shifts)
    return [("response", plots.plot_responses, arguments)]


def report(setup: Setup, summary: dict) -> list[str]:
    """Returns a line with the affNIST error of each run, and one with that of this by distance."""
    lines = [
        f"{one['affnist']}: {one['affnist_error']:.2f}% error, {one['model']} in {folder}"
        for folder, one in _compared(setup, summary).items()
    ]
    bins = summary.get("affnist_error_by_distance", [])  # which older summaries do not have
    errors = (f"{row['error']:.2f}% from {row['distance'][0]} pixels" for row in bins)
    return [*lines, *(["by distance from the middle: " + ", ".join(errors)] if bins else [])]


AFFNIST = Task(
    canvas_pipeline,
    classify,
    extra_evaluation=evaluate_affnist,
    should_stop=should_stop,
    figures=of_decoder,
    summary_figures=response_figure,
    report=report,
)
