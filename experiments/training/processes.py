"""Several processes that train one run: how they find each other, and what ends them together.

Only process 0 writes files and draws. The service of JAX that process 0 starts tells all processes
when one of them has ended, so that none waits for it in vain.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import jax
from jax.errors import JaxRuntimeError

from experiments.config import UserError
from experiments.config.distribution import Distribution, check_distribution

BEAT = 2.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without any after which a process counts as dead
FALLBACK = 60  # seconds after which JAX ends a process, if this module could not
SHUTDOWN = 24 * 3600  # seconds for process 0 to draw while the others wait
_ALIVE, _ENDED, _DONE = "capsjax/alive", "capsjax/ended", "capsjax/done"
_finished = 0  # runs of this process, which have names of their own in the service


def count() -> int:
    """Returns the number of processes. It touches no device before there are several."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Returns whether this process is the one that writes files, number 0 or the only one."""
    return count() == 1 or jax.process_index() == 0


def own(devices: Sequence[jax.Device]) -> Sequence[jax.Device]:
    """Returns those of the devices of a run that belong to this process."""
    if count() == 1:
        return devices
    return [device for device in devices if device.process_index == jax.process_index()]


def say(line: str) -> None:
    """Prints a line on standard error, in the first process alone."""
    if is_first():
        print(line, file=sys.stderr)


@contextlib.contextmanager
def together(config: Distribution) -> Iterator[None]:
    """Joins the processes of ``--distributed``, and ends with all of them; to be entered first.

    If one of them ends early, the others print a line and end, too, with exit status 2.

    Raises:
      UserError: the flags contradict each other, or the other processes can't be found.
    """
    check_distribution(config)
    if not config.distributed:
        yield
        return
    if not jax.distributed.is_initialized():
        _connect(config)
    watch = _Watch()
    try:
        yield
    except SystemExit:  # on which all have agreed
        watch.finish()
        raise
    except BaseException as error:
        watch.leave(" ".join(str(error).split())[:300] or type(error).__name__)
        # The shutdown of JAX would wait for processes that wait for this one.
        status = 2 if isinstance(error, UserError) else 1
        atexit.register(_end, status)
        raise
    watch.finish()


def _connect(config: Distribution) -> None:
    place = (config.coordinator or None, config.num_processes or None)
    try:
        jax.distributed.initialize(
            *place,
            config.process_id if config.process_id >= 0 else None,
            heartbeat_timeout_seconds=FALLBACK,
            shutdown_timeout_seconds=SHUTDOWN,
        )
    except ValueError as error:
        raise UserError(
            f"--distributed: JAX finds no TPU pod, Slurm, Kubernetes or MPI here ({error}); give "
            "--coordinator, --num_processes and --process_id"
        ) from error
    except RuntimeError as error:
        raise UserError(f"--distributed: {' '.join(str(error).split())[:300]}") from error


def _end(status: int) -> None:
    """Ends this process at once."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


class _Watch:
    """A thread that gives signs of life, and ends this process when another one has ended.

    Process 0 looks for the signs of all others, and the others listen to process 0.
    """

    def __init__(self):
        from jax._src import distributed  # there is no public name of the service

        state = distributed.global_state
        self._client, self._me, self._count = state.client, state.process_id, state.num_processes
        self._stop, self._run = threading.Event(), f"{_finished}"
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Waits until all processes have come to their end."""
        global _finished
        _finished += 1
        self._client.wait_at_barrier(f"{_DONE}/{self._run}", 1000 * SHUTDOWN)
        self._stop.set()
        self._thread.join()

    def leave(self, reason: str) -> None:
        """Tells the others that this process ends before its work is done."""
        self._stop.set()
        with contextlib.suppress(JaxRuntimeError):
            self._client.key_value_set(f"{_ENDED}/{self._me}", reason)
        if self._me == 0:
            time.sleep(2 * BEAT)  # the service ends with this process: the others read it first

    def _work(self) -> None:
        beats, since = {}, dict.fromkeys(range(self._count), time.monotonic())
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                lost = self._look(number, beats, since)
            except JaxRuntimeError:
                lost = (0, "its service does not answer")
            if lost and not self._stop.is_set():
                self._give_up(*lost)
            self._stop.wait(BEAT)

    def _look(self, number: int, beats: dict, since: dict) -> tuple[int, str] | None:
        """Returns which process has ended and why, or nothing; updates what is known of them."""
        self._client.key_value_set(f"{_ALIVE}/{self._me}", f"{number}", allow_overwrite=True)
        for key, reason in self._client.key_value_dir_get(_ENDED):
            return int(key.rpartition("/")[2]), reason
        now = time.monotonic()
        for key, beat in self._client.key_value_dir_get(_ALIVE) if self._me == 0 else ():
            process = int(key.rpartition("/")[2])
            if beats.get(process) != beat:
                beats[process], since[process] = beat, now
        silent = [n for n, last in since.items() if self._me == 0 != n and now - last > SILENCE]
        return (silent[0], f"no sign of life for {SILENCE:.0f} seconds") if silent else None

    def _give_up(self, process: int, reason: str) -> None:
        """Prints why, tells the others, and ends this process, which may wait in a collective."""
        line = f"error: process {process} of this run has ended ({reason}), and process {self._me} "
        line += "ends with it; the same command continues the run from its last checkpoint\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode())
        if self._me == 0:
            with contextlib.suppress(JaxRuntimeError):
                self._client.key_value_set(f"{_ENDED}/{process}", reason)
            time.sleep(2 * BEAT)
        _end(2)
