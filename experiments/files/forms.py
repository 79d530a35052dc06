"""The forms of files, for :func:`experiments.files.check`. Newer versions may add fields."""

from experiments.files.reader import is_integer, is_number, is_plain

MOST = 10**9  # of anything that is counted
MOST_CLASSES = 10**5


def is_count(value) -> bool:
    """Returns whether a value is an integer in 0..:data:`MOST`."""
    return is_integer(value) and 0 <= value <= MOST


def is_percentage(value) -> bool:
    """Returns whether a value is a number in 0..100."""
    return is_number(value) and 0 <= value <= 100


def is_duration(value) -> bool:
    """Returns whether a value is a finite number, not below zero: seconds, a rate or an error."""
    return is_number(value) and 0 <= value < 1e15


def _or_none(legal):
    return lambda value: value is None or legal(value)


def _is_text(value) -> bool:
    return isinstance(value, str)


SUMMARY = {
    **{f"{name}?": str for name in ("program", "dataset", "model", "recipe")},
    **{f"{name}?": str for name in ("accelerator", "device_kind")},
    **{f"{name}?": _or_none(_is_text) for name in ("routing", "votes", "squash", "loss", "commit")},
    **{f"{name}?": is_count for name in ("steps", "test_examples", "test_errors", "together")},
    **{f"{name}?": is_count for name in ("num_devices", "num_processes")},
    **{f"{name}?": is_integer for name in ("parameters", "seed")},
    **{f"{name}?": is_duration for name in ("test_error", "affnist_error", "affine_error")},
    **{f"{n}?": _or_none(is_duration) for n in ("training_seconds", "images_per_second")},
    **{f"{n}?": _or_none(is_number) for n in ("validation_loss", "depth", "peak_memory_mb")},
    "test_loss?": is_number,
    "wall_seconds?": is_duration,
    "validation_error?": _or_none(is_number),
    "test_correct?": str,
    "data_checksum?": str,
    "versions?": {"*": str},
    "*": is_plain,
}
ENTRY = {
    "key": str,
    "seconds?": is_duration,
    "together?": lambda value: is_count(value) and value > 0,
    "summary?": SUMMARY,
    "correct?": _or_none(_is_text),
    "error?": str,
    "time?": str,
    "*": is_plain,
}
NETWORK = {
    "image_shape": lambda value: (
        isinstance(value, list) and len(value) == 3 and all(is_count(n) and n for n in value)
    ),
    "class_names": lambda value: (
        isinstance(value, list) and 2 <= len(value) <= MOST_CLASSES and all(map(_is_text, value))
    ),
    "border": lambda value: (
        isinstance(value, list)
        and len(value) == 2
        and all(is_number(x) and 0 <= x <= 1 for x in value)
    ),
    "multi_label?": bool,
}
