"""Normalization of feature maps, by channel, with learned scales and offsets where wanted."""

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from capsjax.precision import accumulator

Initializer = jax.nn.initializers.Initializer


class BatchNorm(nnx.Module):
    r"""Batch normalization (Ioffe & Szegedy 2015): each channel over batch and positions.

    .. math::
       y = \gamma \frac{x - m}{\sqrt{v + \epsilon}} + \beta, \qquad
       m' = \mu m' + (1 - \mu) m, \quad v' = \mu v' + (1 - \mu) v

    In training, m and v are mean and variance over the whole batch, also where devices share it
    (``axis_name``), and the running m' and v' follow them; in evaluation m' and v' take their
    place. Statistics are computed and kept in float32 or wider. The running variance follows
    the unbiased estimate, N / (N - 1) v for N numbers per channel, as in PyTorch and in the fused
    operation of TensorFlow.

    The attributes ``use_running_average`` and ``axis_name`` are set by ``train()`` and ``eval()``
    of the whole module, see :func:`capsjax.from_module`.

    Args:
      channels: number C of channels, the last axis.
      momentum: the share mu of the running statistics that a step keeps: 0.99 is the default of
        Keras, 0.9 that of PyTorch, which calls it 0.1.
      epsilon: added to the variance: 1e-3 is the default of Keras, 1e-5 that of PyTorch.
      scale: whether there is a learned scale gamma; otherwise it is 1.
      offset: whether there is a learned offset beta; otherwise it is 0.
    """

    def __init__(
        self,
        channels: int,
        *,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        scale: bool = True,
        offset: bool = True,
    ):
        # Each has an array of its own: one that two share can't be donated.
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32)) if scale else None
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32)) if offset else None
        self.mean = nnx.BatchStat(jnp.zeros(channels, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(channels, jnp.float32))
        self.momentum, self.epsilon = momentum, epsilon
        self.use_running_average, self.axis_name = False, None

    def __call__(self, x: chex.Array) -> jax.Array:
        """Normalize ``[B, ..., C]``; the result has its type."""
        chex.assert_axis_dimension(x, -1, self.mean.shape[0])
        wide = _widened(x)
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = self._of_batch(wide)
        return _affine(self, wide, mean, var).astype(x.dtype)

    def _of_batch(self, x) -> tuple[jax.Array, jax.Array]:
        """Compute mean and variance of the batch, and let the running ones follow."""
        axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]

        def average(x):
            local = jnp.mean(x, axes)
            return local if self.axis_name is None else jax.lax.pmean(local, self.axis_name)

        mean = average(x)
        # Not the mean of squares less the square of the mean, whose difference cancels.
        var = average(jnp.square(x - _along(mean, x)))
        if self.axis_name is not None:
            count *= jax.lax.axis_size(self.axis_name)
        unbiased = var * (count / max(count - 1, 1))
        for running, value in ((self.mean, mean), (self.var, unbiased)):
            kept = self.momentum * running[...]
            value = jax.lax.stop_gradient(value).astype(kept.dtype)
            running.set_value(kept + (1 - self.momentum) * value)
        return mean, var


class InstanceNorm(nnx.Module):
    r"""Instance normalization (Ulyanov et al. 2016): each channel of each example over positions.

    .. math:: y = \gamma (x - m) / \sqrt{v + \epsilon} + \beta

    Mean and variance are over height and width, and nothing depends on other examples.

    Args:
      channels: number C of channels.
      epsilon: added to the variance.
      scale_init: initializer of the scales ``[C]``.
      bias_init: initializer of the offsets ``[C]``.
      rngs: source of the initial parameters.
    """

    axes = (1, 2)

    def __init__(
        self,
        channels: int,
        *,
        epsilon: float = 1e-3,
        scale_init: Initializer = jax.nn.initializers.ones,
        bias_init: Initializer = jax.nn.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        self.scale = nnx.Param(scale_init(rngs.params(), (channels,), jnp.float32))
        self.bias = nnx.Param(bias_init(rngs.params(), (channels,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: chex.Array) -> jax.Array:
        """Normalize ``[B, H, W, C]``; the result has its type."""
        chex.assert_shape(x, (None, None, None, self.scale.shape[0]))
        wide = _widened(x)
        mean = jnp.mean(wide, self.axes, keepdims=True)
        var = jnp.mean(jnp.square(wide - mean), self.axes, keepdims=True)
        return _affine(self, wide, mean, var).astype(x.dtype)


class ExampleNorm(InstanceNorm):
    """Layer normalization of a whole example, over positions and channels.

    ``flax.nnx.LayerNorm`` of these axes computes the same, but has no ONNX form.
    """

    axes = (1, 2, 3)


class GroupNorm(nnx.Module):
    r"""Group normalization (Wu & He 2018): groups of channels of each example over positions.

    .. math:: y = \gamma (x - m) / \sqrt{v + \epsilon} + \beta

    Mean and variance are over height, width and the channels of a group, and nothing depends on
    other examples, so that small batches do not matter.

    Args:
      channels: number C of channels.
      groups: their number, which divides C.
      epsilon: added to the variance.

    Raises:
      ValueError: the groups do not divide the channels.
    """

    def __init__(self, channels: int, *, groups: int = 8, epsilon: float = 1e-3):
        if channels % groups:
            raise ValueError(f"{channels} channels can't be divided into {groups} equal groups")
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x: chex.Array) -> jax.Array:
        """Normalize ``[B, H, W, C]``; the result has its type."""
        chex.assert_shape(x, (None, None, None, self.scale.shape[0]))
        wide = _widened(x)
        parts = wide.reshape(*x.shape[:3], self.groups, x.shape[3] // self.groups)
        mean = jnp.mean(parts, (1, 2, 4), keepdims=True)
        centred = parts - mean
        var = jnp.mean(jnp.square(centred), (1, 2, 4), keepdims=True)
        normalized = (centred * jax.lax.rsqrt(var + self.epsilon)).reshape(x.shape)
        scale, bias = _along(self.scale[...], wide), _along(self.bias[...], wide)
        return (normalized * scale + bias).astype(x.dtype)


def _widened(x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"normalization takes floats, not {x.dtype}")
    return x.astype(accumulator(x.dtype))


def _affine(norm, x, mean, var):
    """Normalize with given statistics, then scale and add the offset."""
    gain = jax.lax.rsqrt(_along(var, x) + norm.epsilon)
    if norm.scale is not None:
        gain = gain * _along(norm.scale[...], x)
    y = (x - _along(mean, x)) * gain
    return y if norm.bias is None else y + _along(norm.bias[...], x)


def _along(values, x):
    """Give numbers per channel ``[C]`` the rank and the type of x."""
    return values.reshape((1,) * (x.ndim - values.ndim) + values.shape).astype(x.dtype)
