"""Tries to break the commands, and prints one table: ``python -m tests.faults [--only=kills]``.

The parts are kills, damage, inputs, hostile and cost. The exit status is 1 if anything was wrong.
"""

import argparse
import contextlib
import importlib
import itertools
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PARTS = {
    "kills": "ended at a random moment and continued: every bit the same",
    "damage": "damage to the folder of a run: the same result, or one line",
    "inputs": "bad input: one line, exit status 2, nothing written",
    "hostile": "files from somebody else: refused or harmless",
}


def main() -> None:
    """Runs the parts and prints what was wrong, and the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=(*PARTS, "cost"))
    parser.add_argument("--shard", default="0/1", help="I/N: every N-th case only, from the I-th")
    parser.add_argument("--match", default="", help="only cases whose name this expression finds")
    arguments = parser.parse_args()
    only, (first, step) = arguments.only, map(int, arguments.shard.split("/"))
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent), str(FOLDER.parents[1])]
    os.environ |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    processes = importlib.import_module("processes")
    processes.preload()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    lines, failed = [], 0
    for part in (only,) if only in PARTS else PARTS if not only else ():
        with tempfile.TemporaryDirectory() as scratch:
            cases = importlib.import_module(part).cases(Path(scratch))
            found = []
            with contextlib.suppress(KeyboardInterrupt):  # the table says what was done until then
                for name, case in itertools.islice(cases, first, None, step):
                    if re.search(arguments.match, name):
                        found.append(_said(name, case))
        wrong = sum(bool(problem) for _, problem in found)
        failed += wrong
        lines.append(f"| {PARTS[part]} | {len(found)} | {len(found) - wrong} |")
    if only in (None, "cost"):
        lines.append(f"| cost: {importlib.import_module('cost').measure()} | | |")
    print("| what | cases | as promised |\n| --- | --- | --- |", *lines, sep="\n")
    sys.exit(bool(failed))


def _said(name, case):
    try:
        problem = case()
    except Exception as error:  # the harness goes on
        problem = f"{type(error).__name__}: {error}"
    if problem:
        print(f"{name}: {problem}", file=sys.stderr, flush=True)
    return name, problem


if __name__ == "__main__":
    main()
