"""Check that a new accelerator computes correctly, fast, and trains to the expected accuracy.

    python -m experiments.acceptance --accelerator=gpu               designed to take 10 minutes
    python -m experiments.acceptance --accelerator=cpu --tiny        2 minutes, to try the command

The parts are: the errors of kernels against float64 and their speed; the speed of training steps in
each precision and with each implementation of routing, and of a CapsNet in PyTorch where it is
installed; and one training run on MNIST with the paper's recipe. No network connection is needed
where MNIST has been used before (``--cache_dir``). Every part is a process of its own, and the
failure of one does not stop the others. Writes OUTPUT.json and OUTPUT.md, where every target is
compared with the measurement. The exit status is 1 if a part fails or a target is missed.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

from experiments.benchmarks.acceptance_parts import check_device, list_parts, run_part
from experiments.benchmarks.acceptance_targets import judge, table
from experiments.config import setting
from experiments.config.flags import run
from experiments.tasks.registry import find_program
from experiments.training.results import output_path, provenance, write_results


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this command."""

    accelerator: str = setting("gpu", "where to compute", choices=("cpu", "gpu", "tpu"))
    tiny: bool = setting(False, "use the smallest networks, to try the command itself")
    epochs: int = setting(40, "number of epochs of the training run", low=1)
    limit: int = setting(240, "maximum duration of a part, in seconds", low=1)
    cache_dir: str = setting("", "where MNIST and compiled programs are kept")
    output: str = setting("acceptance", "write OUTPUT.json and OUTPUT.md")


DEFAULTS = Flags()


def main(flags: Flags) -> None:
    """Runs all parts, compares the results with the targets, writes and prints.

    Raises:
      UserError: the device is absent, or the output can't be written.
    """
    output_path(flags.output)
    check_device(flags.accelerator)
    done = []
    with tempfile.TemporaryDirectory() as scratch:
        parts = list_parts(flags.accelerator, flags.tiny, flags.cache_dir, flags.epochs)
        for number, part in enumerate(parts):
            print(f"{part.name} ...", file=sys.stderr)
            folder = Path(scratch) / str(number)
            done.append(run_part(part, flags.accelerator, folder, flags.limit))
    judged = judge(done)
    given = {name: getattr(flags, name) for name in ("accelerator", "tiny", "epochs")}
    words = [f"--{n}={value}" for n, value in given.items() if value != getattr(DEFAULTS, n)]
    seed = find_program("mnist").defaults.seed  # every part has this default
    origin = provenance(" ".join(["python -m experiments.acceptance", *words]), seed)
    kinds = [row["device_kind"] for one in done for row in one["results"] if "device_kind" in row]
    origin["device_kind"] = sorted(set(kinds))
    text = table(done, judged)
    write_results(flags.output, origin | {"parts": done, "targets": judged}, text)
    print(text)
    failed = any(one["status"] != 0 for one in done)
    if failed or not (flags.tiny or all(row["met"] for row in judged)):
        sys.exit(1)


if __name__ == "__main__":
    run(main, DEFAULTS)
