"""The execution of a sweep: which of its runs are missing, and training them."""

import contextlib
import functools
import io
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from experiments.config import Config, UserError
from experiments.data import datasets
from experiments.data.image_folder import ImageOptions
from experiments.files import free_bytes, one_line
from experiments.sweeps import executors, grouping, ledger, plan, time_estimate
from experiments.sweeps.plan import PlannedRun
from experiments.sweeps.report import REPORTED
from experiments.sweeps.studies import Study
from experiments.training.devices import cache_folder
from experiments.training.identity import check_same_data
from experiments.training.training_data import RESIDENT_SHARE

# On which the contents of a data set depend, apart from the folders of the machine.
DATA_FLAGS = ("dataset", "validation_fraction", *ImageOptions._fields)
# Of an entry and its summary, beside what is reported of every run: reports compute with these.
NEEDED = ("seconds", "together", "correct", "training_seconds", "images_per_second")
NEEDED += ("peak_memory_mb", "test_error", "test_errors", "test_examples")


class Sweep(NamedTuple):
    """A study, and where and how its runs are trained."""

    name: str  # of the study
    study: Study
    given: dict  # flags of all runs
    folder: Path  # of the runs
    defaults: Config  # of the program
    shard: tuple[int, int]  # which part of the sweep, of how many
    vmap: str  # auto, off, or the maximum number of runs trained together
    jobs: int  # processes at once
    executor: str
    merge: tuple[Path, ...]  # further ledgers

    def runs(self, tuned: plan.Tuned, seeds: tuple[str, ...]) -> list[PlannedRun]:
        """Returns the runs of the study; see :func:`experiments.sweeps.plan.make`."""
        return plan.make(self.study, self.given, self.folder, self.defaults, tuned, seeds)

    @property
    def ledger(self) -> Path:
        """The ledger to which this process writes."""
        which, parts = self.shard
        return self.folder / (f"ledger.{which}-of-{parts}.jsonl" if parts > 1 else ledger.NAME)

    def entries(self) -> dict[str, dict]:
        """Returns the entries of all ledgers by key of the run; own ones come first.

        Raises:
          UserError: runs of this sweep were trained on other contents of the same data set.
        """
        found = ledger.merge(ledger.read(self.folder), ledger.read(*self.merge))
        found = {key: entry for key, entry in found.items() if _is_whole(key, entry)}
        known = any("data_checksum" in entry.get("summary", {}) for entry in found.values())
        rows = [self.given | dict(flags) for flags in self.study.rows.values()] if known else ()
        for data in {_data_of(flags, self.defaults) for flags in rows}:
            name = data[0]
            places = (self.given.get("data_dir", ""), self.given.get("cache_dir", ""))
            found_here = _checksum(data, *places)
            if name.endswith(".npz"):
                found = ledger.with_path_of(found_here, name, found)
            for key, entry in found.items():
                own = f"{key} ".startswith(f"python -m experiments.{self.defaults.program} ")
                if own and "summary" in entry and _data_of_key(key, self.defaults) == data:
                    before = entry.get("summary", {}).get("data_checksum", "")
                    check_same_data(name, before, found_here)
        return found


def _data_of(flags: Mapping, defaults: Config) -> tuple:
    """Returns the values of the flags of a run that decide which data it has, ``DATA_FLAGS``."""
    usual = {name: getattr(defaults, name) for name in DATA_FLAGS}
    return tuple(type(usual[name])(flags.get(name, usual[name])) for name in DATA_FLAGS)


def _data_of_key(key: str, defaults: Config) -> tuple | None:
    """The same of a key of a ledger, None where somebody has written other values."""
    try:
        return _data_of(_flags_of(key), defaults)
    except ValueError:
        return None


def _flags_of(key: str) -> dict[str, str]:
    words = ledger.words_of(key)
    return dict(word[2:].split("=", 1) for word in words if word[:2] == "--" and "=" in word)


def _is_whole(key: str, entry: dict) -> bool:
    """Whether an entry has what reports are made of; measurements of runs have less."""
    whole = "summary" in entry and ledger.MEASURED not in key
    found = entry["summary"] | entry if whole else {}
    missing = [name for name in sorted({*REPORTED, *NEEDED}) if whole and name not in found]
    missing += [name for name in NEEDED if found.get(name, 0) is None]
    if missing:
        ledger.say(f"left out, because it has no {missing[0]}: {one_line(key)}")
    return not missing


