"""Classify image files by the network of a run, or by a pretrained one.

    python -m experiments.predict image.png
    python -m experiments.predict --model=NAME image.png more.jpg folder/
    python -m experiments.predict --run=DIR --invert=yes --fit=digit scans/
    python -m experiments.predict --run=DIR --json - < image.png

--model is the name of a packaged network, a folder of capsjax.save_pretrained, or hf://OWNER/NAME
on the Hugging Face Hub. Without it and --run, the packaged network for MNIST reads digits.

Images of any size, grey or colour, with 8 or 16 bits, are converted to the network's size. For each
image the class, the length of its capsule and the second choice are printed; if no length reaches
0.5, no class is present with confidence, as in the paper. Networks that return logits have
probabilities instead of lengths. A figure shows each image, the input of the network and the
reconstruction by its decoder. If a folder is given, everything is also written as CSV next to the
figure, with --json as JSON, with the scores of all classes. Runs on pairs name two classes, runs on
images with sets of labels all classes of 0.5 or more; ensembles have the mean scores of their
networks. A network of stereo pairs, or of another number of channels than 1 and 3, takes the grey
files of an image joined by commas, left.png,right.png. The file - is standard input. Files are
written beside the run, those of a pretrained network only with --output.

--invert=auto inverts an image if its border is as far from that of the training images as black is
from white: MNIST is white on black. --fit=pad gives the whole image to the network. --fit=digit
gives it only what is brighter than the border after --invert, scaled to 20/28 of the side, with its
centre of mass in the middle, as MNIST was made. --fit=auto chooses digit for MNIST, unless the
image has the network's size already, --resize of the run for folders of images, otherwise pad.

Files that can't be read are named on standard error; the exit status is then 1, and 2 if there is
no other.
"""

import csv
import dataclasses
import sys
from pathlib import Path

from experiments.analysis.classify_images import (
    Classification,
    Classifier,
    PreparedImage,
    classify,
    open_pretrained,
    prepare_images,
)
from experiments.config import UserError, setting
from experiments.config.flags import run
from experiments.data import image_files
from experiments.files import formula_free, fresh, local_path, one_line, write_json
from experiments.tasks.predictions import score_name
from experiments.training.devices import find_devices, keep_compiled_programs

