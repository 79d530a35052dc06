"""Compare the test errors of finished runs, image by image.

    python -m experiments.compare DIR DIR
    python -m experiments.compare results/multimnist/cnn_18_epochs.json other/summary.json
    python -m experiments.compare A0,A1,A2 B0,B1,B2            three seeds each

Each argument is a row of the table: a run, or several that differ in their seeds, joined by commas.
A run is its folder, or the file summary.json under any name; no data and no weights are read. The
first row is the one with which the others are compared.

p is that of the exact sign test over the images on which one row is right for more seeds than the
other, with one seed McNemar's, with Holm's correction over the rows. With several seeds the
interval of the difference is Student's, over the seeds that both rows have; with one it is that of
paired images, and says nothing about other seeds: then there is no verdict.

With ``--images=affnist`` it is about the transformed digits of runs of experiments.affnist.
"""

import base64
import dataclasses
import itertools
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import Config, UserError, names_of, setting
from experiments.config.flags import run
from experiments.files import BadFile, is_integer, local_path, read_json, split_paths
from experiments.files.bits import unpack
from experiments.files.forms import SUMMARY, is_count, is_percentage
from experiments.plots.text_tables import markdown
from experiments.sweeps.ledger import words_of
from experiments.sweeps.statistics import (
    Comparison,
    compare,
    corrected,
    of_mean,
    of_paired_difference,
    of_rate,
)
from experiments.training.results import output_path, provenance, write_results

