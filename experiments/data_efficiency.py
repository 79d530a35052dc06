"""Draw the results of a sweep over the number of training examples.

    python -m experiments.sweep --study=data_efficiency_digits --dataset=digits --output=few/digits
    python -m experiments.data_efficiency --sweep=few/digits.json

The figure shows test errors over the number of examples, with a line for each network and the range
over seeds. It is written next to the file: few/digits_examples.png.
"""

import dataclasses
from collections import Counter

from experiments import plots
from experiments.config import Config, UserError, setting
from experiments.config.flags import run
from experiments.files import BadFile, is_number, is_plain, local_path, read_json
from experiments.files.forms import is_percentage


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this command."""

    sweep: str = setting("", "OUTPUT.json of a sweep over --train_examples, --model, --preset")


DEFAULTS = Flags()


def _is_positive(value) -> bool:
    # The flags of rows are text.
    return str(value).isdecimal() and 0 < int(value) < 10**9


ROW = {"train_examples": _is_positive, "test_error": is_percentage, "model?": str, "preset?": str}
ROW |= {"seed?": is_number, "*": is_plain}


def main(flags: Flags) -> None:
    """Draws the figure, and prints its path.

    Raises:
      UserError: the file is missing, or is not that of such a sweep.
    """
    path = local_path(flags.sweep, "sweep")
    try:
        rows = [
            {
                "network": f"{row.get('model', Config.model)} {row.get('preset', '')}".strip(),
                "seed": row.get("seed"),
                "train_examples": int(row["train_examples"]),
                "test_error": float(row["test_error"]),
            }
            for row in read_json(path, {"runs": [ROW], "*": is_plain})["runs"]
        ]
    except BadFile as error:
        raise UserError(
            f"--sweep={path} is not the JSON file of a sweep over --train_examples: {error}"
        ) from error
    if not rows:
        raise UserError(f"--sweep={path} has no runs")
    kinds = Counter((row["network"], row["train_examples"], row["seed"]) for row in rows)
    (which, count), *_ = kinds.most_common(1)
    if count > 1:
        raise UserError(
            f"--sweep={path} has {count} runs of {which[0]} with {which[1]} examples and seed "
            f"{which[2]}, which differ in another flag than --model, --preset and --train_examples"
        )
    networks = {row["network"] for row in rows}
    if len(networks) > plots.MOST_CURVES:
        raise UserError(
            f"--sweep={path} has {len(networks)} networks, more than {plots.MOST_CURVES} colours"
        )
    seeds = len({row["seed"] for row in rows})
    figure = path.with_name(f"{path.stem}_examples.png")  # the sweep's own figure is STEM.png
    title = f"Learning from few examples, {seeds} seed{'s' * (seeds > 1)}"
    plots.plot_data_efficiency(figure, rows, title)
    print(figure)


if __name__ == "__main__":
    run(main, DEFAULTS)
