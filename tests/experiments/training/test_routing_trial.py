"""``--routing_implementation=auto`` where kernels run: stand-ins of every kind of bad kernel."""

import dataclasses
import json
import re
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import QUICK, prepare_run, read_json, train

from capsjax.routing import stream
from experiments.tasks import figures
from experiments.tasks.registry import find_program
from experiments.training import routing_trial, vmapped_loop
from experiments.training.routing_trial import UNFINISHED, read
from kernels import api, approval, bench, trial
from kernels.approval import Shapes
from kernels.problems import PROBLEMS
from kernels.trial import Verdict

RIGHT = stream.STREAM
SHAPES = Shapes("cpu", "float32", PROBLEMS["tiny"])
PRIOR = Shapes("cpu", "float32", PROBLEMS["ragged"])


def changed(part, change):
    """Returns right kernels, but for one function whose result is changed."""

    def wrong(*args):
        return change(getattr(RIGHT, part)(*args))

    return RIGHT._replace(**{part: wrong})


def fails(*_):
    raise RuntimeError("the compiler\nsays no")


def slow(*args):
    def again(_, S):
        return RIGHT.forward(args[0], S, args[2]) * 1e-30 + RIGHT.forward(*args)

    return jax.lax.fori_loop(0, 300, again, jnp.zeros_like(args[1]))


RELEASED = threading.Event()


def hangs(*_):
    RELEASED.wait()


def scaled(x):
    return jax.tree.map(lambda a: 1.01 * a, x)


BAD = {
    "raises": (RIGHT._replace(forward=fails), "failed, RuntimeError: the compiler says no"),
    # The kernels for TPUs themselves: Pallas refuses to compile them for a CPU.
    "does not compile": (api.pass_kernels("tpu"), "failed, .*CPU"),
    "values": (changed("forward", scaled), "values of pallas are off by 0.0[12]"),
    "gradients of the state": (changed("backward_state", lambda x: (2 * x[0], x[1])), "gradients"),
    "gradients of inputs": (changed("backward_state", lambda x: (x[0], scaled(x[1]))), "gradients"),
    "nan": (changed("forward", lambda x: x * jnp.nan), "values of pallas are not finite"),
    "slow": (RIGHT._replace(forward=slow), r"stream [\d.]+ ms, pallas [\d.]+ ms"),
    "hangs": (RIGHT._replace(backward_state=hangs), "not tried to the end within 0 s"),
}


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "of_finished_run", lambda *_: [])
        yield
    RELEASED.set()


@pytest.fixture(autouse=True)
def nothing_approved(monkeypatch):
    monkeypatch.setattr(approval, "_approved", set())


@pytest.mark.parametrize("kind", BAD)
def test_bad_kernels_end_in_stream(kind):
    kernels, reason = BAD[kind]
    seconds = 0.4 if kind == "hangs" else 60
    verdict = trial.decide(SHAPES, kernels, iterations=2, seconds=seconds)
    assert verdict.implementation == "stream" and re.search(reason, verdict.reason), verdict
    assert "\n" not in verdict.reason


@pytest.mark.parametrize("name", ["W", "prior", "u"])
def test_no_array_hides_a_number_that_is_none(name):
    right = {key: np.full((2, 3), 0.5) for key in ("W", "prior", "u")}
    wrong = right | {name: np.array([[0.5, 0.5, np.nan], [0.5, 0.5, 0.5]])}
    assert np.isnan(bench.error(wrong, right)) and bench.error(right, right) == 0
    assert bench.error(right | {name: 2 * right[name]}, right) == 1


def test_shapes_that_are_asked_for_are_told_to_every_context():
    with approval.asked_for() as outer:
        with approval.asked_for() as inner:
            pass
        approval.is_approved(SHAPES)
    assert outer == {SHAPES} and not inner


