"""What config.json of a pretrained network says, checked: text to dataclasses and back.

The file may come from anybody. Names of fields, types and sizes are those of the dataclasses, or it
is refused.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from capsjax import models
from capsjax.preprocessing import Preprocessing

SCHEMA = 1  # of config.json; files of newer ones are refused
NETWORKS = {kind.__name__: kind for kind in typing.get_args(models.Config)}
LARGEST = 10**6  # number in a configuration, or length of a text
MOST_ITEMS = 1000  # in a list of a network or a preprocessing
MOST_LAYERS = 100
MOST_CLASSES = 10**5
MOST_ITERATIONS = 1000  # of routing, which are unrolled
_HOW = "routing_implementation"  # depends on the machine, and is never written


class PretrainedError(ValueError):
    """Pretrained weights that can't be used; the message is one line that says why."""


@dataclasses.dataclass(frozen=True)
class Description:
    """What config.json says of a pretrained network."""

    network: models.Config
    labels: tuple[str, ...]  # the names of the J classes
    preprocessing: Preprocessing  # from pixels to the input of the network
    labels_per_image: int | None = 1  # 2 for overlapping pairs, None for sets of labels
    # What is known of its training: texts and numbers, see capsjax.save_pretrained.
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def to_json(description: Description) -> str:
    """Return the contents of config.json."""
    network = dataclasses.asdict(description.network)
    network.pop(_HOW, None)
    found = {
        "schema": SCHEMA,
        "network": {"kind": type(description.network).__name__} | network,
        "labels": list(description.labels),
        "labels_per_image": description.labels_per_image,
        "preprocessing": dataclasses.asdict(description.preprocessing),
        "facts": dict(description.facts),
    }
    return json.dumps(found, indent=2) + "\n"


def from_json(text: str) -> Description:
    """Return what config.json says.

    Raises:
      ValueError: it is no such text, or something in it is missing, unknown or of a wrong type.
    """
    try:
        found = json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    names = {"schema", "network", "labels", "labels_per_image", "preprocessing", "facts"}
    _check_names(found, names, "it", required=names)
    if found["schema"] != SCHEMA:
        raise ValueError(f"schema is {found['schema']!r}, and this version reads {SCHEMA}")
    network = found["network"]
    kind = network.pop("kind", None) if isinstance(network, dict) else None
    if kind not in NETWORKS:
        raise ValueError(f"network.kind is {repr(kind)[:40]}, none of {', '.join(NETWORKS)}")
    labels, count = found["labels"], found["labels_per_image"]
    config = _to_dataclass(NETWORKS[kind], network, "network")
    _check_sizes(config)
    if not isinstance(labels, list) or not all(_is_text(name) for name in labels):
        raise ValueError("labels is not a list of texts")
    if bad := [name for name in labels if not name or not name.isprintable()]:
        raise ValueError(f"labels have {bad[0][:40]!r}, which is empty or not printable")
    if len(set(labels)) < len(labels):
        twice = next(name for name in labels if labels.count(name) > 1)
        raise ValueError(f"two labels are {twice[:40]!r}")
    if len(labels) != config.num_classes or len(labels) > MOST_CLASSES:
        raise ValueError(f"labels are {len(labels)}, and the network has {config.num_classes}")
    if count is not None and (type(count) is not int or not 1 <= count <= 2):
        raise ValueError(f"labels_per_image is {repr(count)[:40]}, not 1, 2 or null")
    preprocessing = _to_dataclass(Preprocessing, found["preprocessing"], "preprocessing")
    return Description(config, tuple(labels), preprocessing, count, _facts(found["facts"]))


def _no_constant(name):
    raise ValueError(f"{name} is no number")


def _is_text(value) -> bool:
    return isinstance(value, str) and len(value) <= LARGEST


def _facts(found: Any) -> dict:
    _check_names(found, None, "facts")
    for name, value in found.items():
        if not (_is_text(value) or value is None or type(value) in (int, float, bool)):
            raise ValueError(f"facts.{name[:40]} is neither text nor a number")
    return found


def _check_names(found: Any, known: set | None, where: str, required: set = frozenset()) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{where} is not an object")
    if len(found) > MOST_ITEMS:
        raise ValueError(f"{where} has {len(found):,} names")
    if known is not None and (unknown := sorted(found.keys() - known)):
        raise ValueError(f"{unknown[0][:40]!r} in {where} is unknown")
    if missing := sorted(required - found.keys()):
        raise ValueError(f"{missing[0]!r} in {where} is missing")


def _to_dataclass(kind: type, found: Any, where: str) -> Any:
    """Make a dataclass of an object; missing fields have their defaults, if they have any."""
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name != _HOW}
    needed = {n for n, f in fields.items() if f.default is dataclasses.MISSING}
    _check_names(found, set(fields), where, required=needed)
    values = {name: _value(hints[name], x, f"{where}.{name}") for name, x in found.items()}
    try:
        return kind(**values)
    except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{where}: {error}") from error


def _value(hint: Any, found: Any, where: str) -> Any:
    """Return a value of JSON as the type of a field has it: lists become tuples."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for one in inside:
            try:
                return _value(one, found, where)
            except ValueError as error:
                last = error
        raise last
    if hint is tuple or origin is tuple:
        if not isinstance(found, list) or len(found) > MOST_ITEMS:
            raise ValueError(f"{where} is not a list")
        if hint is tuple:  # a step of preprocessing: a name and perhaps a number
            return tuple(_value(int | str, x, where) for x in found)
        if inside[-1] is Ellipsis:
            inside = inside[:1] * len(found)
        if len(found) != len(inside):
            raise ValueError(f"{where} has {len(found)} numbers, not {len(inside)}")
        return tuple(_value(one, x, where) for one, x in zip(inside, found))
    if hint in (None, types.NoneType) and found is None:
        return None
    number = hint is float and type(found) in (int, float)
    if not number and type(found) is not hint:
        raise ValueError(f"{where} is {repr(found)[:40]}, not {_name(hint)}")
    if type(found) in (int, float) and abs(found) > LARGEST:
        raise ValueError(f"{where} is larger than {LARGEST:,}")
    return found


def _name(hint: Any) -> str:
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, "null")


def _check_sizes(config: models.Config) -> None:
    """Refuse numbers of layers, iterations and pixels for which building would take too long."""
    layers = max(len(value) for value in vars(config).values() if isinstance(value, tuple))
    stages = (stage for name in ("trunk", "stages") for stage in getattr(config, name, ()))
    blocks = sum(count for _, count, _ in stages)
    if max(layers, blocks) > MOST_LAYERS:
        raise ValueError(f"network has more than {MOST_LAYERS} layers of a kind")
    if getattr(config, "routing_iterations", 0) > MOST_ITERATIONS:
        raise ValueError(f"network.routing_iterations is more than {MOST_ITERATIONS:,}")
    if config.num_classes < 2 or any(n < 1 for n in config.image_shape):
        raise ValueError("network has fewer than two classes, or no pixels")
