"""What the network of a run says about images of yours.

    python -m experiments.predict --run=DIR image.png more.jpg folder/
    python -m experiments.predict --run=DIR --invert=yes --fit=digit scans/

Images of any size, grey or colour, 8 or 16 bits, are brought to the network's size. Of each are
printed the class, the length of its capsule and the second choice; below 0.5 no class is present
with confidence, as in the paper. Networks that give logits have probabilities in place of lengths.
A picture shows each image, what the network saw and what its decoder drew from that; where a
folder is given, everything is also written as CSV beside it.

--invert=auto negates an image whose border is as far from that of the training images as black
from white: MNIST is white on black. --fit=pad shows the network the whole image, --fit=digit only
what is brighter than the border after --invert, in a box of 20/28 of the side with its centre of
mass in the middle, as MNIST was made; --fit=auto takes digit for MNIST, but leaves images of the
network's own size alone.

Files that can't be read are named on standard error; the exit status is then 1.
"""

import csv
import dataclasses
import sys
from pathlib import Path

from experiments import plots
from experiments.analysis import saved_run
from experiments.analysis.classify_images import Found, Seen, look, recognise, score_name
from experiments.config import UserError, setting
from experiments.config.flags import run
from experiments.data import image_files
from experiments.tasks import figures

DRAWN = 32  # images in the picture, at most


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this program."""

    run: str = setting("", "folder of the run")
    invert: str = setting("auto", "negate images first", choices=("auto", "yes", "no"))
    fit: str = setting("auto", "how images get their size", choices=("auto", "pad", "digit"))
    output: str = setting("", "the picture, a .png or .pdf; by default predictions.png in the run")
    accelerator: str = setting("auto", "where to compute", choices=("auto", "cpu", "gpu", "tpu"))
    cache_dir: str = setting("", "where compiled programs are kept; by default as in the run")


DEFAULTS = Flags()


def main(flags: Flags, *paths: str) -> None:
    """Print, draw, and write what was found."""
    if not flags.run or not paths:
        raise UserError("give a run and images: --run=DIR image.png more.jpg folder/")
    output = Path(flags.output or Path(flags.run) / "predictions.png")
    if output.suffix not in (".png", ".pdf"):
        raise UserError(f"--output={output} must end in .png or .pdf")
    files = image_files.find(paths)
    opened = saved_run.open_run(flags.run, accelerator=flags.accelerator, cache_dir=flags.cache_dir)
    title = f"{figures.title_of(opened.setup)}, step {opened.step}"
    print(f"{title}; {background(opened.facts)}", file=sys.stderr)
    seen = look(opened, files, flags.invert, flags.fit)
    found = recognise(opened, seen)
    measure = score_name(opened.setup.model_config)
    print(table(seen, found, measure))
    try:
        if any(Path(path).is_dir() for path in paths):
            write_csv(output.with_suffix(".csv"), seen, found, measure)
            print(f"table {output.with_suffix('.csv')}", file=sys.stderr)
        if seen:
            examples = [example(s, f) for s, f in zip(seen[:DRAWN], found)]
            more = f" (the first {DRAWN} of {len(seen)})" if len(seen) > DRAWN else ""
            plots.plot_predictions(output, examples, title + more)
            print(f"picture {output}", file=sys.stderr)
    except OSError as error:
        raise UserError(f"--output={output} can't be written: {error.strerror}") from error
    if len(seen) < len(files):
        sys.exit(1)


def background(facts: dict) -> str:
    """What is known of the training images that decides whether others are negated."""
    low, high = facts["border"]
    if high - low > image_files.UNIFORM_BORDER:
        return "training images have no common background, nothing is inverted by itself"
    return f"borders of training images are {low:.2f} to {high:.2f} (0 is black, 1 white)"


def says(found: Found) -> tuple[str, str]:
    """The class, or that there is none, and the second choice; each with its score."""
    first, second = choices(found)
    return first if found.confident else f"none with confidence ({first})", second


def choices(found: Found) -> list[str]:
    """Both classes, each with its score."""
    return [f"{n} {s:.3f}" for n, s in zip(found.names, found.scores, strict=True)]


def table(seen: list[Seen], found: list[Found], measure: str) -> str:
    """A line for each image."""
    lines = [("file", f"class, {measure}", "second", "taken as")]
    for s, f in zip(seen, found, strict=True):
        lines.append((str(s.file), *says(f), f"{'inverted' if s.inverted else 'it is'}, {s.fit}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [[c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(row).rstrip() for row in rows)


def write_csv(path: Path, seen: list[Seen], found: list[Found], measure: str) -> None:
    """The table with all digits of the scores."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        names = ("file", "class", measure, "second", f"second_{measure}")
        writer.writerow((*names, "confident", "inverted", "fit"))
        for s, f in zip(seen, found, strict=True):
            pairs = [x for pair in zip(f.names, f.scores, strict=True) for x in pair]
            writer.writerow((s.file, *pairs, int(f.confident), int(s.inverted), s.fit))


def example(seen: Seen, found: Found) -> plots.Example:
    """What the picture shows of an image."""
    text = ", then ".join(choices(found))
    text = text if found.confident else f"none: {text}"
    pixels = seen.image, found.input, found.reconstruction
    return plots.Example(*pixels, seen.file.name, text, found.confident)


if __name__ == "__main__":
    run(main, DEFAULTS, words=True)
