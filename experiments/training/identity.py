"""What a run is trained on, by its contents: recorded in config.json and compared when it goes on.

A name, of data or of another run, says nothing of what is behind it. A run whose data have other
contents is refused; the same contents may have another name.
"""

import hashlib
from pathlib import Path
from typing import Any

import jax

from experiments import UserError
from experiments.config import Config
from experiments.data import affnist_images
from experiments.data.dataset_cache import checksum
from experiments.data.image_listing import is_own
from experiments.files import BadFile, read_json
from experiments.files.forms import SUMMARY
from experiments.tasks.base import Setup
from experiments.training import frozen_couplings, initial_weights
from experiments.training.results import versions

RECORDED = "recorded"  # the name in config.json, beside those of the settings
FORM = {
    "data?": str,
    "source?": str,
    "affnist_dir?": str,
    "frozen_from?": str,
    "init_from?": str,
    "random_numbers?": str,
    "versions?": {"*": str},
}
NUMERIC = ("jax", "flax", "optax", "numpy")  # packages whose versions may change numbers


def record_of(setup: Setup) -> dict[str, Any]:
    """Returns the checksums of everything that a run reads, and the versions of the packages."""
    config = setup.config
    # With x64 JAX draws other random numbers: other batches and other changes of images.
    bits = 64 if jax.config.jax_enable_x64 else 32
    record = {"data": setup.dataset.checksum, "source": setup.dataset.source}
    record["random_numbers"] = f"{bits} bits"
    if folder := getattr(config, "affnist_dir", ""):
        record["affnist_dir"] = checksum(*affnist_images.official_test_set(folder))
    if config.routing == "frozen":
        record["frozen_from"] = _result_of(frozen_couplings.folder_of(config))
    if config.init_from:
        record["init_from"] = initial_weights.checksum_of(config.init_from)
    record = {name: value for name, value in record.items() if value}
    return record | {"versions": versions()}


def _result_of(folder: Path) -> str:
    """A checksum of what a finished run has learned, or nothing if it is not there any more."""
    try:
        summary = read_json(folder / "summary.json", SUMMARY)
    except BadFile:
        return ""
    names = ("steps", "test_loss", "test_correct")
    return hashlib.sha256(repr([summary.get(n) for n in names]).encode()).hexdigest()[:32]


def differences(config: Config, record: dict, stored: dict) -> list[str]:
    """Returns in which settings and contents a run differs from that of a config.json.

    Args:
      config: resolved. record: of :func:`record_of`, or empty.
      stored: the contents of config.json. Settings that it does not have, because an older version
        wrote it, have their defaults; contents that are not recorded are not compared.
    """
    if (program := stored.get("program", config.program)) != config.program:
        return [f"program={program} there, {config.program} here"]
    before, usual = stored.get(RECORDED, {}), type(config)()
    same = {name for name in record if name != "versions" and record[name] == before.get(name)}
    # Arrays and images of a user and another run may be at another place.
    moved = {"frozen_from", "init_from"} & same
    if "data" in same and all(is_own(str(d)) for d in (stored.get("dataset"), config.dataset)):
        moved.add("dataset")
    # A record says auto where that meant the preset's; before 2026-12 it said so for preset, too.
    if (config.input_norm, stored.get("input_norm", "auto")) == ("preset", "auto"):
        moved.add("input_norm")
    found = [
        f"{name}={stored.get(name, getattr(usual, name))} there, {value} here"
        for name, value in config.identity().items()
        if name not in moved and stored.get(name, getattr(usual, name)) != value
    ]
    flags = {"data": "dataset"}
    if "random_numbers" in record.keys() & before.keys() - same:
        found.append(
            f"random numbers of {before['random_numbers']} there, {record['random_numbers']} here "
            "(JAX_ENABLE_X64)"
        )
    for name in record.keys() & before.keys() - same - {"versions", "source", "random_numbers"}:
        flag = flags.get(name, name)
        found.append(
            f"the contents of --{flag}={getattr(config, flag)} have the checksum {before[name]} "
            f"there, {record[name]} here"
        )
    return found


def other_versions(record: dict, stored: dict) -> str:
    """Returns in one line which packages had other versions, or nothing."""
    before, now = (one.get("versions", {}) for one in (stored.get(RECORDED, {}), record))
    changed = [
        f"{n} {before[n]} before, {now[n]} now"
        for n in NUMERIC
        if before.get(n, now.get(n)) != now.get(n)
    ]
    return f"{'; '.join(changed)}: numbers may differ a little" if changed else ""


def check_same_data(name: str, expected: str, found: str) -> None:
    """Refuses results on other data.

    Raises:
      UserError: both checksums are known and differ.
    """
    if expected and found and expected != found:
        raise UserError(
            f"results there are of --dataset={name} with the checksum {expected}, and it is "
            f"{found} here; choose another folder, or bring the file back"
        )
