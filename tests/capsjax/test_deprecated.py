"""Old public names, which stay importable for one version."""

import pytest

import capsjax
import capsjax.routing

RENAMED = {
    capsjax: {"make": "make_routing", "create": "create_model"},
    capsjax.routing: {
        "Children": "InputCapsules",
        "Inputs": "PassInputs",
        "Sweeps": "PassKernels",
        "by_sweeps": "has_pass_kernels",
        "make": "make_routing",
        "run": "run_routing",
        "start": "initial_routing_state",
        "step": "routing_pass",
    },
}


@pytest.mark.parametrize(
    "module, old, new",
    [(module, *names) for module, table in RENAMED.items() for names in table.items()],
)
def test_an_old_name_is_the_new_one_and_warns(module, old, new):
    name = module.__name__
    message = f"^{name}.{old} is deprecated: use {name}.{new}$"
    with pytest.warns(DeprecationWarning, match=message) as caught:
        assert getattr(module, old) is getattr(module, new)
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match=message):
        exec(f"from {name} import {old}")
    assert old not in module.__all__ and new in module.__all__


@pytest.mark.parametrize("module", RENAMED)
def test_other_names_are_unknown(module):
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'mak'"):
        module.mak  # noqa: B018
