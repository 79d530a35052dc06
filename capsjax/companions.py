"""The packages that belong to this capsjax: its Pallas kernels and its commands.

In a clone they are the folders ``kernels`` and ``experiments`` beside capsjax. The wheel installs
them beside it as ``capsjax_kernels`` and ``capsjax_experiments``. The library works without them.
"""

import functools
import importlib.util
from pathlib import Path


@functools.cache
def find_companion(name: str) -> str | None:
    """Returns the name under which a companion package can be imported, or None.

    It must lie in the folder that holds capsjax. A package of the same name elsewhere, such as
    Hugging Face's ``kernels``, is not taken for it.

    Args:
      name: ``kernels`` or ``experiments``.

    Example:
      >>> find_companion("nothing") is None
      True
    """
    for full_name in (f"capsjax_{name}", name):
        file = Path(__file__).resolve().parents[1] / full_name / "__init__.py"
        if file.is_file():
            spec = importlib.util.find_spec(full_name)
            if spec and spec.origin and Path(spec.origin).resolve() == file:
                return full_name
    return None
