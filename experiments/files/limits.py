"""Limits of memory: what something needs is compared with what there is before it is allocated."""

import os
from pathlib import Path

import psutil

from experiments import UserError
from experiments.files.text import one_line

SHARE = 0.9  # of the free memory that one thing may need
# Folder of a control group, its limit of memory, what it takes, and the prefix of its statistics.
GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", ""),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
ADDRESSES = 1.2e9  # bytes, without which XLA ends the process: its threads and programs need them


def free_bytes() -> int:
    """Returns the memory that this process can still get, in bytes, within its control group."""
    free = psutil.virtual_memory().available
    for folder, limit, used, prefix in GROUPS:
        group = Path(folder)
        try:
            limited, taken = (int((group / name).read_text("ascii")) for name in (limit, used))
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
        free = min(free, limited - taken + _of_files(group / "memory.stat", prefix))
    return max(free, 0)


def _of_files(path: Path, prefix: str) -> int:
    """Pages of files that were read count as taken, and are given up when memory is needed."""
    try:
        found = dict(map(str.split, path.read_text("ascii").split("\n")[:-1]))
        return sum(int(found.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    except (OSError, ValueError):
        return 0


def free_addresses() -> float:
    """Returns how many bytes of addresses this process may still take; most have no limit."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return float("inf")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return float("inf")
    return limit - psutil.Process().memory_info().vms


def check_addresses() -> None:
    """Refuses to open devices where a limit of addresses (``ulimit -v``) leaves too few.

    Raises:
      UserError: fewer than :data:`ADDRESSES` are left.
    """
    if (have := free_addresses()) < ADDRESSES:
        raise UserError(
            f"XLA needs {size(ADDRESSES)} of addresses, and the limit (ulimit -v) leaves "
            f"{size(max(have, 0))}; raise it"
        )


def check_memory(need: float, what: str, cure: str, have: int | None = None) -> None:
    """Refuses what would not fit.

    Args:
      need: bytes, at least. what: needs them. cure: what would need less.
      have: free bytes; those of this machine by default.

    Raises:
      UserError: it needs more than :data:`SHARE` of the free memory.
    """
    have = free_bytes() if have is None else have
    if need > SHARE * have:
        raise UserError(f"{what} needs {size(need)} of memory, and {size(have)} are free; {cure}")


def size(count: float) -> str:
    """Formats a number of bytes: 1.5 GB."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, (len(f"{count:.0f}") - 1) // 3)
    return f"{count / 1000**power:.3g} {units[power]}"


def check_private(folder: Path) -> None:
    """Refuses a cache in which other users could place files.

    What it holds is compiled programs, which are run, and data, which are believed.

    Raises:
      UserError: it belongs to somebody else, or others may write to it.
    """
    if os.name != "posix" or not folder.exists():
        return
    status = folder.stat()
    if status.st_uid != os.getuid():
        reason = "belongs to another user"
    elif status.st_mode & 0o022:
        reason = "may be written by other users (chmod go-w)"
    else:
        return
    raise UserError(f"the cache {folder} {reason}: correct it, or choose another --cache_dir")


def make_private(folder: Path, name: str) -> None:
    """Makes a folder in that of a cache, and this one, where only this user writes with any umask.

    Raises:
      OSError: they can't be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for place in (folder, folder / name):
        place.mkdir(mode=0o755, exist_ok=True)


def split_paths(text: str) -> list[str]:
    """Returns the paths that are joined by commas; one that exists may have commas itself."""
    parts, found = text.split(","), []
    while parts:
        joined = [",".join(parts[: n + 1]) for n in range(len(parts))]
        there = [n for n, path in enumerate(joined) if os.path.exists(os.path.expanduser(path))]
        last = there[-1] if there else 0
        found.append(joined[last])
        parts = parts[last + 1 :]
    return found


def local_path(place: str | Path, flag: str) -> Path:
    """Returns the path of a flag, ``~`` expanded.

    Raises:
      UserError: it is an address such as ``gs://bucket/run``.
    """
    text = str(place)
    if "://" in text:
        raise UserError(
            f"--{flag}={text} is no folder of this machine; addresses are not supported"
        )
    if "\0" in text:
        raise UserError(f"--{flag} contains a zero byte")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # which the library of checkpoints can't take
        raise UserError(f"--{flag}={one_line(text)} is not UTF-8") from error
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # no such user, or no home
        raise UserError(f"--{flag}={text}: {error}") from error
