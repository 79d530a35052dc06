"""The command ``capsjax``: runs the commands of the package ``experiments`` by their names."""

import importlib
import sys

from capsjax.companions import find_companion


def main() -> None:
    """Runs the command line of the commands, which are installed with the library."""
    package = find_companion("experiments")
    if package is None:
        sys.exit("capsjax: the commands are not installed with this copy of the library")
    importlib.import_module(f"{package}.__main__").main(sys.argv[1:], alone=True)


if __name__ == "__main__":
    main()