@pytest.mark.parametrize(
    "shapes, options, faster",
    [(SHAPES, {"mapped": True}, "pallas"), (PRIOR, {"gradient": "stop"}, "stream")],
    ids=["mapped", "prior"],
)
def test_right_kernels_are_taken_if_they_are_faster(shapes, options, faster, monkeypatch):
    times = {"stream": 0.002, "pallas": 0.002, faster: 0.001}
    monkeypatch.setattr(trial, "_times", lambda functions, x: times)
    verdict = trial.decide(shapes, RIGHT, iterations=2, seconds=60, **options)
    assert verdict.implementation == faster and f"{faster} 1.00 ms" in verdict.reason


def test_kernels_that_are_wrong_only_when_they_are_mapped(monkeypatch):
    @jax.custom_batching.custom_vmap
    def double_if_mapped(x):
        return x

    @double_if_mapped.def_vmap
    def _(size, batched, x):
        return 2 * x, True

    monkeypatch.setattr(trial, "_times", lambda *_: {"stream": 2.0, "pallas": 1.0})
    kernels = changed("forward", double_if_mapped)
    found = [
        trial.decide(SHAPES, kernels, iterations=2, mapped=mapped, seconds=60)
        for mapped in (False, True)
    ]
    assert [verdict.implementation for verdict in found] == ["pallas", "stream"]


# In programs


@pytest.fixture
def standing_in(monkeypatch):
    """Lets ``auto`` find kernels on this CPU; returns a function that says which."""
    monkeypatch.setattr(api, "_why_not", lambda *_: None)
    calls = []

    def use(kernels, times=None):
        def counted(*args):
            calls.append(args)
            return kernels.forward(*args)

        found = kernels._replace(forward=counted)
        monkeypatch.setattr(api, "pass_kernels", lambda *_, **__: found)
        if times:
            monkeypatch.setattr(trial, "_times", lambda *_: times)
        return calls

    return use


def at(folder, **changes):
    changes = {"cache_dir": str(folder / "cache"), "batch_size": 16, "steps": 3} | changes
    name = changes.pop("name", "run")
    return dataclasses.replace(QUICK, workdir=str(folder / name), log_every=1, **changes)


@pytest.mark.parametrize(
    "kind", [k if k == "raises" else pytest.param(k, marks=pytest.mark.slow) for k in BAD]
)
def test_digits_train_to_the_end_whatever_the_kernels_do(
    kind, standing_in, tmp_path, capsys, monkeypatch
):
    if kind == "hangs":
        monkeypatch.setattr(routing_trial, "SECONDS", 0.4)
    standing_in(BAD[kind][0])
    train(at(tmp_path, steps=1 if kind == "raises" else 60, batch_size=64))
    said = re.findall("routing of .*", capsys.readouterr().err)
    assert len(said) == 1 and re.fullmatch(
        rf"routing of \d+ to 10 capsules, batches of 64: stream \(.*{BAD[kind][1]}.*\)", said[0]
    )
    summary = read_json(tmp_path / "run" / "summary.json")
    assert kind == "raises" or summary["test_error"] < 50


def test_a_named_implementation_is_not_tried(standing_in, tmp_path, capsys):
    standing_in(BAD["raises"][0])
    routing_trial.settle(prepare_run(at(tmp_path, routing_implementation="stream")))
    assert capsys.readouterr().err == "" and not (tmp_path / "cache" / "verdicts").exists()


def test_approved_kernels_run_and_the_verdict_is_kept(standing_in, tmp_path, capsys, monkeypatch):
    calls = standing_in(RIGHT, {"stream": 2.0, "pallas": 1.0})
    made = prepare_run(at(tmp_path))
    routing_trial.settle(made)
    tried = len(calls)
    shapes = {s for s in approval._approved if s.problem.B == 16}
    assert tried and len(shapes) == 1 and next(iter(shapes)).problem.J == 10
    for size in (16, 8):  # the second was not tried
        images = jax.ShapeDtypeStruct((size, 28, 28, 1), "float32")
        before = len(calls)
        jax.eval_shape(lambda x: made.model.apply(made.model.init(jax.random.key(0)), x), images)
        assert (len(calls) > before) == (size == 16)
    # Another process: the verdict is in the cache folder.
    monkeypatch.setattr(approval, "_approved", set())
    monkeypatch.setattr(trial, "decide", lambda *_, **__: pytest.fail("tried again"))
    capsys.readouterr()
    routing_trial.settle(made)
    assert approval._approved == shapes
    assert capsys.readouterr().err.endswith("pallas (stream 2000.00 ms, pallas 1000.00 ms)\n")
    for change in ({"jax": "0.1"}, {"device_kind": "other"}, {"source": "0"}):
        facts = trial.circumstances(jax.devices()[0]) | change
        monkeypatch.setattr(trial, "circumstances", lambda _, facts=facts: facts)
        with pytest.raises(pytest.fail.Exception, match="tried again"):
            routing_trial.settle(made)


