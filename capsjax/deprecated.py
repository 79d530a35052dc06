"""Old public names, which stay importable for one version and warn."""

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns a ``__getattr__`` of a module that still answers to old names.

    Args:
      module: the module's ``__name__``.
      names: new names by old ones.

    Example:
      >>> import capsjax
      >>> with warnings.catch_warnings(record=True) as caught:
      ...     warnings.simplefilter("always")
      ...     capsjax.make is capsjax.make_routing
      True
      >>> str(caught[0].message)
      'capsjax.make is deprecated: use capsjax.make_routing'
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        message = f"{module}.{name} is deprecated: use {module}.{names[name]}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], names[name])

    return __getattr__
