"""Flags of where training images are kept and how they are read."""

import dataclasses

from experiments.config.flags import setting

HERE = "free neutral local later"  # the roles of what is about this machine alone


@dataclasses.dataclass(frozen=True)
class Reading:
    """The settings of data that may be larger than the memory."""

    input: str = setting(
        "auto",
        "where training images are. device: all of them in the memory of the device. grain: on "
        "disk, from where the package grain reads each batch ahead. auto: grain if they are larger "
        "than a share of the free memory. The batches are the same",
        choices=("auto", "device", "grain"),
        roles=HERE,
    )
    input_workers: int = setting(
        0,
        "number of processes that decode images with --input=grain; 0: threads of this process",
        low=0,
        high=256,
        roles=HERE,
    )