DEFAULT_MODEL = "mnist_small"
MAX_DRAWN = 32  # images in the figure


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this command."""

    run: str = setting("", "folder of the run")
    model: str = setting(
        "",
        "in place of a run: a packaged network, the folder of one, or hf://OWNER/NAME; by default "
        f"{DEFAULT_MODEL}",
    )
    invert: str = setting("auto", "invert images first", choices=("auto", "yes", "no"))
    fit: str = setting(
        "auto",
        "how images are brought to the size of the network",
        choices=("auto", "pad", "crop", "stretch", "digit"),
    )
    json: bool = setting(
        False, "also write predictions.json, with the scores of all classes, beside the figure"
    )
    output: str = setting(
        "", "figure, .png or .pdf; by default predictions.png in the run, or none"
    )
    accelerator: str = setting("auto", "where to compute", choices=("auto", "cpu", "gpu", "tpu"))
    cache_dir: str = setting("", "folder of compiled programs; by default the user's cache folder")


DEFAULTS = Flags()


def main(flags: Flags, *paths: str) -> None:
    """Classifies, prints, draws and writes.

    Raises:
      UserError: a flag is wrong, the run can't be used, or the output can't be written.
    """
    if not paths:
        raise UserError("give images: --run=DIR or --model=NAME, and image.png more.jpg folder/")
    output = output_of(flags)
    if paths.count("-") > 1:
        raise UserError("standard input (-) holds one image; give - once")
    files = image_files.find(paths)
    classifier = open_classifier(flags)
    print(f"{classifier.title}; {background(classifier.preprocessing.border)}", file=sys.stderr)
    images = prepare_images(classifier, files, flags.invert, flags.fit)
    if not images:
        raise UserError("no image could be read")
    found = classify(classifier, images)
    measure = score_name(classifier.network.config)
    print(table(images, found, measure))
    try:
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
        if output and any(Path(path).is_dir() for path in paths):
            write_csv(output.with_suffix(".csv"), images, found, measure)
            print(f"table {output.with_suffix('.csv')}", file=sys.stderr)
        if output and flags.json:
            write_json(output.with_suffix(".json"), as_json(images, found, measure))
            print(f"table {output.with_suffix('.json')}", file=sys.stderr)
        if output:
            draw(output, classifier.title, images, found)
            print(f"figure {output}", file=sys.stderr)
    except OSError as error:
        raise UserError(f"--output={output} can't be written: {error.strerror}") from error
    if len(images) < len(files):
        sys.exit(1)


def output_of(flags: Flags) -> Path | None:
    """Returns the path of the figure, None if nothing is written.

    Raises:
      UserError: it is no path of a figure, or --json has no place.
    """
    if flags.run and flags.model:
        raise UserError("give --run or --model, not both")
    if not flags.output and not flags.run:
        if flags.json:
            raise UserError("--json with a pretrained network needs --output=NAME.png")
        return None
    run = local_path(flags.run, "run") / "predictions.png"
    output = local_path(flags.output, "output") if flags.output else run
    if output.suffix not in (".png", ".pdf"):
        raise UserError(f"--output={output} must end in .png or .pdf")
    return output


def open_classifier(flags: Flags) -> Classifier:
    """Returns the network that the flags name.

    A pretrained one needs no package of those that read runs and plot figures.

    Raises:
      UserError: there is none, or it can't be used.
    """
    if flags.run:
        from experiments.analysis import run_network, saved_run

        places = {"accelerator": flags.accelerator, "cache_dir": flags.cache_dir}
        return run_network.classifier_of(saved_run.open_run(flags.run, **places))
    find_devices(flags.accelerator, 1)
    keep_compiled_programs(flags.cache_dir)
    return open_pretrained(flags.model or DEFAULT_MODEL)


def draw(
    output: Path, title: str, images: list[PreparedImage], found: list[Classification]
) -> None:
    """Plots the first images."""
    from experiments import plots

    more = f" (the first {MAX_DRAWN} of {len(images)})" if len(images) > MAX_DRAWN else ""
    examples = [plots.Example(*example(i, f)) for i, f in zip(images[:MAX_DRAWN], found)]
    plots.plot_predictions(output, examples, title + more)


def background(border: tuple[float, float]) -> str:
    """Describes the borders of training images, which decide whether --invert=auto inverts."""
    low, high = border
    if high - low > image_files.UNIFORM_BORDER:
        return "training images have no common background, so --invert=auto inverts no image"
    return f"borders of training images are {low:.2f} to {high:.2f} (0 is black, 1 white)"


def describe(found: Classification) -> tuple[str, str]:
    """Returns the classes, or that there are none, and the next choice; each with its score."""
    first, *others = choices(found)
    if not found.confident:
        first = f"none with confidence ({first})"
    return first, others[0] if others else ""


def choices(found: Classification) -> list[str]:
    """Returns the named classes together, or the best one, and all others, each with its score."""
    every = [f"{n} {s:.3f}" for n, s in zip(found.names, found.scores, strict=True)]
    count = max(found.named, 1)
    return [" + ".join(every[:count]), *every[count:]]


def as_json(images: list[PreparedImage], found: list[Classification], measure: str) -> list[dict]:
    """Returns what predictions.json says of each image."""
    return [
        {
            "file": str(i.file),
            "classes": list(f.names[: f.named]),
            "confident": f.confident,
            "measure": measure,
            "scores": dict(f.every),
            "inverted": bool(i.inverted),
            "fit": i.fit,
        }
        for i, f in zip(images, found, strict=True)
    ]


def table(images: list[PreparedImage], found: list[Classification], measure: str) -> str:
    """Returns a table with a line for each image."""
    lines = [("file", f"class, {measure}", "second", "taken as")]
    for i, f in zip(images, found, strict=True):
        how = f"{'inverted' if i.inverted else 'as it is'}, {i.fit}"
        lines.append((one_line(i.file), *map(one_line, describe(f)), how))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [[c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(row).rstrip() for row in rows)


def write_csv(
    path: Path, images: list[PreparedImage], found: list[Classification], measure: str
) -> None:
    """Writes the table with all digits of the scores; several classes are joined by semicolons."""
    with fresh(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        names = ("file", "class", measure, "second", f"second_{measure}")
        writer.writerow((*names, "confident", "inverted", "fit"))
        for i, f in zip(images, found, strict=True):
            count = max(f.named, 1)
            first = ";".join(f.names[:count]), ";".join(map(str, f.scores[:count]))
            second = (f.names[count], f.scores[count]) if len(f.names) > count else ("", "")
            row = (i.file, *first, *second, int(f.confident), int(i.inverted), i.fit)
            writer.writerow(map(formula_free, row))


def example(image: PreparedImage, found: Classification) -> tuple:
    """Returns what the figure shows for an image, the fields of ``plots.Example``."""
    text = ", then ".join(choices(found))
    text = text if found.confident else f"none: {text}"
    pixels = image.image, found.input, found.reconstruction
    return *pixels, one_line(image.file.name), one_line(text), found.confident


if __name__ == "__main__":
    run(main, DEFAULTS, words=True)
