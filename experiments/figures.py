"""Draw all figures of a run again, or the losses of several runs in one figure.

    python -m experiments.figures --run=DIR                     into DIR/figures
    python -m experiments.figures --run=DIR --class=7 --image=12 --format=png,pdf
    python -m experiments.figures --run=DIR,DIR,DIR --output=FOLDER

The figures of one run are: training_curves; reconstructions, the paper's Figure 3; perturbations,
its Figure 4, for any class and test image, with the dimensions in the order of their effect;
logit_changes, its Figure A.1, measured during training with --diagnostics or otherwise on the
trained network; routing; and couplings, a map over the grid of primary capsules for each class. The
test set is loaded for them. The figure of several runs is losses, the paper's Figure A.2, which
needs no data.
"""

import dataclasses
from pathlib import Path

from experiments import plots
from experiments.analysis import saved_run
from experiments.analysis.saved_run import stored_config
from experiments.config import UserError, setting
from experiments.config.flags import run
from experiments.files import check_folder, local_path, read_json, split_paths
from experiments.files.forms import SUMMARY
from experiments.tasks import figures, routing_diagnostics
from experiments.tasks.base import Figure
from experiments.training.evaluate import make_evaluate
from experiments.training.metrics import read_rows

KINDS = ("png", "pdf")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this command."""

    run: str = setting("", "folder of the run, or several, separated by commas")
    format: str = setting("png", "png, pdf, or both, separated by a comma")
    output: str = setting("", "folder of the figures; by default figures in the (first) run")
    class_: str = setting("", "name or number of the class in Figure 4; by default the image's")
    image: int = setting(
        -1, "test image in Figure 4; -1: the first (of the class) classified correctly", low=-1
    )
    accelerator: str = setting("auto", "where to compute", choices=("auto", "cpu", "gpu", "tpu"))
    data_dir: str = setting(
        "", "directory of prepared TensorFlow Datasets; that of the run is not used"
    )
    cache_dir: str = setting(
        "", "data sets and compiled programs; by default the user's cache folder"
    )


DEFAULTS = Flags()


def main(flags: Flags) -> None:
    """Draws the figures, and prints their paths.

    Raises:
      UserError: a flag is wrong, a run can't be used, or the output can't be written.
    """
    folders, kinds = split_paths(flags.run), flags.format.split(",")
    folders = [str(local_path(folder, "run")) if folder else "" for folder in folders]
    if not all(folders) or len(set(folders)) < len(folders):
        raise UserError("give a run, or several different ones: --run=DIR,DIR")
    if not set(kinds) <= set(KINDS):
        raise UserError(f"--format={flags.format}: png, pdf, or png,pdf is needed")
    output = local_path(flags.output or str(Path(folders[0]) / "figures"), "output")
    if not flags.output:
        check_folder(output.parent)
    if len(folders) > 1 and (flags.class_ or flags.image >= 0):
        raise UserError("--class and --image are for the figures of one run")
    found = of_runs(folders) if len(folders) > 1 else of_run(flags)
    try:
        for path in figures.save(found, output, kinds):
            print(path)
    except OSError as error:
        raise UserError(f"--output={output} can't be written: {error.strerror}") from error


def of_runs(folders: list[str]) -> list[Figure]:
    """Returns the figure of the losses of several runs, named by the flags in which they differ."""
    configs = [stored_config(folder) for folder in folders]
    fields = [config.identity() for config in configs]
    differ = [n for n in fields[0] if any(f.get(n) != fields[0][n] for f in fields)]
    names = [", ".join(f"{n}={f.get(n)}" for n in differ) for f in fields]
    if len(set(names)) < len(names):
        names = [f"{folder} {name}".strip() for folder, name in zip(folders, names, strict=True)]
    rows = [read_rows(Path(folder) / "metrics.jsonl") for folder in folders]
    same = ", ".join(str(fields[0][n]) for n in ("dataset", "model") if n not in differ)
    return [("losses", plots.plot_losses, (dict(zip(names, rows, strict=True)), same))]


def of_run(flags: Flags) -> list[Figure]:
    """Returns all figures of one run, and prints the effects of the dimensions in Figure 4."""
    opened = saved_run.open_run(
        flags.run,
        accelerator=flags.accelerator,
        data_dir=flags.data_dir,
        cache_dir=flags.cache_dir,
        examples=True,
    )
    setup, variables = opened.setup, opened.variables
    if getattr(setup.config, "ensemble", 1) > 1:
        raise UserError(f"{flags.run} is an ensemble, of which there are no figures")
    raw, labels = setup.pipeline.held_out("test")
    if (flags.class_ or flags.image >= 0) and labels.ndim != 1:
        raise UserError(f"--class and --image need one class an image, unlike {flags.run}")
    rows = read_rows(opened.folder / "metrics.jsonl")
    found = list(figures.of_training(setup, rows))
    if figures.has_decoder(setup) and labels.ndim == 2 and not setup.dataset.multi_label:
        values = make_evaluate(setup)(variables, raw, labels)
        found += setup.task.figures(setup, variables, values)  # of pairs
    elif figures.has_decoder(setup) and not setup.dataset.multi_label:
        changed, values = perturbed(opened, flags)
        for dim, effect in zip(changed.dims, changed.effects, strict=True):
            print(f"dim {dim:3}  mean squared change of a pixel {effect:.2e}")
        of_task = setup.task.figures(setup, variables, values)
        found += [figure for figure in of_task if figure[0] != "perturbations"]
        found.append(figures.of_class(setup, changed))
    elif flags.class_ or flags.image >= 0:
        raise UserError(f"--class and --image need a decoder, and {flags.run} has none")
    if routing_diagnostics.can_trace(setup):
        found += routing_diagnostics.figures(setup, variables, rows, figures.title_of(setup))
    summary = opened.folder / "summary.json"
    if summary.exists() and (values := read_json(summary, SUMMARY)).get("steps") == opened.step:
        found += setup.task.summary_figures(setup, values)
    return found


def perturbed(opened: saved_run.SavedRun, flags: Flags) -> tuple[figures.Perturbed, dict]:
    """Returns what Figure 4 shows, and the metrics of the test set.

    Raises:
      UserError: there is no such class or image.
    """
    setup, (raw, labels) = opened.setup, opened.setup.pipeline.held_out("test")
    label = number(flags.class_, setup.dataset.class_names)
    if flags.image >= len(raw):
        raise UserError(f"--image={flags.image}: there are {len(raw)} test images, from 0")
    values = make_evaluate(setup)(opened.variables, raw, labels)
    example = flags.image
    if example < 0:
        wanted = True if label is None else labels == label
        example = figures.first_correct(values["accuracy"] > 0, wanted)
    label = int(labels[example]) if label is None else label
    return figures.perturbed(setup, opened.variables, example, label), values


def number(name: str, names: tuple[str, ...]) -> int | None:
    """Returns the number of a class given by name or number, or None if none is given.

    Raises:
      UserError: there is no such class.
    """
    if not name:
        return None
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    some = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise UserError(f"--class={name}: the classes are {some}, or 0 to {len(names) - 1}")


if __name__ == "__main__":
    run(main, DEFAULTS)