@functools.cache
def _checksum(data: tuple, data_dir: str, cache_dir: str) -> str:
    """The checksum of the data of :func:`_data_of`, or nothing where they are not here."""
    name, fraction, *options = data
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            places = {"data_dir": data_dir or None, "cache_dir": cache_folder(cache_dir)}
            how = {"validation_fraction": fraction, "options": ImageOptions(*options)}
            how["resident_bytes"] = RESIDENT_SHARE * free_bytes()
            return datasets.load(name, **places, **how).checksum
    except UserError:
        return ""


def complete(sweep: Sweep, runs: list[PlannedRun]) -> list[PlannedRun]:
    """Trains the missing runs of this part of the sweep, and returns those that failed."""
    runs = plan.part(runs, *sweep.shard)
    by_key, failed, alone = {run.key: run for run in runs}, [], set()
    entries = sweep.entries()
    missing = [run for run in runs if "summary" not in entries.get(run.key, {})]
    bar = tqdm(
        total=len(runs),
        initial=len(runs) - len(missing),
        unit="run",
        disable=not sys.stderr.isatty(),
        bar_format="{l_bar}{bar}| {n}/{total}{postfix}",
    )
    with bar:
        while missing:
            # Frozen runs come last, because they need finished dynamic ones.
            ready = [r for r in missing if r.config.routing != "frozen"] or missing
            parts = grouping.divide(ready, sweep.defaults, sweep.vmap, alone, sweep.jobs)
            tasks = [executors.task(sweep.defaults.program, part) for part in parts]
            execute = executors.on_ray if sweep.executor == "ray" else executors.local
            for found in execute(tasks, sweep.jobs):
                for entry in found:
                    run = by_key[entry["key"]]
                    ledger.append(sweep.ledger, entry)
                    entries[run.key] = entry
                    missing.remove(run)
                    failed += [run] if "error" in entry else []
                    tqdm.write(f"{run.workdir.name}: {_result(entry)}", sys.stderr)
                    bar.update()
                left = time_estimate.seconds_left(
                    runs, missing, entries, sweep.defaults, sweep.jobs
                )
                bar.set_postfix_str(f", {time_estimate.in_words(left)} left" if missing else "")
            # A run alone that ended without a result or an error was stopped by --max_minutes.
            if paused := [
                run for part in parts if len(part) == 1 for run in part if run in missing
            ]:
                print(f"{len(paused)} runs have stopped; the same command continues them")
                sys.exit(1 if failed else 0)
            for part in parts:
                # No run of the group came back: its process failed, and each run is tried alone.
                if len(part) > 1 and all(run in missing for run in part):
                    alone |= {run.key for run in part}
    return failed


def _result(entry: dict) -> str:
    return entry.get("error") or f"{entry['summary']['test_error']:.2f}% test error"


def print_plan(sweep: Sweep, tuning_runs: list[PlannedRun], runs: list[PlannedRun]) -> None:
    """Prints all commands, and an estimate of the time that the missing ones take."""
    mine = plan.part(tuning_runs, *sweep.shard) + plan.part(runs, *sweep.shard)
    for run in mine:
        name = sweep.defaults.program
        print(shlex.join(["python", "-m", f"experiments.{name}", *run.arguments]))
    entries = sweep.entries()
    missing = [run for run in mine if "summary" not in entries.get(run.key, {})]
    left = time_estimate.seconds_left(mine, missing, entries, sweep.defaults, sweep.jobs)
    estimate = None
    if left is None and (total := time_estimate.estimate_seconds(missing, sweep.defaults)):
        estimate = total / sweep.jobs
    text = f"{len(mine)} runs, {len(missing)} missing: {time_estimate.in_words(estimate or left)}"
    text += ", estimated from their arithmetic" if estimate else ""
    tune = len(plan.part(tuning_runs, *sweep.shard))
    text += f"; {tune} of them tune the flags of the others" if tune else ""
    print(text, file=sys.stderr)
