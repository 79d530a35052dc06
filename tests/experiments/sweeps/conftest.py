"""Fixtures of the tests of sweeps."""

import pytest
from made_up_sweep import STUDY, WRONG, correct, entry, runs_of

from experiments.sweeps import report


@pytest.fixture
def made():
    runs = runs_of(STUDY)
    entries = {}
    for run in runs:
        wrong = WRONG[run.config.routing][int(run.seed)]
        entries[run.key] = entry(
            run.key,
            correct(wrong, run.config.seed),
            seed=run.config.seed,
            routing=run.config.routing,
        )
    return report.StudyReport(
        "grid", STUDY, [], runs, entries, "python -m experiments.sweep --grid=a|b_c", {}, []
    )
