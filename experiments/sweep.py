"""Many runs of one program, and the table of what they gave.

    python -m experiments.sweep --study=routing --dataset=digits --preset=small
    python -m experiments.sweep --grid="routing=dynamic,em;seed=0,1,2" --dataset=digits

Every run is a process of its own with a folder of its own, so a run that fails stops no other,
and the same command again does what is missing. Flags of the program apply to all runs. With
``--output=results/NAME`` the table, and the summaries it is made from, are written there.
"""

import itertools
import json
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
    given = base.given(BASE)
    folder = Path(F.runs or default_folder(given, F.study or "grid"))
    given |= {n: getattr(base, n) for n in ("data_dir", "cache_dir") if getattr(base, n)}
    plan = make_plan(grid, given, folder)
    if F.dry_run:
        print(*(" ".join(command(run)) for run in plan), sep="\n")
        return
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
        grid = {name.strip(): tuple(values.split(",")) for name, _, values in axes}
        if len(grid) < len(axes) or not all(n and all(v) for n, v in grid.items()):
            raise UserError(f"--grid={text}: write it as 'routing=em,vb;seed=0,1'")
    if seeds:
        grid["seed"] = tuple(map(str, range(seeds)))
    return grid


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
    return plan


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
    workdir.mkdir(parents=True, exist_ok=True)
    flags_ = [str(v) for v in command(run)[1:] if not v.startswith("--workdir=")]
    where = [f"--workdir={workdir.resolve()}"]
    done = subprocess.run(
        [sys.executable, *flags_, *where], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode in (-2, 128 + 2, 128 + 15):
        raise KeyboardInterrupt
    error = workdir / "error.txt"
    if done.returncode:
        error.write_text(done.stderr)
        tqdm.write(f"{workdir.name}: {(done.stderr.splitlines() or ['?'])[-1]}", sys.stderr)
        return False
    error.unlink(missing_ok=True)
    summary = read(run)
    tqdm.write(f"{workdir.name}: {summary['test_error']:.2f}% test error", sys.stderr)
    return True


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
    count = max(map(len, groups.values()))
    lines += ["", f"Mean ± standard deviation of {count} seeds; medians of the rest."]
    return "\n".join(lines)


def write(output: str, grid: dict, runs: list[dict], text: str) -> None:
    """OUTPUT.json and OUTPUT.md."""
    summaries = [run["summary"] for run in runs]
    made_by = " ".join(
        ["python -m experiments.sweep", *(a for a in sys.argv[1:] if not local(a))]
    )
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
    io.write_json(path.with_suffix(".json"), about | {"grid": grid, "runs": rows})
    foot = f"\n\n`{made_by}`, commit {', '.join(about['commit'])}\n"
    path.with_suffix(".md").write_text(text + foot)


def local(argument: str) -> bool:
    """Whether a flag only says where things are on this machine."""
    return argument.lstrip("-").split("=")[0] in ("runs", "cache_dir", "data_dir", "output")


if __name__ == "__main__":
    define_flags()
    program.run(main, UserError)
