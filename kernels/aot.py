"""Reports what routing costs on TPUs and NVIDIA GPUs, from their compilers alone.

``python -m kernels.aot --target=tpu_v5e`` compiles, for a device that need not be present (see
:mod:`kernels.targets`), five programs of every implementation: one pass over the input
capsules (pass), routing of three iterations, both also with gradients, and the training step
of a whole CapsNet. Nothing is run, hence nothing is timed. A row of the table has

* temporaries: memory in addition to arguments and results; on a TPU without VMEM;
* accessed: bytes that XLA's cost analysis counts, VMEM included. None for GPUs ("-"); a lower
  bound (">") where a program has loops, whose body counts once;
* the largest array, and where votes (arrays of B*I*J*D elements) are found: in "memory", in
  "VMEM", "fused" (values inside one kernel of XLA), or "no".

``--step --topology=2x2,16x16`` compiles the training step of a network on many devices instead,
see :mod:`kernels.plan`.
"""

import dataclasses
import json
import math
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

import capsjax
from capsjax.routing import normalize
from capsjax.routing.agreement import PassInputs
from kernels import cli, plan, targets
from kernels.problems import PROBLEMS

IMPLEMENTATIONS = ("naive", "stream", "pallas")
TARGETS = {name: (name,) for name in targets.TARGETS} | {"all": targets.TARGETS}
# The network of each problem, by the first word of the problem's name; cifar has I = 9216.
NETWORKS = {
    "mnist": capsjax.preset("capsnet_mnist"),
    "multimnist": capsjax.preset("capsnet_multimnist"),
    "cifar": capsjax.CapsNetConfig(image_shape=(40, 40, 3), primary_types=64),
}


def programs(name: str, dtype: str, implementation) -> dict[str, tuple]:
    """Returns functions and their arguments; the implementation is naive or PassKernels."""
    p, spec = PROBLEMS[name], jax.ShapeDtypeStruct
    normalizer, arrays = p.normalizer, p.specs(dtype)
    prior = spec((p.J, p.I), "float32") if p.prior else None
    inputs = PassInputs(spec((p.K, p.I, p.B), dtype), spec((p.J, p.K, p.D, p.I), dtype), prior)
    V = spec((p.J, p.D, p.B), "float32")

    def one_pass(inputs, V):
        forward = _naive_pass if implementation == "naive" else implementation.forward
        return forward(inputs, V, normalizer)

    def pass_gradients(inputs, V):
        if implementation == "naive":
            return jax.value_and_grad(lambda *xs: jnp.sum(one_pass(*xs) ** 2), (0, 1))(inputs, V)
        dS = 2 * one_pass(inputs, V)
        dV, dinputs = implementation.backward_state(inputs, V, dS, normalizer, None)
        if dinputs is None:
            dinputs = implementation.backward_inputs(inputs, V[None], dS[None], normalizer, False)
        return jnp.sum(dS**2) / 4, (dinputs, dV)

    def of_transposed(function):
        # W has the layout of the kernels, so that a pass is the kernel and nothing else.
        return lambda inputs, V: function(inputs._replace(W=inputs.W.transpose(3, 1, 0, 2)), V)

    def routing(arrays):
        return p.route(arrays, implementation=implementation).pose

    out = {
        "pass": (of_transposed(one_pass), inputs, V),
        "pass, gradients": (of_transposed(pass_gradients), inputs, V),
        "routing": (routing, arrays),
        "routing, gradients": (jax.value_and_grad(lambda xs: jnp.sum(routing(xs) ** 2)), arrays),
    }
    if network := NETWORKS.get(name.split("_")[0]):
        options = {"dtype": dtype, "routing_implementation": implementation}
        network = dataclasses.replace(network, **options)
        assert network.input_capsules == p.I, network
        out["step"] = plan.training_step(network, p.B)
    return out


def _naive_pass(inputs, V, normalizer):
    """Computes the pass ``forward`` with materialized votes ``[J, D, I, B]``."""
    votes = jnp.einsum("ikjd,kib->jdib", inputs.W, inputs.u, preferred_element_type=V.dtype)
    prior = 0 if inputs.prior is None else inputs.prior[:, :, None]
    logits = jnp.einsum("jdib,jdb->jib", votes, V) + prior
    return jnp.einsum("jib,jdib->jdb", normalize(logits, normalizer, axis=0), votes)


