"""The progress of training that a user sees, and how the user stops it."""

import contextlib
import os
import signal
import stat
import sys
import time
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from experiments.config import Config, UserError, continuation
from experiments.tasks.base import Setup
from experiments.training import processes
from experiments.training.metrics import Metrics

SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


def diverged(what: str) -> str:
    """Returns the message of a run that has diverged."""
    return f"{what}; the last checkpoint is kept; try a smaller --learning_rate, or --dtype=float32"


class Display:
    """Shows a progress bar on terminals and one line per epoch, and writes rows of metrics.jsonl.

    The sums of a chunk are read one chunk late, so that the device never waits for the host.
    """

    def __init__(self, config: Config, metrics: Metrics, step: int, total: int, per_epoch: int):
        self._config, self._metrics, self._per_epoch = config, metrics, per_epoch
        self._seconds = metrics.rows[-1]["seconds"] if metrics.rows else 0.0
        self._last = time.monotonic()
        self._pending = None
        silent = not (sys.stderr.isatty() and processes.is_first())
        self._bar = tqdm(total=total, initial=step, unit="step", disable=silent, leave=False)
        self._epochs = -(-total // per_epoch)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._bar.clear()
        processes.say(line)

    def trained(self, step: int, count: int, sums: dict) -> None:
        """Takes the sums of a chunk that ended at ``step``."""
        self.flush()
        self._pending = step, count, sums

    def flush(self) -> None:
        """Waits for the pending chunk and writes its row.

        Raises:
          UserError: the loss is not finite.
        """
        if self._pending is None:
            return
        (step, count, sums), self._pending = self._pending, None
        means = {name: float(value) / count for name, value in sums.items()}
        if not np.isfinite(means["loss"]):
            raise UserError(diverged(f"the loss is {means['loss']} after step {step}"))
        seconds = self._clock()
        rate = count * self._config.batch_size / seconds
        self._metrics.write(self._where(step) | means | {"images_per_second": round(rate, 2)})
        self._row = means | {"rate": rate}
        accuracy = f"accuracy {100 * means['accuracy']:.2f}%"
        self._bar.set_postfix_str(f"loss {means['loss']:.4f}, {accuracy}, {rate:.0f} images/s")
        self._bar.update(count)

    def validated(self, step: int, values: dict, last: dict | None = None) -> None:
        """Writes and prints the validation error after an epoch.

        Args:
          step: the number of steps done.
          values: metrics of the validation data, each ``[N]``.
          last: those of the last weights, where ``values`` are those of averaged ones.
        """
        row = {}
        for metrics, suffix in ((values, ""), (last, "_last")):
            if metrics is not None:
                row[f"validation_error{suffix}"] = 100 * (1 - float(metrics["accuracy"].mean()))
                row[f"validation_loss{suffix}"] = float(metrics["loss"].mean())
        error = row["validation_error"]
        if not np.isfinite(row["validation_loss"]):
            raise UserError(
                diverged(f"the loss of validation images is not finite after step {step}")
            )
        self._clock()
        self._metrics.write(self._where(step) | row)
        self.say(
            f"epoch {-(-step // self._per_epoch)}/{self._epochs}: loss {self._row['loss']:.4f}, "
            f"validation error {error:.2f}%, {self._row['rate']:.0f} images/s"
        )

    def measured(self, step: int, row: dict) -> None:
        """Writes a row of routing diagnostics after an epoch."""
        self._clock()
        self._metrics.write(self._where(step) | row)

    def _where(self, step: int) -> dict:
        epoch = round(step / self._per_epoch, 4)
        return {"step": step, "epoch": epoch, "seconds": round(self._seconds, 3)}

    def _clock(self) -> float:
        now = time.monotonic()
        passed, self._last = now - self._last, now
        self._seconds += passed
        return passed


TIME_IS_UP = -1  # takes the place of a signal


class Stop:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into a request to stop after the current chunk.

    The second one ends the process at once: the last checkpoint is whole at every moment.

    Args:
      minutes: after which :meth:`look_at_clock` makes the same request; 0: never.
      agree: of several processes, see :func:`experiments.training.agreement.make_agreement`.
    """

    _own = _of_any = 0  # what this process, and what one of all, was asked to stop by

    def __init__(self, minutes: float = 0.0, agree: Callable[[int], int] | None = None):
        self._end = time.monotonic() + 60 * minutes if minutes else np.inf
        self._agree = agree

    @property
    def requested(self) -> int:
        """The number of the signal, or TIME_IS_UP; 0 for none. All processes have the same."""
        return self._of_any if self._agree else self._own

    def look_at_clock(self) -> None:
        """Requests to stop if the time is up; after each chunk, and in all processes."""
        if not self._own and time.monotonic() >= self._end:
            self._own = TIME_IS_UP
        if self._agree:
            self._of_any = self._agree(self._own)

    def __enter__(self):
        self._before = {}
        for number in SIGNALS:
            ignored = signal.getsignal(number) == signal.SIG_IGN
            if not (ignored and number == getattr(signal, "SIGHUP", None)):  # nohup
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, _):
        if self._own > 0:
            with contextlib.suppress(OSError):
                os.write(2, b"interrupted\n")
            os._exit(128 + number)
        self._own = number
        if number == getattr(signal, "SIGHUP", None):
            _leave_terminal()
        with contextlib.suppress(OSError):
            line = b"\nstopping after this chunk of steps; press again to stop at once\n"
            os.write(2, line)


def _leave_terminal() -> None:
    """Writes nowhere instead of to a terminal that is closed, which would be an error."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


def leave(setups: list[Setup], what: str, stopped: int) -> None:
    """Ends the process of runs that were stopped, and says what continues them.

    Args:
      setups: of the runs.
      what: the beginning of the line.
      stopped: the number of a signal, which gives the exit status, or TIME_IS_UP.
    """
    if stopped != TIME_IS_UP:
        processes.say(f"{what}; the same command continues")
        sys.exit(128 + stopped)
    for setup in setups if processes.is_first() else ():
        print(f"{what}; to continue: {continuation(setup.config, setup.program.defaults)}")
    sys.exit(0)
