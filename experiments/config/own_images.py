"""Flags of image files, how they are read and split, and of classes of unequal size."""

import dataclasses
from pathlib import Path

from capsjax.models.capsnet_config import INPUT_NORMS
from experiments.config.flags import setting

RESIZES = ("pad", "crop", "stretch")


@dataclasses.dataclass(frozen=True)
class OwnImages:
    """The settings of folders and tables of image files, and of unbalanced classes."""

    image_size: str = setting(
        "auto",
        "size of the images of a folder in pixels, one side or H,W. auto: the most common one, or "
        "else the middle one, at most 64",
        roles="later",
    )
    resize: str = setting(
        "pad",
        "how images of a folder get their size. pad: the whole image, with borders of the colour "
        "of its own border. crop: its middle. stretch: without keeping the proportions",
        choices=RESIZES,
        roles="later",
    )
    channels: str = setting(
        "auto",
        "channels of the images of a folder. auto: 3 if any image has colours, otherwise 1",
        choices=("auto", "1", "3"),
        roles="later",
    )
    test_fraction: float = setting(
        0.2,
        "fraction of each class of a folder without test images that becomes test images",
        low=0.0,
        high=0.9,
        roles="later",
    )
    split_seed: int = setting(
        0,
        "seed of the split of a folder, the same for all values of --seed, so that their runs have "
        "the same test images",
        low=0,
        high=2**32 - 1,
        roles="later",
    )
    max_bad_fraction: float = setting(
        0.05,
        "largest fraction of the files of a folder that may be unreadable; they are left out",
        low=0.0,
        high=1.0,
        roles="later",
    )
    input_norm: str = setting(
        "auto",
        "normalization of the images inside the network, which the decoder does not see. image: "
        "each to mean zero and variance one. batch: by channel, over the batch. preset: as in the "
        "preset. auto: image for images of two or more channels that nothing else normalizes, "
        "otherwise as in the preset",
        choices=("auto", "preset", *INPUT_NORMS),
        roles="capsules later",
    )
    class_weights: str = setting(
        "none",
        "weights of the losses of images in training. balanced: all classes count alike",
        choices=("none", "balanced"),
        roles="later",
    )
    sampler: str = setting(
        "uniform",
        "which images an epoch visits. uniform: each once. balanced: equally many of each class, "
        "those of rare classes several times",
        choices=("uniform", "balanced"),
        roles="later",
    )
    report: str = setting(
        "auto",
        "whether a run ends with a table by class, a contact sheet of its hardest test images, and "
        "report.html. auto: on folders and tables of images",
        choices=("auto", "yes", "no"),
        roles="free neutral later",
    )


def stem_of(dataset: str) -> str:
    """Returns what names of folders say of a data set: without folders and suffix of a file."""
    if dataset.endswith("/"):
        return Path(dataset).resolve().name or "root"
    return Path(dataset).stem if dataset.endswith((".npz", ".csv", ".jsonl")) else dataset
