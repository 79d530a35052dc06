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

from pathlib import Path

from experiments import plots
from experiments.config.flags import run
from experiments.data import affnist_images
from experiments.tasks import affnist, response_curves
from experiments.tasks.affnist import AffnistConfig
from experiments.tasks.base import Task
from experiments.tasks.classification import classify
from experiments.training import loop

DEFAULTS = AffnistConfig(
    program="affnist",
    preset="affnist",
    max_shift=affnist_images.BORDER,
    validation_fraction=1 / 6,  # 10,000 of MNIST's, as in affNIST
)


TASK = Task(
    affnist.canvas_pipeline,
    classify,
    further=affnist.evaluate_affnist,
    enough=affnist.should_stop,
)


def main(config: AffnistConfig) -> None:
    """Train, and draw the response curves."""
    others = {config.compare: response_curves.finished(config.compare)} if config.compare else {}
    if config.affnist_dir:
        affnist_images.official(config.affnist_dir)  # before anything is trained
    summary = loop.run(config)
    folder = Path(config.workdir or config.resolved(summary["dataset"]).default_workdir())
    path = folder / "figures" / "response.png"
    everything = {str(folder): summary} | others
    plots.responses(path, *response_curves.of_summaries(everything))
    for name, one in everything.items():
        print(f"{one['affnist']}: {one['affnist_error']:.2f}% error, {one['model']} in {name}")
    print(f"{'picture':12}{path}")


if __name__ == "__main__":
    run(main, DEFAULTS)
