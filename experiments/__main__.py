"""Lists the commands and runs them by name: ``capsjax mnist --dataset=digits``."""

import ast
import difflib
import runpy
import sys
from pathlib import Path

from experiments import end_imports_at_once, take_huge_pages

USAGE = """usage: capsjax COMMAND [flags]
       capsjax COMMAND --help
       capsjax --version

commands:"""


# Commands that end before huge pages save the seconds that starting again costs.
SHORT = ("predict", "figures", "publish", "export", "import_weights")


def main(arguments: list[str], alone: bool = False) -> None:
    """Runs a command in this process, or lists the commands.

    Args:
      arguments: the name of a command and its flags.
      alone: the process does nothing else, so that it may start again with huge pages.

    Raises:
      SystemExit: with status 2, after one line on standard error, if there is no such command or
        it needs a package that is not installed; otherwise as the command ends.
    """
    name, *flags = arguments or ["--help"]
    commands = summaries()
    if name in ("--help", "-h", "help"):
        print(USAGE)
        print("\n".join(f"  {name:<16} {line}" for name, line in commands.items()))
    elif name == "--version":
        import jax

        import capsjax

        print(
            f"capsjax {capsjax.__version__}, JAX {jax.__version__}, Python {sys.version.split()[0]}"
        )
    elif name not in commands:
        near = difflib.get_close_matches(name, commands, 1)
        _fail(f"no command {name!r}; " + (f"did you mean {near[0]}?" if near else "see --help"))
    else:
        if alone and name not in SHORT:
            take_huge_pages()
        run(name, flags)


def summaries() -> dict[str, str]:
    """Returns the commands with the first line of their documentation."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        found[path.stem] = ast.get_docstring(ast.parse(path.read_text("utf-8"))).splitlines()[0]
    return found


def run(name: str, flags: list[str]) -> None:
    """Runs the module of a command as ``python -m`` does."""
    sys.argv = [f"capsjax {name}", *flags]
    end_imports_at_once()
    try:
        runpy.run_module(f"{__package__}.{name}", run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        missing = str(error.name).split(".")[0]
        if missing in ("capsjax", __package__):
            raise
        _fail(f"{name} needs the package {missing}: pip install 'capsjax[run]'")


def _fail(message: str) -> None:
    print("error:", message, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
