"""The command scaling: exponents and counts. Times themselves are not tested."""

import json

import numpy as np
import pytest
from helpers import read_json

from capsjax import preset
from experiments import scaling
from experiments.benchmarks import throughput
from experiments.config.flags import parse_flags
from kernels import bench
from kernels.problems import Problem


@pytest.mark.parametrize("p", [-1, 0, 0.5, 2])
def test_exponent_of_a_power(p):
    x = np.array([3.0, 5.0, 20.0])
    assert scaling.exponent(x, 7 * x**p) == p


def test_arithmetic_equals_that_of_the_benchmark():
    sizes = {"B": 6, "I": 11, "J": 5}
    *_, work = scaling.routing("naive", **sizes, R=3)
    assert work == bench.cost("routing, gradients", Problem(**sizes), 4)[1]


def test_arithmetic_of_a_step():
    *_, work = scaling.training("naive", 20)
    config = preset("capsnet_small", image_shape=(20, 20, 1))
    assert work == 16 * throughput.flops_per_image(config)


def test_program(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scaling, "AXES", {"I": (8, 16), "R": (2, 3)})
    monkeypatch.setattr(scaling, "BASE", {"B": 2, "I": 8, "J": 3, "R": 3})
    monkeypatch.setattr(scaling, "seconds", lambda run, *arguments: [len(run(*arguments)) * 1e-3])
    scaling.main(
        parse_flags(scaling.DEFAULTS, ["--implementation=naive", f"--output={tmp_path / 's'}"])
    )
    result = json.loads(capsys.readouterr().out)
    assert read_json(tmp_path / "s.json") == result
    assert result["seed"] == 0
    input_capsules, iterations = result["rows"]
    assert input_capsules["sizes"] == [8, 16] and input_capsules["milliseconds"] == [2.0, 2.0]
    assert input_capsules["exponents"]["time"] == 0
    assert input_capsules["exponents"]["arithmetic"] == 1
    assert iterations["exponents"]["arithmetic"] == pytest.approx(
        np.log(21 / 12) / np.log(1.5), abs=0.005
    )
    text = (tmp_path / "s.md").read_text()
    assert "| input capsules | 8, 16 | 2, 2 |" in text and "--implementation=naive" in text
