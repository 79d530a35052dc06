"""Flags of training that starts from trained weights, and what they say of single parameters."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable

from experiments import UserError
from experiments.config.flags import setting

PATTERNS = ("freeze", "learning_rate_of")  # flags whose values a shell must not read


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """The settings of training from trained weights."""

    init_from: str = setting(
        "",
        "where training starts in place of random weights: the folder of a run, a packaged "
        "network, the folder of a pretrained one, or hf://OWNER/NAME. Arrays of another shape, "
        "such as those of the classes, stay random",
        roles="later",
    )
    freeze: str = setting(
        "",
        "regular expression: parameters in whose path, such as primary.conv.kernel, it is found "
        "are not changed",
        roles="later",
    )
    learning_rate_of: str = setting(
        "",
        "REGEX=FACTOR: updates of parameters in whose path REGEX is found are multiplied by "
        "FACTOR. It may be given several times, or several be joined by semicolons; the first that "
        "is found counts",
        many=True,
        roles="later",
    )


def parse_factors(text: str) -> list[tuple[str, float]]:
    """Returns the expressions and factors of ``--learning_rate_of``.

    Raises:
      UserError: the text is nothing of the kind.
    """
    found = []
    for part in filter(None, text.split(";")):
        pattern, _, factor = part.rpartition("=")
        try:
            value = float(factor)
        except ValueError:
            value = math.nan
        if not pattern or not 0 < value < math.inf:
            raise UserError(
                f"--learning_rate_of={part}: write it as REGEX=FACTOR with a factor above 0; "
                "--freeze is for parameters that are not changed"
            )
        found.append((pattern, value))
    return found


def factor_of(config: FineTuning) -> Callable[[str], float] | None:
    """Returns the factor of a parameter's updates as a function of its path; None for no flags.

    Raises:
      UserError: an expression or a factor is none.
    """
    if not config.freeze and not config.learning_rate_of:
        return None
    freeze = _compiled("freeze", config.freeze) if config.freeze else None
    factors = [(_compiled(PATTERNS[1], p), f) for p, f in parse_factors(config.learning_rate_of)]

    def factor(path):
        if freeze and freeze.search(path):
            return 0.0
        return next((value for pattern, value in factors if pattern.search(path)), 1.0)

    return factor


def check_patterns(config: FineTuning, paths: Iterable[str]) -> None:
    """Refuses expressions that are found in no path of a parameter.

    Raises:
      UserError: one is not, or all parameters are frozen.
    """
    factor, paths = factor_of(config), list(paths)
    if factor is None:
        return
    given = [("freeze", config.freeze)] if config.freeze else []
    given += [(PATTERNS[1], pattern) for pattern, _ in parse_factors(config.learning_rate_of)]
    for flag, pattern in given:
        if not any(re.search(pattern, path) for path in paths):
            raise UserError(
                f"--{flag}={pattern}: no parameter has such a path; there are {', '.join(paths)}"
            )
    if not any(map(factor, paths)):
        raise UserError(f"--freeze={config.freeze} leaves no parameter to train")


def _compiled(flag: str, pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"--{flag}={pattern} is no regular expression: {error}") from error
