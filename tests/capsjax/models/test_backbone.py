"""The preset backbone: its layers against loops in float64, its sizes, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from capsjax import capsnet_loss, create_model, preset
from capsjax.models import fit_image
from capsjax.models.backbone import ResidualBlock, TransposedConv, TransposedDecoder
from capsjax.normalization import GroupNorm
from capsjax.optimizers import adam
from capsjax.train import init_state, make_train_step

RNG = np.random.default_rng(0)
SMALL = preset(
    "capsnet_backbone",
    image_shape=(17, 22, 3),
    num_classes=2,
    conv_channels=8,
    trunk=((8, 1, 1), (16, 1, 2)),
    primary_types=2,
    decoder=(16, 8),
)


def conv64(x, kernel, bias, stride):
    """A padded convolution [B, H, W, C] as loops, zeros as TensorFlow's SAME puts them."""
    size = kernel.shape[0]
    height, width = (-(-n // stride) for n in x.shape[1:3])
    lost = [max((m - 1) * stride + size - n, 0) for m, n in zip((height, width), x.shape[1:3])]
    x = np.pad(x, ((0, 0), *((z // 2, z - z // 2) for z in lost), (0, 0)))
    out = np.zeros((len(x), height, width, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            square = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = np.einsum("bpqc,pqco->bo", square, kernel) + bias
    return out


def group64(x, scale, bias, groups, epsilon=1e-3):
    out = np.empty_like(x)
    width = x.shape[3] // groups
    for b in range(len(x)):
        for g in range(groups):
            part = x[b, ..., g * width : (g + 1) * width]
            normal = (part - part.mean()) / np.sqrt(part.var() + epsilon)
            out[b, ..., g * width : (g + 1) * width] = normal
    return out * scale + bias


def test_group_norm_is_that_of_loops():
    norm = GroupNorm(6, groups=3)
    scale, bias = RNG.normal(size=(2, 6))
    norm.scale.set_value(jnp.float32(scale))
    norm.bias.set_value(jnp.float32(bias))
    x = RNG.normal(3, 2, (2, 4, 5, 6))
    np.testing.assert_allclose(norm(jnp.float32(x)), group64(x, scale, bias, 3), atol=2e-5)
    with pytest.raises(ValueError, match="6 channels can't be divided into 4"):
        GroupNorm(6, groups=4)


@pytest.mark.parametrize("stride, channels", [(1, 4), (2, 4), (1, 6)])
def test_residual_block_is_that_of_loops(stride, channels):
    def norm(width):
        return GroupNorm(width, groups=2)

    block = ResidualBlock(4, channels, stride, norm, rngs=nnx.Rngs(0))
    x = RNG.normal(size=(2, 5, 6, 4))

    def layer(name, x, stride=1):
        conv = getattr(block, name)
        kernel, bias = (np.float64(p[...]) for p in (conv.kernel, conv.bias))
        return group64(conv64(x, kernel, bias, stride), 1, 0, 2)

    y = layer("second", np.maximum(layer("first", x, stride), 0))
    around = layer("around", x, stride) if (stride, channels) != (1, 4) else x
    np.testing.assert_allclose(block(jnp.float32(x)), np.maximum(y + around, 0), atol=2e-5)


def test_transposed_convolution_is_that_of_loops():
    layer = TransposedConv(3, 2, rngs=nnx.Rngs(0))
    layer.bias.set_value(jnp.float32([0.5, -1]))
    x, kernel = RNG.normal(size=(2, 3, 4, 3)), np.float64(layer.kernel[...])
    want = np.zeros((2, 6, 8, 2)) + [0.5, -1]
    for i in range(3):
        for j in range(4):
            for p in range(2):
                for q in range(2):
                    want[:, 2 * i + p, 2 * j + q] += x[:, i, j] @ kernel[p, q]
    np.testing.assert_allclose(layer(jnp.float32(x)), want, atol=1e-5)


def test_the_decoder_makes_images_of_any_size():
    decoder = TransposedDecoder(8, (8, 4), (17, 22, 3), rngs=nnx.Rngs(0))
    assert decoder.small == (5, 6, 8)
    out = decoder(jnp.ones((2, 2, 4)))
    assert out.shape == (2, 17, 22, 3) and 0 < float(out.min()) <= float(out.max()) < 1


@pytest.mark.parametrize(
    "size, grid", [((64, 64), (4, 4)), ((96, 64), (6, 4)), ((224, 224), (14, 14))]
)
def test_grids_of_primary_capsules(size, grid):
    config = preset("capsnet_backbone", image_shape=(*size, 3))
    assert config.primary_grid == grid and config.input_capsules == grid[0] * grid[1] * 16
    model = create_model(config)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    out = jax.eval_shape(model.apply, variables, images)
    assert out.scores.shape == (2, 10) and out.reconstruction.shape == (2, *size, 3)


def test_refusals():
    with pytest.raises(ValueError, match="needs padding SAME"):
        preset("capsnet_backbone", padding="VALID")
    with pytest.raises(ValueError, match="decoder_kind"):
        preset("capsnet_backbone", decoder_kind="conv")
    shapes = jax.eval_shape(
        create_model(dataclasses.replace(SMALL, decoder=None)).init, jax.random.key(0)
    )
    assert "decoder" not in shapes


FEW = dataclasses.replace(
    preset("capsnet_backbone_224", num_classes=2),
    conv_channels=8,
    trunk=((8, 2, 2), (16, 1, 2), (16, 1, 2)),
    primary_types=4,
    capsule_layers=((4, 3, 1),),
)


@pytest.mark.parametrize(
    "config",
    [pytest.param(SMALL, marks=pytest.mark.slow), fit_image(FEW, (17, 22, 3))],
    ids=["backbone", "224"],
)
def test_a_few_steps_lower_the_loss(config):
    """Stripes along or across, of random phase and colour."""
    labels = np.arange(16, dtype=np.int32) % 2
    rows = np.arange(17)[:, None] + np.zeros(22)
    columns = np.arange(22)[None] + np.zeros((17, 1))
    waves = [0.5 + 0.5 * np.sin((columns if k else rows) * 1.5 + RNG.uniform(0, 6)) for k in labels]
    colours = RNG.uniform(0.3, 1, (16, 1, 1, 3))
    images = jnp.asarray(np.float32(np.array(waves)[..., None] * colours))
    model = create_model(config)
    loss, optimizer = capsnet_loss(model), adam(3e-3)
    step = jax.jit(make_train_step(loss, optimizer))
    state = jax.jit(lambda key: init_state(model, optimizer, key))(jax.random.key(0))
    history = []
    for _ in range(25):
        state, metrics = step(state, images, jnp.asarray(labels), jax.random.key(1))
        history.append({name: float(value) for name, value in metrics.items()})
    assert history[-1]["margin_loss"] < 0.5 * history[0]["margin_loss"]
    if config.decoder:
        assert history[-1]["reconstruction_loss"] < history[0]["reconstruction_loss"]
    assert history[-1]["accuracy"] == 1
