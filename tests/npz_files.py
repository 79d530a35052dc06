"""Random images as user-provided arrays, and short runs on them."""

import dataclasses

import numpy as np

from experiments.tasks import registry


def arrays(shape, classes, train=40, test=30):
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (train, *shape), np.uint8),
        "train_labels": np.arange(train) % classes,
        "test_images": rng.integers(0, 256, (test, *shape), np.uint8),
        "test_labels": np.arange(test) % classes,
    }


def short(program, path, tmp_path, **changes):
    return dataclasses.replace(
        registry.find_program(program).defaults,
        dataset=path,
        preset="tiny",
        steps=2,
        batch_size=8,
        num_devices=1,
        cache_dir="none",
        accelerator="cpu",
        workdir=str(tmp_path / "run"),
        **changes,
    )
