"""The collective operations of a compiled program, and the bytes that a device sends for them."""

import math
import re
from typing import NamedTuple


class Collective(NamedTuple):
    """A collective operation of a compiled program."""

    kind: str  # such as all-reduce
    result: int  # bytes of its result on one device
    devices: int  # that take part together

    @property
    def sent(self) -> float:
        """Bytes that a device sends, by the algorithms that send the fewest (rings)."""
        share = (self.devices - 1) / self.devices
        if self.kind == "all-reduce":
            return 2 * share * self.result
        if self.kind == "reduce-scatter":
            return (self.devices - 1) * self.result
        return self.result if self.kind == "collective-permute" else share * self.result


_KINDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
_OPERATION = re.compile(rf" = (.+?) ({_KINDS})(-start)?\((.*)")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d\w*)\[([\d,]*)\]")


def collectives(text: str, devices: int) -> list[Collective]:
    """Returns the collective operations of a compiled program of XLA, those of loops once.

    Args:
      text: of the program.
      devices: that run it.
    """
    found = []
    for line in text.splitlines():
        if match := _OPERATION.search(line):
            shape, kind, start, rest = match.groups()
            # What starts returns its operand, its result and what else it needs, in this order.
            # all-reduce-start alone returns its result.
            if start and kind != "all-reduce":
                _, shape, *_ = _elements(shape)
            found.append(Collective(kind, _bytes(shape), _group(kind, rest, devices)))
    return found


def _elements(shape: str) -> list[str]:
    """The elements of a tuple of shapes, which may be tuples themselves."""
    parts, depth = [""], 0
    for letter in shape[1:-1]:
        depth += (letter in "({[") - (letter in ")}]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _bytes(shape: str) -> int:
    total = 0
    for name, sides in _ARRAY.findall(shape):
        bits = 8 if name == "pred" else int(re.search(r"\d+", name)[0])
        total += math.prod(map(int, filter(None, sides.split(",")))) * bits // 8
    return total


def _group(kind: str, rest: str, devices: int) -> int:
    """The devices of a group, from any of the forms that XLA writes; no groups mean all devices."""
    if kind == "collective-permute":
        return 2
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", named[2]))
    return devices
