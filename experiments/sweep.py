"""Many runs of one program, and the tables and pictures of what they gave.

    python -m experiments.sweep --study=routing --dataset=digits --preset=small
    python -m experiments.sweep --grid="routing=dynamic,em;seed=0..4" --dataset=digits
    python -m experiments.sweep --study=table1 --shard=3/16 --runs=/shared/table1

Runs that differ in seeds and numbers alone are trained together where that is faster (--vmap).
Every finished run is a line of the ledger, so the same command again does what is missing, and
every number that is printed comes from there. Flags of the program apply to all runs. Tables are
written to the folder of the runs, and with ``--output=results/NAME`` there instead.
"""

import functools
import re
import shlex
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

from absl import flags
from tqdm import tqdm

from experiments.config import Config, UserError, names_of
from experiments.config import flags as flags_module
from experiments.sweeps import (
    affine_error,
    executors,
    grouping,
    ledger,
    plan,
    report,
    time_estimate,
)
from experiments.sweeps.plan import PlannedRun
from experiments.sweeps.studies import STUDIES, Study
from experiments.tasks.registry import find_program
from kernels import cli

OWN_PLACES = {"runs", "output", "merge", "shard", "jobs", "executor", "vmap", "yes", "dry_run"}


def define_flags(flag_values: flags.FlagValues = flags.FLAGS, words: list[str] = ()) -> None:
    """Flags of the sweep, and all of the program's.

    Args:
      flag_values: where to define them. words: of the command line, which may name the program.
    """
    flags_module.define_flags(find_program(program_of(words)).defaults, flag_values)
    common = {"flag_values": flag_values}
    flags.DEFINE_string("study", None, "a named study: " + ", ".join(STUDIES), **common)
    flags.DEFINE_string("grid", None, "flags and values: 'routing=em,vb;seed=0..4'", **common)
    flags.DEFINE_string("program", None, "whose runs; by default the study's, or mnist", **common)
    flags.DEFINE_integer("seeds", 0, "seeds 0, 1, ... in place of the study's", 0, **common)
    flags.DEFINE_string("runs", None, "where runs are kept; by default under runs/", **common)
    flags.DEFINE_string("output", None, "write OUTPUT.md, .csv, .tex, .png and .json", **common)
    flags.DEFINE_string("merge", None, "also count these ledgers, or folders of some", **common)
    flags.DEFINE_string("shard", None, "I/N: only the I-th (from 0) of N parts", **common)
    flags.DEFINE_enum("executor", "local", executors.EXECUTORS, "who runs processes", **common)
    flags.DEFINE_integer("jobs", 1, "processes at once", 1, **common)
    flags.DEFINE_string("vmap", "auto", "auto, off, or N: most runs trained together", **common)
    flags.DEFINE_boolean("yes", False, f"more than {plan.LIMIT} runs are meant", **common)
    flags.DEFINE_boolean("dry_run", False, "print commands and the time they need", **common)


def program_of(words: list[str]) -> str:
    """The program that a command line means: --program, the study's, or mnist."""
    found = dict(re.findall(r"(?:^|\0)--?(program|study)[=\0]([^\0]*)", "\0".join(words)))
    study = STUDIES.get(found.get("study"))
    return found.get("program") or (study.program if study else "mnist")


class Sweep(NamedTuple):
    """What the flags say."""

    name: str
    study: Study
    given: dict  # flags of all runs
    folder: Path
    defaults: Config
    shard: tuple[int, int]
    vmap: str
    jobs: int
    executor: str
    merge: tuple[Path, ...]

    @property
    def ledger(self) -> Path:
        """Where this process writes."""
        which, parts = self.shard
        return self.folder / (f"ledger.{which}-of-{parts}.jsonl" if parts > 1 else ledger.NAME)

    def entries(self) -> dict[str, dict]:
        """All that is known."""
        return ledger.read(self.folder, *self.merge)


def main() -> None:
    """Run what is missing, print the tables."""
    F = flags.FLAGS
    sweep = from_flags(F)
    make = functools.partial(plan.make, sweep.study, sweep.given, sweep.folder, sweep.defaults)
    tried = make(plan.candidates(sweep.study), (plan.TUNING_SEED,)) if sweep.study.tuning else []
    every_row = {row: [{}] for row in sweep.study.rows}
    runs = make(every_row, sweep.study.seeds)
    if F.dry_run:
        dry_run(sweep, tried, runs)
        return
    for parent in (sweep.folder, *([Path(F.output).absolute().parent] if F.output else [])):
        ledger.make_folder(parent)
    failed = complete(sweep, tried)
    if tried:
        untried = [run for run in tried if run.key not in sweep.entries()]
        if untried:
            print(f"{len(untried)} runs of tuning are of other parts; run this again after them")
            return
        runs = make(plan.choose(tried, sweep.entries()), sweep.study.seeds)
    failed += complete(sweep, runs)
    entries = sweep.entries()
    if not any("summary" in entries.get(run.key, {}) for run in runs):
        raise UserError(f"no run succeeded; the reasons are in {sweep.folder}/*/error.txt")
    show(sweep, tried, runs, entries, Path(F.output or sweep.folder / "table"))
    if failed:
        names = ", ".join(run.workdir.name for run in failed)
        print(f"{len(failed)} of {len(tried + runs)} runs failed: {names}", file=sys.stderr)
        sys.exit(1)


