"""Train many runs of one program, and print tables and figures of the results.

    python -m experiments.sweep --study=routing --dataset=digits --preset=small
    python -m experiments.sweep --grid="routing=dynamic,em;seed=0..4" --dataset=digits
    python -m experiments.sweep --study=table1 --shard=3/16 --runs=/shared/table1

Runs that differ only in seeds and numeric flags are trained together where that is faster
(``--vmap``). Every finished run is a line of the ledger, from which all printed numbers are
computed, and the same command again trains only the missing runs. Flags of the program apply to all
runs. Tables are written to the folder of the runs, or with ``--output=results/TOPIC/NAME`` there.
"""

import dataclasses
import re
import shlex
import sys
import zlib
from pathlib import Path

from absl import flags

from experiments.config import Config, UserError, names_of, setting
from experiments.config import flags as flags_module
from experiments.files import local_path
from experiments.sweeps import affine_error, executors, ledger, plan, report
from experiments.sweeps.grid import parse_grid
from experiments.sweeps.plan import PlannedRun
from experiments.sweeps.runner import Sweep, complete, print_plan
from experiments.sweeps.studies import STUDIES
from experiments.tasks.registry import find_program
from experiments.training.results import output_path
from kernels import cli


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this command, in addition to those of the program.

    The local ones, which say where and how it runs, are left out of the reported command.
    """

    study: str = setting("", "a named study: " + ", ".join(STUDIES))
    grid: str = setting("", "flags and values: 'routing=em,vb;seed=0..4'")
    program: str = setting("", "program to train; by default that of the study, or mnist")
    seeds: int = setting(
        0, "seeds 0, 1, ... up to this number, instead of the study's", low=0, high=10**6
    )
    runs: str = setting("", "where runs are kept; by default under runs/", roles="local")
    output: str = setting("", "write OUTPUT.md, .csv, .tex, .png and .json", roles="local")
    merge: str = setting("", "include these ledgers, or folders with ledgers", roles="local")
    shard: str = setting("", "I/N: train only the I-th (from 0) of N parts", roles="local")
    executor: str = setting(
        "local", "what runs the processes", choices=executors.EXECUTORS, roles="local"
    )
    jobs: int = setting(1, "number of processes at once", low=1, roles="local")
    vmap: str = setting(
        "auto", "auto, off, or maximum number of runs trained together", roles="local"
    )
    yes: bool = setting(
        False, f"confirm that more than {plan.LIMIT} runs are intended", roles="local"
    )
    dry_run: bool = setting(
        False, "print the commands and an estimate of their time", roles="local"
    )


DEFAULTS = Flags()


def define_flags(words: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of the sweep and of the program that a command line names."""
    flags_module.define_flags(DEFAULTS, flag_values)
    program = program_of(flag_values.read_flags_from_files(words))
    flags_module.define_flags(find_program(program).defaults, flag_values)


def program_of(words: list[str]) -> str:
    """Returns the program that a command line names: by --program, by its study, or mnist."""
    found = dict(re.findall(r"(?:^|\0)--?(program|study)[=\0]([^\0]*)", "\0".join(words)))
    study = STUDIES.get(found.get("study"))
    return found.get("program") or (study.program if study else "mnist")


def main() -> None:
    """Trains the missing runs, prints and writes the report.

    Raises:
      UserError: a flag is wrong, a file can't be written, or no run succeeded.
    """
    own = flags_module.from_flags(DEFAULTS)
    sweep = make_sweep(own)
    study = sweep.study
    tuning_runs = sweep.runs(plan.candidates(study), (plan.TUNING_SEED,)) if study.tuning else []
    runs = sweep.runs({row: [{}] for row in study.rows}, study.seeds)
    if own.dry_run:
        print_plan(sweep, tuning_runs, runs)
        return
    ledger.make_folder(sweep.folder)
    output = output_path(own.output) if own.output else sweep.folder / "table"
    failed = complete(sweep, tuning_runs)
    if tuning_runs:
        entries = sweep.entries()
        missing = [run for run in tuning_runs if run.key not in entries]
        if missing:
            print(
                f"{len(missing)} tuning runs belong to other parts of the sweep; repeat this "
                "command when they have finished"
            )
            return
        runs = sweep.runs(plan.choose(tuning_runs, entries), study.seeds)
    failed += complete(sweep, runs)
    entries = sweep.entries()
    if not failed and not any("summary" in entries.get(run.key, {}) for run in runs):
        print(f"--shard={own.shard}: no run of this sweep belongs to this part")
        return
    show_report(sweep, tuning_runs, runs, output)
    if failed:
        names = ", ".join(run.workdir.name for run in failed)
        print(f"{len(failed)} of {len(tuning_runs + runs)} runs failed: {names}", file=sys.stderr)
        sys.exit(1)