# Of a summary: what decides which test images a run has.
TEST_IMAGES = ("program", "data_checksum", "test_examples", "shift")
IMAGES = ("test", "affnist")  # what the names of the fields about their errors begin with
NEEDED = {
    "command": lambda text: isinstance(text, str) and len(words_of(text)) > 2,
    "seed": is_integer,
}
COUNTED = {
    "error": is_percentage,
    "errors": is_count,
    "examples": lambda n: is_count(n) and n > 0,
    "correct": str,
}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this command."""

    images: str = setting(
        "test", "affnist: rotated, sheared and scaled digits of experiments.affnist", choices=IMAGES
    )
    output: str = setting("", "path of the results without suffix; by default none are written")


DEFAULTS = Flags()


def main(flags: Flags, *places: str) -> None:
    """Compares, prints the table, and writes the results.

    Raises:
      UserError: there are fewer than two rows, a run can't be read or is named twice, runs of a
        row differ in more than the seed, rows have other test images, or the output can't be
        written.
    """
    if len(set(places)) < max(2, len(places)):
        raise UserError("name two different runs or more: DIR DIR, or A0,A1 B0,B1 with more seeds")
    output = output_path(flags.output) if flags.output else None
    rows = [read_row(place, flags.images) for place in places]
    check_different(rows)
    first, *others = (test_images(next(iter(row.values())), flags.images) for row in rows)
    for place, other in zip(places[1:], others, strict=True):
        for name, value in other.items():
            if None not in (value, first[name]) and value != first[name]:
                raise UserError(f"{place} has other test images than {places[0]}: {name}={value}")
    measured = measure(rows)
    text = to_markdown(measured, flags.images)
    print(text)
    if output:
        # Absolute paths are of this machine alone.
        words = [",".join(map(_name, split_paths(place))) for place in places]
        words += [f"--images={flags.images}"] * (flags.images != DEFAULTS.images)
        seeds = sorted({seed for row in rows for seed in row})
        origin = provenance(shlex.join(["python", "-m", "experiments.compare", *words]), seeds)
        write_results(output, {"program": "compare"} | origin | {"rows": measured}, text)


def _name(place: str) -> str:
    return "RUN" if Path(place).expanduser().is_absolute() else place


def check_different(rows: list[dict[int, dict]]) -> None:
    """Raises a UserError if a run is in two rows, as a folder and as a copy of its summary."""
    for one, other in itertools.combinations(rows, 2):
        for seed in one.keys() & other.keys():
            if one[seed] == other[seed]:
                raise UserError(f"one run is named twice: {one[seed]['command']}")


def read_row(place: str, images: str = IMAGES[0]) -> dict[int, dict]:
    """Returns the summaries of the runs of a row by seed.

    Args:
      place: folders or files, joined by commas.
      images: of :data:`IMAGES`. Fields about those are in the place of the ones about test images.

    Raises:
      UserError: one of them is no finished run, or they differ in more than the seed.
    """
    row = {}
    for part in split_paths(place):
        path = local_path(part, "run")
        path = path / "summary.json" if path.is_dir() else path
        try:
            counted = {f"{images}_{name}": form for name, form in COUNTED.items()}
            summary = read_json(path, SUMMARY | NEEDED | counted)
            summary |= {f"test_{name}": summary[f"{images}_{name}"] for name in COUNTED}
            packed = base64.b64decode(summary["test_correct"], validate=True)
            if len(packed) != -(-summary["test_examples"] // 8):
                raise ValueError(f"'{images}_correct' is not about all images")
        except (BadFile, ValueError) as error:
            raise UserError(f"{part} is no finished run: {error}") from error
        if summary["seed"] in row:
            raise UserError(f"{place} has two runs with seed {summary['seed']}")
        row[summary["seed"]] = summary
    kinds = {(_that_matter(one), *test_images(one, images).values()) for one in row.values()}
    if len(kinds) > 1:
        raise UserError(f"{place}: these runs differ in more than the seed")
    return row


def _that_matter(summary: dict) -> tuple[str, ...]:
    """The words of the command but the seed and what has no part in the result."""
    names = {"seed", *names_of(Config(), "neutral")}
    words = words_of(summary["command"])
    return tuple(w for w in words if w.partition("=")[0].removeprefix("--") not in names)


def test_images(summary: dict, images: str = IMAGES[0]) -> dict[str, Any]:
    """Returns what decides which images, of :data:`IMAGES`, a run has; None is unknown."""
    names = (*TEST_IMAGES, "affnist") if images == "affnist" else TEST_IMAGES
    found = {name: None if summary.get(name) == "" else summary.get(name) for name in names}
    # Of affnist: where its translated digits are, which are the test images.
    moved = [w for w in _that_matter(summary) if w.startswith("--placement=")]
    return found | {"placement": moved[0] if moved and images == "test" else ""}


def measure(rows: list[dict[int, dict]]) -> list[dict]:
    """Returns errors and comparisons with the first row.

    Args:
      rows: summaries by seed.
    """
    correct = [
        {seed: unpack(s["test_correct"], s["test_examples"]) for seed, s in row.items()}
        for row in rows
    ]
    pairs = [compare(one, correct[0]) for one in correct[1:]]
    if None in pairs:
        raise UserError("a row has no seed that the first row has")
    return [
        _own(row) | (_compared(pair, row) if pair else {})
        for row, pair in zip(rows, [None, *corrected(pairs)], strict=True)
    ]


def _own(row: dict[int, dict]) -> dict:
    errors, (one, *_) = [summary["test_error"] for summary in row.values()], row.values()
    if len(row) > 1:
        low, high = of_mean(errors)
    else:
        low, high = (100 * x for x in of_rate(one["test_errors"], one["test_examples"]))
    return {
        "name": name_of(one),
        "seeds": list(row),
        "test_errors": errors,
        "mean": float(np.mean(errors)),
        "interval": [max(0.0, low), min(100.0, high)],
    }


def _compared(pair: Comparison, row: dict[int, dict]) -> dict:
    one = next(iter(row.values()))
    of_images = of_paired_difference(pair.wins, pair.losses, one["test_examples"])
    return {
        "difference": pair.difference,
        "difference_interval": list(pair.interval or of_images),
        **{name: getattr(pair, name) for name in ("wins", "losses", "p", "verdict")},
    }


def name_of(summary: dict) -> str:
    """Returns the flags of a run without its seed."""
    _, _, module, *flags = _that_matter(summary)
    return " ".join([module.removeprefix("experiments."), *flags])


def to_markdown(rows: list[dict], images: str = IMAGES[0]) -> str:
    """Returns the table for readers."""
    error = {"test": "test error, %", "affnist": "affNIST error, %"}[images]
    headings = ["run", error, "95% interval", "difference", "its 95% interval"]
    headings += ["images won and lost", "p", "verdict"]
    lines = []
    for row in rows:
        line = [row["name"], f"{row['mean']:.2f}", _range(row["interval"])]
        if "difference" in row:
            line += [f"{row['difference']:+.2f}", _range(row["difference_interval"])]
            line += [f"{row['wins']} and {row['losses']}", f"{row['p']:.2g}", row["verdict"]]
        lines.append(line + [""] * (len(headings) - len(line)))
    return markdown(headings, lines)


def _range(interval: list[float]) -> str:
    return "{:.2f} to {:.2f}".format(*interval)


if __name__ == "__main__":
    run(main, DEFAULTS, words=True)
