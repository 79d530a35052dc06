"""Which kind of device a function is traced for."""

import jax


def backend() -> str:
    """``cpu``, ``gpu`` or ``tpu``: JAX's default, or the target of a compilation for another.

    Implementations are chosen while a function is traced. Under
    ``jax.sharding.use_abstract_mesh`` with an abstract device, that device counts.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return "gpu" if platform == "cuda" else platform