def from_flags(F: flags.FlagValues) -> Sweep:
    """What the flags say.

    Raises:
      UserError: what they say is nothing that can be run.
    """
    study = plan.find_study(F.study, F.grid, F.seeds, F.yes)
    defaults = find_program(F.program or study.program).defaults
    given = plan.given_flags(flags_module.from_flags(defaults, F), defaults)
    if study.tuning and given.get("validation_fraction", 1) == 0:
        raise UserError("tuning needs validation data: --validation_fraction above 0")
    shared = {
        name: value for name, value in given.items() if name not in names_of(defaults, "path")
    }
    name = F.study or "grid"
    code = zlib.crc32(repr((defaults.program, sorted(shared.items()))).encode())
    folder = Path(F.runs or f"runs/sweep-{name}-{code:08x}").absolute()
    merge = tuple(Path(place).absolute() for place in F.merge.split(",")) if F.merge else ()
    for place in merge:
        if not place.exists():
            raise UserError(f"--merge={place}: there is no such file or folder")
    if F.vmap not in ("auto", "off") and not (F.vmap.isdecimal() and int(F.vmap)):
        raise UserError(f"--vmap={F.vmap}: auto, off, or a number above 0")
    shard = parse_shard(F.shard)
    return Sweep(name, study, given, folder, defaults, shard, F.vmap, F.jobs, F.executor, merge)


def parse_shard(text: str | None) -> tuple[int, int]:
    """Which part, of how many.

    Raises:
      UserError: not a part.
    """
    if text is None:
        return 0, 1
    numbers = re.fullmatch(r"(\d+)/(\d+)", text)
    if not numbers or int(numbers[1]) >= int(numbers[2]):
        raise UserError(f"--shard={text}: write it as I/N with I from 0 to N-1")
    return int(numbers[1]), int(numbers[2])


def complete(sweep: Sweep, runs: list[PlannedRun]) -> list[PlannedRun]:
    """Run what the ledger lacks of this part of the sweep; returns the runs that failed."""
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
            # Frozen runs last: they need finished dynamic ones.
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
                    said = entry.get("error") or f"{entry['summary']['test_error']:.2f}% test error"
                    tqdm.write(f"{run.workdir.name}: {said}", sys.stderr)
                    bar.update()
                left = time_estimate.seconds_left(
                    runs, missing, entries, sweep.defaults, sweep.jobs
                )
                bar.set_postfix_str(f", {time_estimate.in_words(left)} left" if missing else "")
            for part in parts:
                # A group of which nothing came back: its process failed, each is tried alone.
                if len(part) > 1 and all(run in missing for run in part):
                    alone |= {run.key for run in part}
    return failed


def dry_run(sweep: Sweep, tried: list[PlannedRun], runs: list[PlannedRun]) -> None:
    """Print all commands, and about how long they take."""
    mine = plan.part(tried, *sweep.shard) + plan.part(runs, *sweep.shard)
    for run in mine:
        name = sweep.defaults.program
        print(shlex.join(["python", "-m", f"experiments.{name}", *run.arguments]))
    entries = sweep.entries()
    missing = [run for run in mine if "summary" not in entries.get(run.key, {})]
    left = time_estimate.seconds_left(mine, missing, entries, sweep.defaults, sweep.jobs)
    guessed = time_estimate.seconds(missing, sweep.defaults) if left is None else None
    said = f"{len(mine)} runs, {len(missing)} missing: {time_estimate.in_words(guessed or left)}"
    said += ", guessed from their arithmetic" if guessed else ""
    said += f"; {len(tried)} of them tune the flags of the others" if tried else ""
    print(said, file=sys.stderr)


def show(
    sweep: Sweep, tried: list[PlannedRun], runs: list[PlannedRun], entries: dict, output: Path
) -> None:
    """Print the report; write it with its tables and its picture."""
    words = ["python", "-m", "experiments.sweep", *portable(sys.argv[1:], sweep.defaults)]
    missing = sum("summary" not in entries.get(run.key, {}) for run in runs)
    notes = [f"{missing} of {len(runs)} runs are missing."] if missing else []
    more, said = affine_error.measure(sweep.study, runs, entries, sweep.ledger)
    made = report.Findings(
        sweep.name, sweep.study, tried, runs, entries, shlex.join(words), more, notes + said
    )
    print(report.report(made))
    paths = report.write(made, output)
    report.log_hparams(runs, entries, sweep.defaults, sweep.folder / "tensorboard")
    print("written:", *paths, file=sys.stderr)


def portable(arguments: list[str], defaults: Config) -> list[str]:
    """Arguments of a command without those that say where or how it runs on this machine."""
    places = OWN_PLACES.union(names_of(defaults, "path"))
    kept, skip = [], False
    for argument in arguments:
        name, equals, _ = argument.lstrip("-").partition("=")
        if skip:
            skip = False
        elif name in places:
            skip = not equals and name not in ("yes", "dry_run")
        else:
            kept.append(argument)
    return kept


if __name__ == "__main__":
    define_flags(words=sys.argv[1:])
    cli.run(main, UserError)
