"""Robustness to affine transformations that were never trained on: affNIST.

    python -m experiments.affnist                                MNIST, or the bundled digits
    python -m experiments.affnist --model=cnn --compare=RUN      a CNN of the same size
    python -m experiments.affnist --affnist_dir=FOLDER           the official test files
    python -m experiments.affnist --dataset=digits --preset=tiny --stop_at=90

Section 5.1 of Sabour, Frosst & Hinton (2017): digits anywhere on a black canvas, 40x40 for MNIST,
moved but not otherwise transformed, are trained on until 99.23% of held-out ones are recognised;
then the network sees affNIST (Tieleman 2013), whose digits are also rotated, sheared and scaled.
Networks are compared at the same accuracy, not at the end of training. Without the official files
the test digits are transformed here, within affNIST's ranges: "synthetic affNIST". Response curves
show accuracy under each transformation alone; those of another run are drawn beside them.
"""

import dataclasses
from pathlib import Path

from experiments import affnist_data, affnist_task, drawing, loop, response
from experiments.config import Config
from experiments.settings import run, setting
from experiments.task import Task, classify


@dataclasses.dataclass(frozen=True)
class AffnistConfig(Config):
    """Flags of this program."""

    affnist_dir: str = setting(
        "", "official affNIST test files: test.mat, or a folder with test_batches", free=True
    )
    stop_at: float = setting(
        99.23,
        "stop when so many percent of the translated validation digits are recognised, after an "
        "epoch or, closer, after --validate_every steps; 0: never",
        low=0.0,
        high=100.0,
        free=True,
    )
    curve_images: int = setting(
        1000, "test digits for the response curves; 0: all", low=0, free=True
    )
    compare: str = setting(
        "", "folder of a finished run, whose response curves are drawn too", free=True
    )


DEFAULTS = AffnistConfig(
    program="affnist",
    preset="affnist",
    max_shift=affnist_data.BORDER,
    validation_fraction=1 / 6,  # 10,000 of MNIST's, as in affNIST
)


TASK = Task(
    affnist_task.stream,
    classify,
    further=affnist_task.further,
    enough=affnist_task.enough,
)


def main(config: AffnistConfig) -> None:
    """Train, and draw the response curves."""
    others = {config.compare: response.finished(config.compare)} if config.compare else {}
    if config.affnist_dir:
        affnist_data.official(config.affnist_dir)  # before anything is trained
    summary = loop.run(config)
    folder = Path(config.workdir or config.resolved(summary["dataset"]).default_workdir())
    path = folder / "figures" / "response.png"
    everything = {str(folder): summary} | others
    drawing.responses(path, *response.of_summaries(everything))
    for name, one in everything.items():
        print(f"{one['affnist']}: {one['affnist_error']:.2f}% error, {one['model']} in {name}")
    print(f"{'picture':12}{path}")


if __name__ == "__main__":
    run(main, DEFAULTS)
