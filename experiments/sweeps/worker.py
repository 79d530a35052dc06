"""The process that trains one run of a sweep, or several together; started by the sweep.

It is started in the folder of the user, to which paths in flags are relative. It reads one line of
JSON, ``{"program": NAME, "runs": [[flag, ...], ...]}``, and ends as soon as
the process that wrote the line ends, so that a new sweep does not find its runs in use.
"""

import json
import os
import sys
import threading

from experiments.config import UserError
from experiments.config.flags import parse_flags
from experiments.tasks.registry import find_program
from experiments.training import loop, vmapped_loop
from kernels import cli


def main() -> None:
    """Trains the runs of the line, or as many of them as the memory holds."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    program = find_program(job["program"])
    configs = [parse_flags(program.defaults, arguments) for arguments in job["runs"]]
    if len(configs) > 1:
        vmapped_loop.run(program, configs)
    else:
        loop.run(program, configs[0])


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    cli.run(main, UserError)
