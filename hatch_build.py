"""Puts the kernels and the commands into the wheel, under names that begin with capsjax.

In the repository they are the folders kernels/ and experiments/, too general as names in
site-packages, where Hugging Face has a package named kernels. The wheel holds copies of them named
capsjax_kernels and capsjax_experiments, in which imports, quoted names of modules and commands in
texts are those that work there. Line numbers stay the same.
"""

import re
import shutil
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = ("kernels", "experiments")
REPLACEMENTS = (
    # import experiments, from kernels.api import ...
    (re.compile(r"^(\s*(?:from|import) )(kernels|experiments)\b", re.M), r"\1capsjax_\2"),
    # "experiments.mnist"
    (re.compile(r"""(["'])(kernels|experiments)\."""), r"\1capsjax_\2."),
    (re.compile(r"\bpython -m experiments\."), "capsjax "),
    (re.compile(r"\bpython -m kernels\."), "python -m capsjax_kernels."),
)


def rename(text: str) -> str:
    """Returns a source file of kernels/ or experiments/ as it is in the wheel."""
    for pattern, replacement in REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text


class CustomBuildHook(BuildHookInterface):
    """Adds the renamed folders to a wheel that is not an editable installation."""

    def initialize(self, version, build_data):
        if version == "editable":
            return
        self._scratch = tempfile.TemporaryDirectory()
        for folder in FOLDERS:
            copy = Path(self._scratch.name, f"capsjax_{folder}")
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(Path(self.root, folder), copy, ignore=ignored)
            for path in copy.rglob("*.py"):
                path.write_text(rename(path.read_text("utf-8")), "utf-8")
            build_data["force_include"][str(copy)] = copy.name

    def finalize(self, version, build_data, artifact_path):
        if version != "editable":
            self._scratch.cleanup()
