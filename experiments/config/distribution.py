"""Flags of training by several processes and of what devices divide among themselves."""

import dataclasses

from experiments import UserError
from experiments.config.flags import setting

PLACE = "free neutral path later"  # the roles of what describes one process
DEVICES = "free neutral local later"  # and of how the devices of all share the work


@dataclasses.dataclass(frozen=True)
class Distribution:
    """The settings of several processes, and of what their devices do not hold twice."""

    distributed: bool = setting(
        False,
        "train in several processes that were started with the same flags. TPU pods, Slurm, "
        "Kubernetes and MPI say where the others are; elsewhere the next three flags do",
        roles=PLACE,
    )
    coordinator: str = setting("", "HOST:PORT at which process 0 is found", roles=PLACE)
    num_processes: int = setting(
        0, "number of processes; 0: as the cluster says", low=0, roles=PLACE
    )
    process_id: int = setting(
        -1, "number of this process, from 0; -1: as the cluster says", low=-1, roles=PLACE
    )
    shard_optimizer: bool = setting(
        False,
        "divide the state of the optimizer among the devices, in place of a copy on each",
        roles=DEVICES,
    )
    capsule_shards: int = setting(
        1,
        "number of parts into which the input capsules of routing are divided, each for a device "
        "of its own; the number of devices is a multiple of it",
        low=1,
        roles=f"capsules {DEVICES}",
    )


def check_distribution(config: Distribution) -> None:
    """Checks flags that contradict each other.

    Raises:
      UserError: the place of a process is given without ``--distributed`` or in part, or is none.
    """
    given = {
        "coordinator": bool(config.coordinator),
        "num_processes": config.num_processes > 0,
        "process_id": config.process_id >= 0,
    }
    names = [name for name, is_given in given.items() if is_given]
    if names and not config.distributed:
        raise UserError(f"--{names[0]} is one of several processes; add --distributed")
    if names and len(names) < len(given):
        missing = " and ".join(f"--{name}" for name in given if name not in names)
        raise UserError(f"--{names[0]} without {missing}: give all three, or none in a cluster")
    if not names:
        return
    host, _, port = config.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={config.coordinator}: write it as HOST:PORT")
    if config.process_id >= config.num_processes:
        raise UserError(
            f"--process_id={config.process_id}: {config.num_processes} processes have the numbers "
            f"0 to {config.num_processes - 1}"
        )