def test_runs_together_are_tried_as_they_run(standing_in, tmp_path, monkeypatch):
    standing_in(RIGHT)
    asked = []

    def decide(*args, **options):
        asked.append(options["mapped"])
        raise KeyboardInterrupt  # instead of training

    monkeypatch.setattr(trial, "decide", decide)
    configs = [at(tmp_path, name=f"s{n}", seed=n) for n in range(2)]
    for start in (
        lambda: vmapped_loop.run(find_program("mnist"), configs),
        lambda: train(at(tmp_path)),
    ):
        with pytest.raises(KeyboardInterrupt):
            start()
    assert asked == [True, False]


# The file of a verdict

FACTS = {"jax": "1", "B": 16}
GOOD = FACTS | {"implementation": "pallas", "reason": "faster", "time": 0.0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        json.dumps(GOOD | {"B": 17}),
        json.dumps(GOOD | {"implementation": "os.system"}),
        json.dumps(GOOD | {"reason": None}),
        json.dumps(GOOD | {"reason": "two\nlines"}),
        json.dumps(GOOD | {"time": "now"}),
        json.dumps({k: v for k, v in GOOD.items() if k != "jax"}),
    ],
    ids=range(10),
)
def test_a_file_that_is_no_verdict_is_ignored(text, tmp_path):
    path = tmp_path / "verdict.json"
    assert read(path, FACTS) is None
    path.write_text(json.dumps(GOOD))
    assert read(path, FACTS) == Verdict("pallas", "faster")
    path.write_text(text)
    assert read(path, FACTS) is None


def test_a_trial_that_ended_its_process_is_not_repeated(tmp_path):
    path = tmp_path / "verdict.json"
    started = GOOD | {"implementation": "stream", "reason": UNFINISHED}
    path.write_text(json.dumps(started | {"time": time.time()}))
    assert read(path, FACTS) is None, "another process may be trying at this moment"
    path.write_text(json.dumps(started | {"time": time.time() - 1000}))
    verdict = read(path, FACTS)
    assert verdict.implementation == "stream" and f"delete {path}" in verdict.reason


def test_an_interrupted_trial_leaves_no_verdict(standing_in, tmp_path, monkeypatch):
    standing_in(RIGHT)
    made = prepare_run(at(tmp_path))

    def interrupted(*_, **__):
        assert len(list((tmp_path / "cache" / "verdicts").iterdir())) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "decide", interrupted)
    with pytest.raises(KeyboardInterrupt):
        routing_trial.settle(made)
    assert not list((tmp_path / "cache" / "verdicts").iterdir())


def test_nothing_is_kept_without_a_cache_folder(standing_in, tmp_path, monkeypatch):
    standing_in(RIGHT)
    made = prepare_run(at(tmp_path, cache_dir="none"))
    monkeypatch.setattr(routing_trial, "cache_folder", lambda _: pytest.fail("a folder"))
    monkeypatch.setattr(trial, "_times", lambda *_: {"stream": 1.0, "pallas": 2.0})
    routing_trial.settle(made)
    assert not approval._approved


def test_gradients_of_the_trial_are_those_of_all_arrays():
    """Otherwise a kernel with a wrong dW or a wrong gradient of the prior could pass."""
    arrays = PRIOR.problem.specs()
    both = jax.eval_shape(trial._function(PRIOR.problem, "naive", 3, "full"), arrays)
    assert both["gradients"].keys() == arrays.keys() == {"u", "W", "prior"}
