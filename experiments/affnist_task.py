"""What affNIST adds to the training loop: digits on a canvas, an early end, more test sets."""

import functools

from experiments import affnist_data, response
from experiments.affnist_data import BORDER, on_canvas, transformed, translated
from experiments.errors import UserError
from experiments.preprocess import pad, shift, to_unit
from experiments.sampling import Source
from experiments.task import Stream


def stream(config, dataset) -> Stream:
    """Digits somewhere on the canvas; those held out where a fixed draw has put them.

    Args:
      config: of :mod:`experiments.affnist`. dataset: of digits.

    Raises:
      UserError: flags that contradict each other or the data set.
    """
    if config.stop_at and not config.validation_fraction:
        raise UserError(f"--stop_at={config.stop_at:g} needs a --validation_fraction")
    if config.affnist_dir and (dataset.image_shape != (28, 28, 1) or dataset.num_classes != 10):
        raise UserError(f"--affnist_dir goes with MNIST, not with --dataset={dataset.name}")
    height, width, channels = dataset.image_shape

    def example(key, source, row):
        canvas = pad(source.images[row], BORDER)
        return to_unit(shift(key, canvas, config.max_shift)), source.labels[row]

    @functools.cache
    def held_out(split):
        images = on_canvas(getattr(dataset, f"{split}_images"))
        labels = getattr(dataset, f"{split}_labels")
        return images if split == "train" else translated(images), labels

    def to_input(pixels):
        """Of a canvas, or of a digit, which comes to its middle."""
        return to_unit(pad(pixels, (height + 2 * BORDER - pixels.shape[0]) // 2))

    shape = (height + 2 * BORDER, width + 2 * BORDER, channels)
    source = Source(dataset.train_images, dataset.train_labels)
    return Stream(shape, source, example, held_out, to_input)


def enough(config, rows: list[dict]) -> bool:
    """Whether the newest validation is as good as ``--stop_at`` demands."""
    errors = [row["validation_error"] for row in rows if "validation_error" in row]
    # The accuracy is a mean of float32 ones and zeros.
    return bool(config.stop_at and errors and 100 - errors[-1] >= config.stop_at - 1e-4)


def further(setup, evaluate, rows: list[dict]) -> dict:
    """Fields of summary.json: where training stopped, affNIST, response curves."""
    config, data = setup.config, setup.dataset
    digits, labels = on_canvas(data.test_images), data.test_labels
    if config.affnist_dir:
        name, examples = "official affNIST", affnist_data.official(config.affnist_dir)
    else:
        name, examples = "synthetic affNIST", (transformed(digits), labels)
    wrong = evaluate(*examples)["accuracy"] < 1
    few = config.curve_images or len(labels)
    return {
        "stop_at": config.stop_at,
        "stopped_at": rows[-1]["step"] if enough(config, rows) else None,
        "affnist": name,
        "affnist_examples": len(wrong),
        "affnist_errors": int(wrong.sum()),
        "affnist_error": round(100 * float(wrong.mean()), 4),
        "response_images": len(labels[:few]),
        "response": response.curves(evaluate, digits[:few], labels[:few]),
    }
