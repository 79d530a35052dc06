"""Turn weights of other programs into a pretrained network.

    python -m experiments.import_weights --from=efficient_capsnet --weights=w.h5 --output=FOLDER
    python -m experiments.import_weights --from=gram_ai --weights=w.safetensors --output=FOLDER

--from says whose they are: efficient_capsnet (EscVM/Efficient-CapsNet, for MNIST, MultiMNIST or
smallNORB), gram_ai (gram-ai/capsule-networks) or xifeng_guo (XifengGuo/CapsNet-Pytorch and
CapsNet-Keras). --weights is a file of safetensors, of numpy.savez, or HDF5 as Keras writes it,
which needs pip install h5py; the arrays have the names that the other program gives them. Pickled
files such as .pt are not read. A line says what became of each array, and others what has no
counterpart.

The code of gram_ai takes the softmax of the couplings over the input capsules; --coupling=auto does
the same, so that its numbers come out, and --coupling=outputs computes as in the paper.

FOLDER gets model.safetensors, config.json and a card, for capsjax.load_pretrained, predict --model
and export --model.
"""

import dataclasses
import shlex
import sys

import jax
import numpy as np

import capsjax
from experiments.config import UserError, setting
from experiments.config.flags import run
from experiments.data.errors import first_line
from experiments.exchange import foreign_arrays
from experiments.exchange.dynamic_capsnet import gram_ai, xifeng_guo
from experiments.exchange.efficient_capsnet import efficient_capsnet
from experiments.exchange.mapping import COUPLINGS, Arrays, Imported
from experiments.files import fresh_folder, local_path, one_line

# Of each program: the function that maps its arrays, what its couplings sum to one over, and what
# the card says of it.
PROGRAMS = {
    "efficient_capsnet": (efficient_capsnet, "outputs", "EscVM/Efficient-CapsNet"),
    "gram_ai": (gram_ai, "inputs", "gram-ai/capsule-networks"),
    "xifeng_guo": (xifeng_guo, "outputs", "XifengGuo/CapsNet-Pytorch or CapsNet-Keras"),
}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this command."""

    from_: str = setting("", "program that the weights are from", choices=("", *PROGRAMS))
    weights: str = setting("", "file of arrays: .safetensors, .npz or .h5")
    output: str = setting("", "new folder; its name is that of the network")
    coupling: str = setting(
        "auto",
        "capsules over which couplings sum to one; auto: as in the other program",
        choices=("auto", *COUPLINGS),
    )
    iterations: int = setting(
        3, "routing iterations, which the file does not contain", low=1, high=100
    )
    labels: str = setting("", "names of the classes, separated by commas; by default 0, 1, ...")


DEFAULTS = Flags()


def main(flags: Flags) -> None:
    """Maps, writes, and prints what became of each array.

    Raises:
      UserError: a flag is wrong, the file can't be used, or the folder can't be written.
    """
    if not (flags.from_ and flags.weights and flags.output):
        raise UserError(f"give --from={'|'.join(PROGRAMS)} --weights=FILE --output=FOLDER")
    output = local_path(flags.output, "output")
    found = convert(flags)
    labels = flags.labels.split(",") if flags.labels else None
    if labels and len(labels) != found.config.num_classes:
        raise UserError(f"--labels has {len(labels)} names for {found.config.num_classes} classes")
    command = shlex.join(["python", "-m", "experiments.import_weights", *sys.argv[1:]])
    facts = {"weights": f"of {PROGRAMS[flags.from_][2]}", "command": command}
    with fresh_folder(output, "output") as folder:
        inner = folder / output.name  # the card has the name of its folder
        try:
            capsjax.save_pretrained(
                inner,
                found.config,
                found.variables,
                labels=labels,
                preprocessing=found.preprocessing,
                facts=facts,
            )
        except capsjax.PretrainedError as error:
            raise UserError(f"--weights={flags.weights}: {one_line(error)}") from error
        for file in sorted(inner.iterdir()):
            file.rename(folder / file.name)
        inner.rmdir()
    print("\n".join(found.mapped))
    print("\n".join(f"not mapped: {line}" for line in found.not_mapped))
    count = sum(np.size(x) for x in jax.tree.leaves(found.variables))
    print(f"{count:,} numbers in {output}")


def convert(flags: Flags) -> Imported:
    """Returns the network that a file of weights describes.

    Raises:
      UserError: the file can't be read, or its arrays are not those of the program.
    """
    mapped, coupling, _ = PROGRAMS[flags.from_]
    arrays = Arrays(foreign_arrays.read(flags.weights), f"--weights={flags.weights}")
    coupling = coupling if flags.coupling == "auto" else flags.coupling
    try:
        return mapped(arrays, coupling, flags.iterations)
    except (ValueError, IndexError, ArithmeticError) as error:
        if isinstance(error, UserError):
            raise
        reason = f"arrays do not fit each other: {first_line(error)}"
        raise UserError(f"--weights={flags.weights}: {reason}") from error


if __name__ == "__main__":
    run(main, DEFAULTS)
