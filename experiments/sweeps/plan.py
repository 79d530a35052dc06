"""The runs of a grid or a study; every mistake in them is reported before the first one starts."""

import dataclasses
import difflib
import itertools
import math
import re
import shlex
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from absl import flags

from capsjax.models import PRESETS
from experiments.config import Config, UserError, command, names_of, network_config, resolve
from experiments.config.flags import parse_flags
from experiments.sweeps.grid import parse_grid
from experiments.sweeps.studies import STUDIES, Study, product

LIMIT = 200  # more runs than this need a confirmation
TUNING_SEED = "1000"  # of runs that only choose hyper-parameters
# Further flags of the runs of a row; each element makes one run for every seed.
Tuned = Mapping[str, Sequence[dict[str, str]]]


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    row: str
    seed: str
    tuned: dict[str, str]  # flags that tuning tries or has chosen
    arguments: tuple[str, ...]  # of the program
    config: Config  # that the arguments describe
    key: str  # its command on any machine, which identifies it in the ledger

    @property
    def workdir(self) -> Path:
        """The folder of the run."""
        return Path(self.config.workdir)


def find_study(name: str | None, grid: str | None, seeds: int = 0, yes: bool = False) -> Study:
    """Returns the study of a name, or one made of a grid.

    Args:
      name: in :data:`experiments.sweeps.studies.STUDIES`; empty or None for a grid.
      grid: see :func:`experiments.sweeps.grid.parse_grid`; empty or None for a named study.
      seeds: number of seeds 0, 1, ... that replace the study's; 0: keep those.
      yes: allow any number of runs.

    Raises:
      UserError: neither or both of name and grid, an unknown name, an invalid grid, or
        more than :data:`LIMIT` runs.
    """
    if bool(name) == bool(grid):
        raise UserError(f"give either --study={'|'.join(STUDIES)} or --grid")
    if grid:
        axes = parse_grid(grid)
        runs = math.prod(map(len, axes.values())) * max(1, seeds if "seed" not in axes else 1)
        if runs > LIMIT and not yes:
            raise UserError(f"--grid={grid} is {runs:,} runs; to run all of them, add --yes")
        study = product(axes, axes.pop("seed", ()))
    elif name in STUDIES:
        study = STUDIES[name]
    else:
        near = difflib.get_close_matches(name, STUDIES, 1)
        raise UserError(
            f"--study={name}: the studies are {', '.join(STUDIES)}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    if seeds:
        study = study._replace(seeds=tuple(map(str, range(seeds))))
    runs = len(study.rows) * max(1, len(study.seeds))
    runs += len(study.rows) * math.prod(map(len, study.tuning.values())) if study.tuning else 0
    if runs > LIMIT and not yes:
        raise UserError(f"{runs:,} runs; to run all of them, add --yes")
    return study


def changed_flags(base: Config, defaults: Config) -> dict:
    """Returns the flags of the program that differ from its defaults.

    Unlike :func:`experiments.config.given_flags` it keeps values that equal those of the preset.

    Raises:
      UserError: ``--workdir`` is given, which differs for every run.
    """
    if base.workdir:
        raise UserError("--workdir is for one run; a sweep keeps its runs under --runs")
    names = (f.name for f in dataclasses.fields(base))
    return {n: getattr(base, n) for n in names if getattr(base, n) != getattr(defaults, n)}


def candidates(study: Study) -> Tuned:
    """Returns the flags that tuning tries for each row."""
    axes = study.tuning
    tries = [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    return dict.fromkeys(study.rows, tries)


def choose(
    tuning_runs: Iterable[PlannedRun], entries: dict[str, dict]
) -> dict[str, list[dict[str, str]]]:
    """Returns for each row the tuned flags with the smallest validation error.

    Among equal errors the smallest validation loss decides. Rows without a successful run are
    omitted. Runs are those of :func:`candidates`, and entries those of the ledger.

    Raises:
      UserError: there are no validation images.
    """
    best: dict[str, tuple] = {}
    for run in tuning_runs:
        summary = entries.get(run.key, {}).get("summary")
        if summary:
            score = summary["validation_error"], summary["validation_loss"]
            if None in score:
                raise UserError("tuning needs validation images, and there are none: add images")
            if run.row not in best or score < best[run.row][0]:
                best[run.row] = score, run.tuned
    return {row: [tuned] for row, (_, tuned) in best.items()}


def make(
    study: Study, given: dict, folder: Path, defaults: Config, tuned: Tuned, seeds: Sequence[str]
) -> list[PlannedRun]:
    """Returns the runs of a study; runs with frozen couplings follow the runs that provide them.

    Args:
      study: whose rows are run.
      given: flags of all runs; the flags of rows and the seeds take precedence.
      folder: which holds the folders of all runs.
      defaults: of the program.
      tuned: the rows to run, and their further flags.
      seeds: of each row; empty: the seed of the flags.

    Raises:
      UserError: the program does not have a flag, a value or a combination of them, two rows
        are the same runs, or no run provides the frozen couplings.
    """
    runs: list[PlannedRun] = []
    for row, point in study.rows.items():
        for more in tuned.get(row, ()):
            for seed in seeds or ("",):
                own = given | dict(point) | more | ({"seed": seed} if seed else {})
                runs.append(_run(row, seed, more, own, folder, defaults))
    by_key: dict[str, PlannedRun] = {}
    for run in runs:
        if (other := by_key.setdefault(run.key, run)) is not run:
            raise UserError(f"rows {other.row!r} and {run.row!r} describe the same run; remove one")
    runs = [_with_couplings(run, runs, study, defaults) if _is_orphan(run) else run for run in runs]
    return sorted(runs, key=lambda run: run.config.routing == "frozen")


def _run(row, seed, tuned, own, folder, defaults) -> PlannedRun:
    config = _parse(defaults, own)
    network = PRESETS.get(f"{config.model}_{config.preset}")
    shape = network.image_shape if network else (28, 28, 1)
    network_config(resolve(config, "mnist"), shape, 10)
    key = identity(config, defaults)
    if config.frozen_from:  # other couplings are another run
        key += f" {shlex.quote(f'--frozen_from={config.frozen_from}')}"
    name = row + "".join(f",{n}={v}" for n, v in tuned.items()) + (f",seed={seed}" if seed else "")
    readable = re.sub(r"[^\w=.,-]+", "-", name.replace(", ", ",")).strip(",-")
    readable = readable.encode()[:150].decode(errors="ignore")  # the checksum tells them apart
    own = own | {"workdir": str(folder / f"{readable},{_checksum(key)}".lstrip(","))}
    config = dataclasses.replace(config, workdir=own["workdir"])
    return PlannedRun(row, seed or str(config.seed), tuned, _arguments(own), config, key)


def _checksum(key: str) -> str:
    return f"{zlib.crc32(key.encode()):08x}"


def _parse(defaults: Config, own: dict) -> Config:
    try:
        return parse_flags(defaults, list(_arguments(own)))
    except (flags.Error, ValueError, AttributeError) as error:
        raise UserError(str(error)) from error


def _arguments(own: dict) -> tuple[str, ...]:
    return tuple(f"--{name}={value}" for name, value in own.items())


def identity(config: Config, defaults: Config) -> str:
    """Returns the command of a run without the flags that do not affect its result."""
    neutral = {name: getattr(defaults, name) for name in names_of(config, "neutral")}
    return command(dataclasses.replace(config, **neutral), defaults)


def _is_orphan(run: PlannedRun) -> bool:
    return run.config.routing == "frozen" and not run.config.frozen_from


def _with_couplings(
    run: PlannedRun, runs: list[PlannedRun], study: Study, defaults: Config
) -> PlannedRun:
    """Returns a frozen run with the couplings of the dynamic run that is otherwise the same."""
    wanted = dict(study.rows[run.row]) | {"routing": "dynamic"}
    found = [r for r in runs if study.rows[r.row] == wanted and r.seed == run.seed]
    if not found:
        raise UserError(
            f"{run.row!r} has --routing=frozen: add a row that is the same with --routing=dynamic, "
            "or name a finished run with --frozen_from"
        )
    source = next((r for r in found if r.tuned == run.tuned), found[0])
    key, place = run.key, run.config.workdir
    if source.tuned != run.tuned:  # with other data tuning may choose another source
        key += f" --frozen_from={_checksum(source.key)}"
        place = f"{place.rpartition(',')[0]},{_checksum(key)}"
    changes = {"workdir": place, "frozen_from": source.config.workdir}
    config = dataclasses.replace(run.config, **changes)
    kept = [word for word in run.arguments if not word.startswith("--workdir=")]
    arguments = (*kept, *_arguments(changes))
    return dataclasses.replace(run, config=config, arguments=arguments, key=key)


def part(runs: list[PlannedRun], which: int, parts: int) -> list[PlannedRun]:
    """Returns the runs of one of several machines, about the same number for each.

    Neighbours stay together, because they can be trained together, and frozen runs stay with the
    runs that provide their couplings.
    """
    units: dict[str, list[PlannedRun]] = {}
    for run in runs:
        units.setdefault(run.config.frozen_from or run.config.workdir, []).append(run)
    names = list(units)
    mine = names[which * len(names) // parts : (which + 1) * len(names) // parts]
    return [run for run in runs if (run.config.frozen_from or run.config.workdir) in mine]
