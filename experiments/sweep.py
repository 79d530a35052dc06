"""Many runs of one program, and the table of what they gave.

    python -m experiments.sweep --study=routing --dataset=digits --preset=small
    python -m experiments.sweep --grid="routing=dynamic,em;seed=0,1,2" --dataset=digits

Every run is a process of its own with a folder of its own, so a run that fails stops no other,
and the same command again does what is missing. Flags of the program apply to all runs. With
``--output=results/NAME`` the table, and the summaries it is made from, are written there.
"""

import dataclasses
import itertools
import json
import os
import shlex
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import config as config_lib
from experiments import io
from experiments.config import Config
from experiments.errors import UserError
from experiments.studies import STUDIES
from kernels import program

ROOT = Path(__file__).resolve().parent.parent
BASE = Config(program="mnist")
LOCAL = {"workdir", "frozen_from", "cache_dir", "data_dir"}  # flags that say where things are
# Columns of the table behind those of the grid: name, heading, format.
MEASURED = (
    ("parameters", "parameters", "{:,.0f}"),
    ("images_per_second", "images/s", "{:.0f}"),
    ("peak_memory_mb", "peak memory, MB", "{:.0f}"),
    ("training_seconds", "training, s", "{:.0f}"),
)


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Flags of the sweep, and all of the program's."""
    config_lib.define_flags(BASE, flag_values)
    common = {"flag_values": flag_values}
    flags.DEFINE_enum("study", None, list(STUDIES), "a named grid", **common)
    flags.DEFINE_string("grid", None, "flags and values, as in 'routing=em,vb;seed=0,1'", **common)
    flags.DEFINE_integer("seeds", 0, "seeds 0, 1, ... in place of the study's", 0, **common)
    flags.DEFINE_string("runs", None, "where runs are kept; by default under runs/", **common)
    flags.DEFINE_string("output", None, "write OUTPUT.json and OUTPUT.md", **common)
    flags.DEFINE_boolean("dry_run", False, "print the commands and stop", **common)


def main() -> None:
    """Run what is missing, print the table."""
    F = flags.FLAGS
    grid = parse_grid(F.study, F.grid, F.seeds)
    base = config_lib.from_flags(BASE)
    given = given_flags(base)
    where = {name: given.pop(name) for name in LOCAL & given.keys()}
    folder = Path(F.runs or default_folder(given, F.study or "grid")).absolute()
    plan = make_plan(grid, given | where, folder)
    if F.dry_run:
        print(*(shlex.join(command(run)) for run in plan), sep="\n")
        return
    check(plan, folder, F.output)
    failed = [run for run in tqdm(plan, unit="run", disable=not sys.stderr.isatty()) if not do(run)]
    done = [run | {"summary": read(run)} for run in plan if run not in failed]
    if not done:
        raise UserError(f"no run succeeded; the reasons are in {folder}/*/error.txt")
    text = table(grid, done)
    print(text)
    if F.output:
        write(F.output, grid, done, text)
    if failed:
        names = ", ".join(Path(run["flags"]["workdir"]).name for run in failed)
        print(f"{len(failed)} of {len(plan)} runs failed: {names}", file=sys.stderr)
        sys.exit(1)


def parse_grid(study: str | None, text: str | None, seeds: int) -> dict[str, tuple[str, ...]]:
    """Names of flags and their values.

    Raises:
      UserError: neither or both of study and text, or a text that is no grid.
    """
    if (study is None) == (text is None):
        raise UserError(f"one of --study={'|'.join(STUDIES)} and --grid is needed")
    if study is not None:
        grid = dict(STUDIES[study])
    else:
        axes = [axis.partition("=") for axis in text.split(";")]
        grid = {n.strip(): tuple(v.strip() for v in vs.split(",")) for n, _, vs in axes}
        whole = all(n and all(v) and len(set(v)) == len(v) for n, v in grid.items())
        if len(grid) < len(axes) or not whole or "workdir" in grid:
            raise UserError(
                f"--grid={text}: write it as 'routing=em,vb;seed=0,1', nothing twice, no workdir"
            )
    if seeds:
        grid["seed"] = tuple(map(str, range(seeds)))
    return grid


def given_flags(base: Config) -> dict:
    """Flags of the program that were given, also those that say what a preset says anyway.

    Raises:
      UserError: ``--workdir``, which every run has of its own.
    """
    if base.workdir:
        raise UserError("--workdir is of one run; a sweep keeps its runs under --runs")
    names = (f.name for f in dataclasses.fields(base))
    return {n: getattr(base, n) for n in names if getattr(base, n) != getattr(BASE, n)}


def check(plan: list[dict], folder: Path, output: str | None) -> None:
    """Make the folders, before the first run.

    Raises:
      UserError: they can't be written, or hold runs with other flags.
    """
    for parent in (folder, *([Path(output).absolute().parent] if output else [])):
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{parent} can't be written: {error.strerror}") from error
        if not os.access(parent, os.W_OK):
            raise UserError(f"{parent} can't be written")
    for run in plan:
        workdir = Path(run["flags"]["workdir"])
        path = workdir / "flags.json"
        wanted = {k: str(v) for k, v in run["flags"].items() if k not in LOCAL}
        if path.exists() and json.loads(path.read_text()) != wanted:
            raise UserError(f"{workdir} is a run with other flags; choose another --runs")
        if not path.exists():
            workdir.mkdir(exist_ok=True)
            io.write_json(path, wanted)


