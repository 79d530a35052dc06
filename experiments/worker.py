"""The process that trains one run of a sweep, or several together; started by the sweep.

It reads one line of JSON, ``{"program": NAME, "runs": [[flag, ...], ...]}``, and ends at once when
whoever wrote it is gone, so that no run goes on that a new sweep would find in use.
"""

import json
import os
import sys
import threading

from experiments import loop, programs, settings, vmapped
from experiments.errors import UserError
from kernels import program


def main() -> None:
    """Train what the line says, or as many of them as the memory holds."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    defaults = programs.find(job["program"]).defaults
    configs = [settings.parse(defaults, arguments) for arguments in job["runs"]]
    if len(configs) > 1:
        vmapped.run(configs)
    else:
        loop.run(configs[0])


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    program.run(main, UserError)
