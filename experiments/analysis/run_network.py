"""The network of a saved run, as pretrained networks are described."""

import capsjax
from experiments.analysis.classify_images import Classifier
from experiments.analysis.saved_run import SavedRun
from experiments.tasks import figures
from experiments.tasks.predictions import network_of

CENTRED = ("mnist",)  # data sets whose images were made as image_files.centre_digit makes them


def preprocessing_of(run: SavedRun) -> capsjax.Preprocessing:
    """Returns what happens to images before the network of a run sees them."""
    setup = run.setup
    pairs = setup.pipeline.from_image is not None  # of which an image has the size of the input
    centred = setup.config.dataset.split(":")[0] in CENTRED and not pairs
    return capsjax.Preprocessing(
        tuple(setup.pipeline.shape if pairs else run.facts["image_shape"]),
        setup.pipeline.steps,
        tuple(run.facts["border"]),
        "digit" if centred else setup.config.resize,
    )


def classifier_of(run: SavedRun) -> Classifier:
    """Returns the network of a run, for the classification of image files."""
    return Classifier(
        f"{figures.title_of(run.setup)}, step {run.step}",
        network_of(run.setup),
        run.variables,
        tuple(run.facts["class_names"]),
        preprocessing_of(run),
    )
