"""Traces of a few steps."""

import dataclasses
import gzip
import json

import pytest
from helpers import QUICK, metrics_rows, train


@pytest.mark.slow
def test_profile_traces_the_second_chunk_without_changing_results(tmp_path):
    config = dataclasses.replace(QUICK, steps=9, log_every=2)
    plain, traced = (
        train(dataclasses.replace(config, workdir=str(tmp_path / name), profile=steps))
        for name, steps in [("plain", 0), ("traced", 3)]
    )
    assert [row["step"] for row in metrics_rows(tmp_path / "traced")] == [2, 5, 6, 8, 9]
    assert metrics_rows(tmp_path / "plain")[-1] == metrics_rows(tmp_path / "traced")[-1]
    assert plain["test_errors"] == traced["test_errors"]
    assert not (tmp_path / "plain" / "profile").exists()
    (folder,) = (tmp_path / "traced" / "profile" / "plugins" / "profile").iterdir()
    assert list(folder.glob("*.xplane.pb"))  # TensorBoard's
    trace = json.loads(gzip.decompress((folder / "perfetto_trace.json.gz").read_bytes()))
    assert any("hlo_op" in event.get("args", {}) for event in trace["traceEvents"])
