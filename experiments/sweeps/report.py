"""The report of a study, for readers and programs: OUTPUT.md, .csv, .tex, .png and .json."""

from pathlib import Path
from typing import NamedTuple

from experiments import plots
from experiments.config import Config, given_flags
from experiments.files import write_json, write_text
from experiments.plots.text_tables import comma_separated, latex, markdown
from experiments.sweeps import tables
from experiments.sweeps.plan import PlannedRun
from experiments.sweeps.studies import Study

# Fields of summary.json that OUTPUT.json has.
KEPT = ("routing", "votes", "squash", "loss", "depth", "seed", "parameters", "steps")
KEPT += ("test_error", "test_errors", "test_examples", "validation_error")
KEPT += ("images_per_second", "training_seconds", "peak_memory_mb", "commit")
# Fields that all parts of a report need.
REPORTED = {*KEPT, "validation_loss", "test_loss", "wall_seconds", "device_kind", "versions"}
REPORTED |= {"dataset"}


class StudyReport(NamedTuple):
    """Everything that a report is made of."""

    name: str  # of the study
    study: Study
    tuning_runs: list[PlannedRun]
    runs: list[PlannedRun]
    entries: dict[str, dict]  # of the ledger
    command: str  # of the sweep
    extra_columns: dict[str, dict]  # numbers by key of the run and heading
    notes: list[str]  # further paragraphs

    @property
    def done(self) -> list[tuple[PlannedRun, dict]]:
        """The runs that succeeded, and their summaries."""
        found = ((run, self.entries.get(run.key, {}).get("summary")) for run in self.runs)
        return [(run, summary) for run, summary in found if summary]

    @property
    def commits(self) -> str:
        """The commits at which the runs were trained."""
        return ", ".join(sorted({str(summary["commit"]) for _, summary in self.done}))

    @property
    def tables(self) -> list[list[tables.Row]]:
        """The rows of each table."""
        return tables.rows(self.study, self.runs, self.entries, self.extra_columns)

    @property
    def note(self) -> str:
        """The explanation of the columns."""
        extra = self.extra_columns or self.study.columns
        return f"{tables.NOTE} {tables.EXTRA_NOTE}" if extra else tables.NOTE


def to_markdown(report: StudyReport) -> str:
    """Returns the report in Markdown: question, tuning, tables and their explanation."""
    f = report
    parts = [f.study.about] if f.study.about else []
    if f.tuning_runs:
        parts += [tuning_table(f)]
    parts += [markdown(*tables.cells(f.study, table)) for table in f.tables]
    parts += [f.note, *f.notes, f"`{f.command}`, commit {f.commits}"]
    return "\n\n".join(parts)


def tuning_table(report: StudyReport) -> str:
    """Returns a table of validation errors in Markdown, the chosen ones bold."""
    f = report
    values = list(dict.fromkeys(", ".join(run.tuned.values()) for run in f.tuning_runs))
    chosen = {(run.row, ", ".join(run.tuned.values())) for run in f.runs}
    found = {}
    for run in f.tuning_runs:
        summary = f.entries.get(run.key, {}).get("summary")
        text = f"{summary['validation_error']:.2f}" if summary else "failed"
        place = run.row, ", ".join(run.tuned.values())
        found[place] = f"**{text}**" if place in chosen else text
    lines = [[row, *(found.get((row, v), "") for v in values)] for row in f.study.rows]
    about = f"Validation error, %, of one run each over {', '.join(f.study.tuning)}; the runs "
    about += "below have the values in bold:"
    return f"{about}\n\n{markdown([tables.name_headings(f.study)[0], *values], lines)}"


def write(report: StudyReport, output: Path) -> list[Path]:
    """Writes all files and returns their paths."""
    f, paths = report, [output.with_name(output.name + s) for s in (".md", ".csv", ".tex")]
    paths += [output.with_name(output.name + s) for s in (".png", ".json")]
    parts = [tables.cells(f.study, table) for table in f.tables]
    caption = f"{f.name}. {f.note} {f.command}, commit {f.commits}"
    write_text(paths[0], to_markdown(f) + "\n")
    write_text(paths[1], "\n".join(comma_separated(*part) for part in parts))
    write_text(paths[2], "\n\n".join(latex(*part, caption) for part in parts) + "\n")
    dots = [
        [plots.Dots(", ".join(row.names), [*row.errors.values()], *row.interval) for row in table]
        for table in f.tables
    ]
    write_json(paths[4], to_json(f))
    plots.plot_intervals(paths[3], dots, title=f"{f.name}: test error of {_dataset_names(f)}")
    return paths


def _versions(every: list[dict[str, str]]) -> dict[str, str]:
    """Returns the versions of each package, several separated by commas."""
    names = {name: None for versions in every for name in versions}
    return {n: ", ".join(sorted({v[n] for v in every if n in v})) for n in names}


def _dataset_names(report: StudyReport) -> str:
    return " and ".join(sorted({summary["dataset"] for _, summary in report.done}))


def to_json(report: StudyReport) -> dict:
    """Returns rows and runs, and the command, commits, device and versions of their training."""
    f = report
    rows = []
    for row in (row for table in f.tables for row in table):
        compared = row.comparison
        fields = row._asdict()
        fields["more"] = fields.pop("extra_columns")  # the name in published files
        rows.append(fields | {"mean": row.mean, "deviation": row.deviation})
        rows[-1]["comparison"] = compared and compared._asdict() | {"verdict": compared.verdict}
    return {
        "command": f.command,
        "commit": f.commits.split(", "),
        "device_kind": sorted({summary["device_kind"] for _, summary in f.done}),
        "versions": _versions([summary["versions"] for _, summary in f.done]),
        "study": f.name,
        "rows": rows,
        "runs": [
            dict(f.study.rows[run.row])
            | run.tuned
            | {k: summary[k] for k in KEPT}
            | {"model": run.config.model, "preset": run.config.preset}
            | {"row": run.row, "command": run.key}
            for run, summary in f.done
        ],
    }


def log_hparams(
    runs: list[PlannedRun], entries: dict[str, dict], defaults: Config, folder: Path
) -> None:
    """Logs each run once for TensorBoard's HParams view, where tensorboardX is installed."""
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