def describe(compiled: jax.stages.Compiled, votes: int) -> dict:
    """Returns the row of a compiled program; ``votes`` is the number of their elements."""
    text, memory = compiled.as_text(), compiled.memory_analysis()
    arrays = list(_arrays(text))
    elements, largest, _ = max(arrays)
    places = {place for size, _, place in arrays if size == votes}
    return {
        "temporaries": memory.temp_size_in_bytes,
        "accessed": (compiled.cost_analysis() or {}).get("bytes accessed"),
        "arguments": memory.argument_size_in_bytes,
        "loops": " while(" in text,
        "largest_array": largest,
        "largest_elements": elements,
        "votes": next((p for p in ("memory", "VMEM", "fused") if p in places), "no"),
    }


def _arrays(text):
    """Yields the number of elements, type and shape, and place of arrays in compiled HLO."""
    fusions = set(re.findall(r" fusion\(.*calls=%?([\w.-]+)", text))
    array = re.compile(r"\b((?:pred|bf16|[fsuc]\d\w*)\[([\d,]+)\])(\{[^}]*\})?")
    fused = False
    for line in text.splitlines():
        if start := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            fused = start[1] in fusions
        elif line.startswith("  "):
            for name, shape, layout in array.findall(line):
                place = "fused" if fused else "VMEM" if "S(1)" in layout else "memory"
                yield math.prod(map(int, shape.split(","))), name, place


def table(target: str, name: str, dtype: str, implementations: list[str]) -> list[dict]:
    """Compiles the programs of all implementations, and prints each row at once."""
    votes = PROBLEMS[name].votes_bytes // 4
    print(f"\n{target}, {name}, {dtype}; votes have {votes:,} elements; memory in 10^6 bytes\n")
    print("|implementation|function|temporaries|accessed|arguments|largest array|votes|")
    print("|---" * 7 + "|")
    rows = []
    for label in implementations:
        for function, call in programs(name, dtype, plan.implementation(label, target)).items():
            rows.append({"target": target, "implementation": label, "function": function})
            try:
                rows[-1] |= describe(targets.compile(*call, target=target), votes)
            except Exception as error:  # compilers raise errors of various types
                rows[-1]["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(_markdown(rows[-1]), flush=True)
    return rows


def _markdown(row):
    cells = [row["implementation"], row["function"]]
    if "error" in row:
        return f"|{'|'.join([*cells, row['error'].replace('|', '/')])}|||||"
    for name in ("temporaries", "accessed", "arguments"):
        bound = "> " if name == "accessed" and row["loops"] else ""
        cells.append("-" if row[name] is None else f"{bound}{row[name] / 1e6:,.1f}")
    return f"|{'|'.join([*cells, row['largest_array'], row['votes']])}|"


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    common = {"flag_values": flag_values}
    flags.DEFINE_enum("target", None, TARGETS, "device to compile for", required=True, **common)
    flags.DEFINE_enum(
        "problem", "mnist_b128", list(PROBLEMS), "sizes of the routed layer", **common
    )
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "type of u and W", **common)
    flags.DEFINE_list(
        "implementation", ",".join(IMPLEMENTATIONS), "of routing, comma-separated", **common
    )
    flags.register_validator(
        "implementation",
        lambda names: set(names) <= set(IMPLEMENTATIONS),
        f"must be among {', '.join(IMPLEMENTATIONS)}",
        **common,
    )
    flags.DEFINE_string("json", None, "file to write the rows to", **common)
    plan.define_flags(flag_values)


def main():
    """Compiles, and prints the table.

    Raises:
      ValueError: the compiler of a target is not installed.
    """
    F = flags.FLAGS
    for reason in filter(None, map(targets.why_unavailable, TARGETS[F.target])):
        raise ValueError(reason)
    jax.config.update("jax_platforms", "cpu")  # an accelerator that is present is not used
    options = [flag.serialize() for flag in _own(F) if flag.present]
    about = {
        "command": shlex.join(["python", "-m", "kernels.aot", *options]),
        "versions": dict(v for t in TARGETS[F.target] for v in targets.versions(t).items()),
        "commit": cli.commit(),
    }
    if F.step:
        rows = plan.from_flags(F)
    else:
        rows = [
            row | {"problem": F.problem, "dtype": F.dtype}
            for target in TARGETS[F.target]
            for row in table(target, F.problem, F.dtype, F.implementation)
        ]
    if F.json:
        Path(F.json).write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", "utf-8")


def _own(flag_values: flags.FlagValues) -> list[flags.Flag]:
    """The flags of this command that decide what is computed."""
    names = "target problem dtype implementation step topology network batch_size"
    names = [*names.split(), "capsule_shards"]
    return [flag_values[name] for name in names]


if __name__ == "__main__":
    define_flags()
    cli.run(main)
