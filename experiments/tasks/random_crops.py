"""Classification of crops: the task of cifar10 and smallnorb."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from experiments.config import Config, UserError, setting
from experiments.data.augment import Preprocessing, square_crops
from experiments.tasks.base import Task
from experiments.tasks.classification import image_pipeline
from experiments.tasks.ensemble import objective, summary_fields
from experiments.tasks.figures import of_decoder


@dataclasses.dataclass(frozen=True)
class CropsConfig(Config):
    """Settings with a flag for ensembles and without shifts, whose place crops take."""

    max_shift: int = dataclasses.field(default=0, metadata={"flag": False})
    ensemble: int = setting(
        1,
        "number of networks, trained on the same batches; their scores are averaged",
        low=1,
    )


def random_crops(
    size: int,
    *,
    flip: bool = False,
    halve: bool = False,
    published: Mapping[str, Preprocessing] = MappingProxyType({}),
) -> Task:
    """Returns the task of square crops, see :func:`experiments.data.augment.square_crops`.

    Pixels are standardized, except with ``--reconstruction``: the decoder ends in a sigmoid, so
    that they have to stay in [0, 1].

    Args:
      size, flip, halve: of the crops.
      published: the preprocessing of presets that have one of their own, and no decoder.
    """

    def preprocess(config: CropsConfig) -> Preprocessing:
        if config.preset in published:
            if config.augmentation != "auto":
                raise UserError(
                    f"--augmentation={config.augmentation} can't be given with --preset="
                    f"{config.preset}, whose images are changed as published"
                )
            return published[config.preset]
        return square_crops(
            size,
            flip=flip,
            halve=halve,
            standardized=not config.reconstruction,
            augmentation=config.augmentation,
        )

    return Task(image_pipeline(preprocess), objective, summary_fields, figures=of_decoder)
