"""Write the network of a finished run as a pretrained one, with a card.

    python -m experiments.publish --run=DIR --output=FOLDER
    python -m experiments.publish --run=DIR --output=FOLDER --dtype=float16

FOLDER gets model.safetensors, config.json and README.md, which capsjax.load_pretrained, predict
--model and --init_from read. The weights are those that the run reports: averaged ones with --ema,
those of the best validation with --keep=best. The card gives the data, the command, the commit and
the seed, and the error on all test images, which are evaluated here with the weights as they are in
the file. --dtype=float16 halves the file; it is refused if a test decision changes.

The networks in the package are such folders in capsjax/pretrained/.
"""

import dataclasses
import sys

from capsjax.preprocessing import FITS
from experiments.analysis import saved_run
from experiments.analysis.publish import publish
from experiments.config import UserError, setting
from experiments.config.flags import run
from experiments.files import fresh_folder, local_path


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this command."""

    run: str = setting("", "folder of the run")
    output: str = setting("", "folder of the pretrained network; its name is that of the card")
    dtype: str = setting(
        "float32", "type of the weights in the file", choices=("float32", "float16")
    )
    fit: str = setting(
        "auto",
        "how predict brings images to the size of the network; auto: digit for MNIST, otherwise "
        "--resize of the run",
        choices=("auto", *FITS),
    )
    accelerator: str = setting("auto", "where to compute", choices=("auto", "cpu", "gpu", "tpu"))
    data_dir: str = setting("", "directory of prepared TensorFlow Datasets")
    cache_dir: str = setting("", "folder of compiled programs; by default the user's cache folder")


DEFAULTS = Flags()


def main(flags: Flags) -> None:
    """Evaluates, writes, and prints what was written.

    Raises:
      UserError: a flag is wrong, the run can't be used, or the folder can't be written.
    """
    if not flags.run or not flags.output:
        raise UserError("give a finished run and a folder: --run=DIR --output=FOLDER")
    output = local_path(flags.output, "output")
    with fresh_folder(output, "output") as temporary:
        opened = saved_run.open_run(
            flags.run,
            accelerator=flags.accelerator,
            data_dir=flags.data_dir,
            cache_dir=flags.cache_dir,
            examples=True,
        )
        print(f"evaluating {len(opened.setup.dataset.test_labels):,} test images", file=sys.stderr)
        inside = temporary / output.resolve().name  # the card has the name of its folder
        facts = publish(opened, inside, flags.dtype, flags.fit)
        for path in inside.iterdir():
            path.rename(temporary / path.name)
        inside.rmdir()
    print(f"weights {facts['weights']}")
    if "float16" in facts:
        print(f"float16 {facts['float16']}")
    print(f"test    {facts['test_errors']:,} of {facts['test_examples']:,} images are wrong")
    size = sum(path.stat().st_size for path in output.iterdir() if path.is_file())
    print(f"folder  {output}, {size:,} bytes")


if __name__ == "__main__":
    run(main, DEFAULTS)
