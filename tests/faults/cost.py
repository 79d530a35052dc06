"""What a checkpoint after every epoch of the digits costs, measured in one run."""

import tempfile
import time

from experiments.config.flags import parse_flags
from experiments.tasks.registry import find_program
from experiments.training import loop
from experiments.training.checkpoints import Checkpoints

EPOCHS = 5


def measure() -> str:
    """Trains the digits with the paper's network and returns the cost in one line.

    Each save is waited for, so that its processor time, in all threads, is told from that of
    training. In other runs it is written while training goes on.
    """
    spent, wall, begun, original = [], [], [], Checkpoints.save

    def save(self, *arguments):
        begun.append(time.process_time())
        started = time.monotonic()
        original(self, *arguments)
        self._manager.wait_until_finished()
        spent.append(time.process_time() - begun[-1])
        wall.append(time.monotonic() - started)

    program = find_program("mnist")
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--dataset=digits", f"--epochs={EPOCHS}", f"--workdir={folder}/run"]
        config = parse_flags(program.defaults, [*flags, "--accelerator=cpu"])
        Checkpoints.save = save
        try:
            loop.run(program, config)
        finally:
            Checkpoints.save = original
    # From the first save to the last: the epochs after the first, each with the save before it.
    share = 100 * sum(spent[:-1]) / (begun[-1] - begun[0])
    return (
        f"{len(spent)} checkpoints, {sum(wall) / len(wall):.2f} s each if waited for; processor "
        f"time {share:.1f}% of an epoch"
    )


if __name__ == "__main__":
    print(measure())