def default_folder(given: dict, name: str) -> str:
    """The same for the same flags."""
    return f"runs/sweep-{name}-{zlib.crc32(repr(sorted(given.items())).encode()):08x}"


def make_plan(grid: dict, given: dict, folder: Path) -> list[dict]:
    """All runs: the values of the grid, and the flags of the program.

    Raises:
      UserError: a flag or value that the program does not have.
    """
    plan = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values))
        run = given | point
        run["workdir"] = str(folder / place(point))
        if point.get("routing") == "frozen":
            run["frozen_from"] = str(folder / place(point | {"routing": "dynamic"}))
        try:
            config_lib.parse(BASE, [f"--{name}={value}" for name, value in run.items()])
        except flags.Error as error:
            raise UserError(str(error)) from error
        plan.append({"point": point, "flags": run})
    # Dynamic runs first, because frozen ones need them.
    return sorted(plan, key=lambda run: run["point"].get("routing") == "frozen")


def place(point: dict) -> str:
    """Name of the folder of a run."""
    return ",".join(f"{name}={value}" for name, value in point.items())


def command(run: dict) -> list[str]:
    """Of one run, from the repository root."""
    return [
        "python",
        "-m",
        f"experiments.{BASE.program}",
        *(f"--{name}={value}" for name, value in run["flags"].items()),
    ]


def do(run: dict) -> bool:
    """Run a run unless it is done; whether it succeeded."""
    workdir = Path(run["flags"]["workdir"])
    if (workdir / "summary.json").exists():
        return True
    done = execute([sys.executable, *command(run)[1:]])
    if done.returncode in (-2, 128 + 2, 128 + 15):
        raise KeyboardInterrupt
    error = workdir / "error.txt"
    if done.returncode:
        error.write_text(f"{done.stderr}exit status {done.returncode}\n")
        tqdm.write(f"{workdir.name}: {(done.stderr.splitlines() or ['?'])[-1]}", sys.stderr)
        return False
    error.unlink(missing_ok=True)
    summary = read(run)
    tqdm.write(f"{workdir.name}: {summary['test_error']:.2f}% test error", sys.stderr)
    return True


def execute(words: list[str]) -> subprocess.CompletedProcess:
    """Run a command to its end, also when interrupted: it has been told too, and saves."""
    child = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, told = child.communicate()
    except KeyboardInterrupt:
        child.communicate()
        print("stopped; the same command continues", file=sys.stderr)
        raise
    return subprocess.CompletedProcess(words, child.returncode, None, told)


def read(run: dict) -> dict:
    """Summary of a finished run."""
    return json.loads((Path(run["flags"]["workdir"]) / "summary.json").read_text())


def table(grid: dict, runs: list[dict]) -> str:
    """Markdown: a line for each point of the grid, over its seeds."""
    keys = [name for name in grid if name != "seed" and len(grid[name]) > 1]
    heads = [*keys, "test error, %", *(head for _, head, _ in MEASURED)]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        groups.setdefault(tuple(run["point"][k] for k in keys), []).append(run["summary"])
    for point, summaries in groups.items():
        errors = [s["test_error"] for s in summaries]
        spread = f" ± {np.std(errors, ddof=1):.2f}" if len(errors) > 1 else ""
        values = [f"{np.mean(errors):.2f}{spread}"]
        for name, _, form in MEASURED:
            values.append(form.format(np.median([s[name] for s in summaries])))
        lines.append("| " + " | ".join([*point, *values]) + " |")
    counts = sorted({len(group) for group in groups.values()})
    if counts[-1] > 1:
        seeds = " or ".join(map(str, counts))
        lines += ["", f"Mean ± standard deviation of {seeds} seeds; medians of the rest."]
    return "\n".join(lines)


def write(output: str, grid: dict, runs: list[dict], text: str) -> None:
    """OUTPUT.json and OUTPUT.md."""
    summaries = [run["summary"] for run in runs]
    made_by = shlex.join(["python", "-m", "experiments.sweep", *portable(sys.argv[1:])])
    about = {
        "command": made_by,
        "commit": sorted({str(s["commit"]) for s in summaries}),
        "device_kind": sorted({s["device_kind"] for s in summaries}),
        "versions": summaries[0]["versions"],
    }
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    keep = ("routing", "votes", "squash", "loss", "depth", "seed", "parameters", "steps")
    keep += ("test_error", "test_errors", "test_examples", "validation_error")
    keep += ("images_per_second", "training_seconds", "peak_memory_mb", "commit")
    rows = [run["point"] | {k: run["summary"][k] for k in keep} for run in runs]
    io.write_json(path.with_name(f"{path.name}.json"), about | {"grid": grid, "runs": rows})
    foot = f"\n\n`{made_by}`, commit {', '.join(about['commit'])}\n"
    path.with_name(f"{path.name}.md").write_text(text + foot)


def portable(arguments: list[str]) -> list[str]:
    """Arguments of a command without those that say where things are on this machine."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument.lstrip("-").split("=")[0] in LOCAL | {"runs", "output"}:
            skip = "=" not in argument
        else:
            kept.append(argument)
    return kept


if __name__ == "__main__":
    define_flags()
    program.run(main, UserError)
