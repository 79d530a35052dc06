"""What a study found, written for people and programs: OUTPUT.md, .csv, .tex, .png and .json."""

from pathlib import Path
from typing import NamedTuple

from experiments import plots
from experiments.config import Config, given_flags
from experiments.plots.text_tables import comma_separated, latex, markdown
from experiments.sweeps import tables
from experiments.sweeps.plan import PlannedRun
from experiments.sweeps.studies import Study
from experiments.training.workdir import write_json

# Of a summary, for OUTPUT.json.
KEPT = ("routing", "votes", "squash", "loss", "depth", "seed", "parameters", "steps")
KEPT += ("test_error", "test_errors", "test_examples", "validation_error")
KEPT += ("images_per_second", "training_seconds", "peak_memory_mb", "commit")


class Findings(NamedTuple):
    """Everything a report is made from."""

    name: str  # of the study
    study: Study
    tried: list[PlannedRun]  # of tuning
    runs: list[PlannedRun]
    entries: dict[str, dict]  # of the ledger
    command: str  # that made it
    more: dict[str, dict]  # numbers of further columns, by key of the run
    notes: list[str]  # what else should be known

    @property
    def done(self) -> list[tuple[PlannedRun, dict]]:
        """Runs that succeeded, and their summaries."""
        found = ((run, self.entries.get(run.key, {}).get("summary")) for run in self.runs)
        return [(run, summary) for run, summary in found if summary]

    @property
    def commits(self) -> str:
        return ", ".join(sorted({str(summary["commit"]) for _, summary in self.done}))

    @property
    def tables(self) -> list[list[tables.Row]]:
        return tables.rows(self.study, self.runs, self.entries, self.more)

    @property
    def note(self) -> str:
        """What the columns mean."""
        further = self.more or self.study.columns
        return f"{tables.NOTE} {tables.MORE_NOTE}" if further else tables.NOTE


def report(findings: Findings) -> str:
    """Markdown: what is asked, how it was tuned, tables, and what they mean."""
    f = findings
    parts = [f.study.about] if f.study.about else []
    if f.tried:
        parts += [tuning(f)]
    parts += [markdown(*tables.cells(f.study, table)) for table in f.tables]
    parts += [f.note, *f.notes, f"`{f.command}`, commit {f.commits}"]
    return "\n\n".join(parts)


def tuning(findings: Findings) -> str:
    """A table of validation errors, the chosen ones bold."""
    f = findings
    values = list(dict.fromkeys(", ".join(run.tuned.values()) for run in f.tried))
    chosen = {(run.row, ", ".join(run.tuned.values())) for run in f.runs}
    found = {}
    for run in f.tried:
        summary = f.entries.get(run.key, {}).get("summary")
        text = f"{summary['validation_error']:.2f}" if summary else "failed"
        place = run.row, ", ".join(run.tuned.values())
        found[place] = f"**{text}**" if place in chosen else text
    lines = [[row, *(found.get((row, v), "") for v in values)] for row in f.study.rows]
    said = f"Validation error, %, of one run each over {', '.join(f.study.tuning)}; the runs below "
    said += "have the values in bold:"
    return f"{said}\n\n{markdown([tables.heads(f.study)[0], *values], lines)}"


def write(findings: Findings, output: Path) -> list[Path]:
    """All files; returns their paths."""
    f, paths = findings, [output.with_name(output.name + s) for s in (".md", ".csv", ".tex")]
    paths += [output.with_name(output.name + s) for s in (".png", ".json")]
    parts = [tables.cells(f.study, table) for table in f.tables]
    caption = f"{f.name}. {f.note} {f.command}, commit {f.commits}"
    _replace(paths[0], report(f) + "\n")
    _replace(paths[1], "\n".join(comma_separated(*part) for part in parts))
    _replace(paths[2], "\n\n".join(latex(*part, caption) for part in parts) + "\n")
    dots = [
        [plots.Dots(", ".join(row.names), [*row.errors.values()], *row.interval) for row in table]
        for table in f.tables
    ]
    plots.plot_intervals(paths[3], dots, title=f"{f.name}: test error of {_data(f)}")
    write_json(paths[4], as_json(f))
    return paths


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)


def _data(findings: Findings) -> str:
    return " and ".join(sorted({summary["dataset"] for _, summary in findings.done}))


def as_json(findings: Findings) -> dict:
    """Runs, tables, and how they were made."""
    f = findings
    rows = []
    for row in (row for table in f.tables for row in table):
        compared = row.comparison
        rows.append(row._asdict() | {"mean": row.mean, "deviation": row.deviation})
        rows[-1]["comparison"] = compared and compared._asdict() | {"verdict": compared.verdict}
    return {
        "command": f.command,
        "commit": f.commits.split(", "),
        "device_kind": sorted({summary["device_kind"] for _, summary in f.done}),
        "versions": f.done[0][1]["versions"],
        "study": f.name,
        "rows": rows,
        "runs": [
            dict(f.study.rows[run.row])
            | run.tuned
            | {k: summary[k] for k in KEPT}
            | {"row": run.row, "command": run.key}
            for run, summary in f.done
        ],
    }


def log_hparams(
    runs: list[PlannedRun], entries: dict[str, dict], defaults: Config, folder: Path
) -> None:
    """Runs for TensorBoard's HParams view, where tensorboardX is installed; each once."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return
    done = [run for run in runs if "summary" in entries.get(run.key, {})]
    fresh = [run for run in done if not (folder / run.workdir.name).exists()]
    if not fresh:
        return
    with SummaryWriter(str(folder)) as writer:
        for run in fresh:
            summary = entries[run.key]["summary"]
            given = given_flags(run.config, defaults) | {"seed": run.config.seed, "row": run.row}
            given = {n: v if isinstance(v, int | float) else str(v) for n, v in given.items()}
            names = ("test_error", "validation_error", "test_loss", "training_seconds")
            metrics = {f"sweep/{n}": summary[n] for n in names if summary[n] is not None}
            writer.add_hparams(given, metrics, name=run.workdir.name, global_step=summary["steps"])
