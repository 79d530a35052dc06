"""A saved run, opened from its folder: configuration, network and newest variables."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.sharding import SingleDeviceSharding

from experiments.config import Config, UserError, names_of
from experiments.config.flags import parse_flags
from experiments.data import datasets
from experiments.files import BadFile, is_plain, local_path, one_line, read_json
from experiments.files.forms import NETWORK
from experiments.tasks.base import Setup
from experiments.tasks.registry import find_program
from experiments.training.checkpoints import Checkpoints, has_checkpoints
from experiments.training.identity import FORM, RECORDED, check_same_data
from experiments.training.setup import first_state, prepare


class SavedRun(NamedTuple):
    """The contents of the folder of a run."""

    folder: Path
    setup: Setup  # on one device; without examples unless they were requested
    facts: dict  # see experiments.data.datasets.dataset_facts
    step: int  # of the variables
    variables: Any  # what the network's apply takes


def open_run(
    folder: str,
    *,
    accelerator: str = "auto",
    data_dir: str = "",
    cache_dir: str = "",
    examples: bool = False,
) -> SavedRun:
    """Opens a run, finished or not, without changing it.

    Args:
      folder: of the run.
      accelerator: where to compute.
      data_dir, cache_dir: places on this machine; those of the run are not used.
      examples: load the data set; otherwise only the facts in network.json are read.

    Raises:
      UserError: there is no such run, this version can't read it, it has no checkpoint yet, or it
        was trained on other examples.
    """
    folder = local_path(folder, "run")
    here = {"accelerator": accelerator, "num_devices": 1, "parallel": "jit"}
    # The implementation of routing depends on the machine, its result does not.
    here |= {"routing_implementation": "auto", "workdir": str(folder)}
    here |= {n: v for n, v in (("data_dir", data_dir), ("cache_dir", cache_dir)) if v}
    config = stored_config(folder, **here)
    if config.input_norm == "auto":  # what a run of images of several channels means
        config = dataclasses.replace(config, input_norm="preset")
    program = find_program(config.program)
    if not has_checkpoints(config):
        raise UserError(f"{folder} has no checkpoint yet; one is written after each validation")
    if examples:
        setup = prepare(program, config)
        _check_recorded_data(folder, setup.dataset)
        facts = datasets.dataset_facts(setup.dataset)
    else:
        facts = _facts(folder / "network.json")
        setup = prepare(program, config, _without_examples(config, facts))
    shapes = jax.eval_shape(lambda key: first_state(setup, key), jax.random.key(0))
    place = SingleDeviceSharding(setup.devices[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    with Checkpoints(folder, read_only=True) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise UserError(f"{folder} has no checkpoint yet")
        variables = checkpoints.restore_variables(target)
    return SavedRun(folder, setup, facts, step, variables)


def _check_recorded_data(folder: Path, dataset: datasets.Dataset) -> None:
    stored = read_json(folder / "config.json", {f"{RECORDED}?": FORM, "*": is_plain})
    check_same_data(dataset.name, stored.get(RECORDED, {}).get("data", ""), dataset.checksum)


def _facts(path: Path) -> dict:
    try:
        return {"multi_label": False} | read_json(path, NETWORK)
    except BadFile as error:
        raise UserError(f"{error}; repeating the run's command writes it again") from error


def _without_examples(config, facts):
    labels = np.zeros(0, np.int32)
    if facts["multi_label"]:
        labels = np.zeros((0, len(facts["class_names"])), np.uint8)
    none = np.zeros((0, *facts["image_shape"]), np.uint8), labels
    return datasets.Dataset(config.dataset, "network.json", *none * 3, tuple(facts["class_names"]))


def current_summary(run: SavedRun) -> dict:
    """Returns the contents of summary.json of a finished run that was opened with its examples.

    Raises:
      UserError: there is none, or it is of other weights than those of the newest checkpoint, or of
        other examples.
    """
    path = run.folder / "summary.json"
    if not path.exists():
        raise UserError(f"{run.folder} is not finished; repeat its command")
    summary = read_json(path, {"*": is_plain})
    if summary.get("steps") != run.step:
        raise UserError(f"{run.folder} has gone on since its summary; repeat its command")
    dataset = run.setup.dataset
    check_same_data(dataset.name, summary.get("data_checksum", ""), dataset.checksum)
    return summary


def stored_config(workdir: Path | str, /, **changes) -> Config:
    """Returns the (resolved) configuration of a run, from its config.json, with fields changed.

    Settings that describe the machine of the run are not read: they keep their defaults.

    Raises:
      UserError: it is not there, or not one of this version's.
    """
    folder = Path(workdir)
    path = folder / "config.json"
    if not folder.is_dir():
        there = [p.name for p in folder.parent.glob("*/")]
        near = difflib.get_close_matches(folder.name, there, 1)
        hint = f", did you mean {folder.parent / near[0]}?" if near else ""
        raise UserError(f"{folder}: no such folder{hint}")
    try:
        stored = read_json(path, {"program": str, "*": is_plain})
        stored.pop(RECORDED, None)
        defaults = find_program(stored["program"]).defaults
        fields = {f.name: f for f in dataclasses.fields(defaults)}
        if unknown := stored.keys() - fields.keys():
            raise ValueError(f"{sorted(unknown)[0]!r} is no setting")
        # A folder that somebody sends must not say where this machine keeps its files.
        local = names_of(defaults, "local")
        kept = {name: value for name, value in stored.items() if name not in local} | changes
        is_flag = {name: field.metadata.get("flag", True) for name, field in fields.items()}
        given = [f"--{n}={v}" for n, v in kept.items() if is_flag[n] and v is not None]
        others = {n: v for n, v in kept.items() if not is_flag[n]}
        return dataclasses.replace(parse_flags(defaults, given), **others)
    except (ValueError, KeyError, TypeError, AttributeError, flags.Error, UserError) as error:
        raise UserError(
            f"{path} is no configuration of a run of this version: {one_line(error)}"
        ) from error