def make_sweep(own: Flags) -> Sweep:
    """Returns the sweep that the flags describe.

    Args:
      own: flags of this command; those of the program are read from the command line.

    Raises:
      UserError: the flags describe nothing that can be run.
    """
    study = plan.find_study(own.study, own.grid, own.seeds, own.yes)
    defaults = find_program(own.program or study.program).defaults
    given = plan.changed_flags(flags_module.from_flags(defaults), defaults)
    if (study.columns or study.affine) and own.program not in ("", study.program):
        raise UserError(f"--program={own.program}: --study={own.study} is of {study.program}")
    if own.seeds and own.grid and "seed" in parse_grid(own.grid):
        raise UserError(f"--grid={own.grid} has seeds: leave out --seeds={own.seeds}")
    of_rows = {*study.tuning, *(flag for flags_of in study.rows.values() for flag in flags_of)}
    of_rows |= {"seed"} if study.seeds else set()
    for flag in sorted(of_rows & given.keys()):
        raise UserError(f"--{flag}={given[flag]}: the runs of the sweep set --{flag}; leave it out")
    if study.tuning and given.get("validation_fraction", 1) == 0:
        raise UserError("tuning needs validation data: --validation_fraction above 0")
    if given.get("distributed"):
        raise UserError("--distributed trains one run; --shard divides a sweep among machines")
    paths = names_of(defaults, "path")
    shared = {name: value for name, value in given.items() if name not in paths}
    shared |= {name: "PATH" for name in names_of(defaults, "contents") if name in given}
    name = own.study or "grid"
    code = zlib.crc32(repr((defaults.program, sorted(shared.items()))).encode())
    folder = local_path(own.runs or f"runs/sweep-{name}-{code:08x}", "runs").absolute()
    merge = (
        tuple(local_path(place, "merge").absolute() for place in own.merge.split(","))
        if own.merge
        else ()
    )
    for place in merge:
        if not place.exists():
            raise UserError(f"--merge={place}: there is no such file or folder")
    if own.vmap not in ("auto", "off") and not (own.vmap.isdecimal() and int(own.vmap)):
        raise UserError(f"--vmap={own.vmap}: auto, off, or a number above 0")
    shard = parse_shard(own.shard)
    return Sweep(
        name, study, given, folder, defaults, shard, own.vmap, own.jobs, own.executor, merge
    )


def parse_shard(text: str) -> tuple[int, int]:
    """Returns which part of a sweep is meant, and of how many.

    Raises:
      UserError: the text is not a part.
    """
    numbers = re.fullmatch(r"(\d+)/(\d+)", text or "0/1")
    if not numbers or int(numbers[1]) >= int(numbers[2]):
        raise UserError(f"--shard={text}: write it as I/N with I from 0 to N-1")
    return int(numbers[1]), int(numbers[2])


def show_report(
    sweep: Sweep, tuning_runs: list[PlannedRun], runs: list[PlannedRun], output: Path
) -> None:
    """Prints the report, and writes it with its tables and its figure.

    Raises:
      UserError: no run succeeded.
    """
    entries = sweep.entries()
    missing = sum("summary" not in entries.get(run.key, {}) for run in runs)
    if missing == len(runs):
        raise UserError(f"no run succeeded; the reasons are in {sweep.folder}/*/error.txt")
    notes = [f"{missing} of {len(runs)} runs are missing."] if missing else []
    columns, affine_notes = affine_error.measure(sweep.study, runs, entries, sweep.ledger)
    made = report.StudyReport(
        name=sweep.name,
        study=sweep.study,
        tuning_runs=tuning_runs,
        runs=runs,
        entries=entries,
        command=portable_command(sys.argv[1:], sweep.defaults),
        extra_columns=columns,
        notes=notes + affine_notes,
    )
    print(report.to_markdown(made))
    paths = report.write(made, output)
    report.log_hparams(runs, entries, sweep.defaults, sweep.folder / "tensorboard")
    print("written:", *paths, file=sys.stderr)


def portable_command(arguments: list[str], defaults: Config) -> str:
    """Returns the command without the flags that say where or how it runs on this machine."""
    local = {*names_of(DEFAULTS, "local"), *names_of(defaults, "path")}
    kept, skip = [], False
    for argument in arguments:
        name, equals, _ = argument.lstrip("-").partition("=")
        if skip:
            skip = False
        elif name in names_of(defaults, "contents"):
            kept.append(f"--{name}=PATH")
            skip = not equals
        elif name in local:
            skip = not equals and not isinstance(getattr(DEFAULTS, name, None), bool)
        else:
            kept.append(argument)
    return shlex.join(["python", "-m", "experiments.sweep", *kept])


if __name__ == "__main__":
    cli.run(main, UserError, define=define_flags)
