"""Convolutions: values and gradients of all forms, and the choice among them."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from jax.extend.core import jaxprs_in_params

from capsjax import Conv, capsnet_loss, conv2d, create_model, interpolation, preset, winograd
from capsjax.conv import IMPLEMENTATIONS, depthwise_conv2d

# (B, H, W, C, k, stride, O)
SIZES = [
    (2, 7, 7, 2, 3, 1, 3),
    (1, 8, 6, 1, 3, 2, 2),  # H != W
    (3, 9, 12, 2, 3, 3, 1),  # stride = k
    (1, 5, 7, 3, 5, 1, 2),  # H = k
    (2, 5, 5, 1, 5, 2, 2),  # one output
    (1, 8, 9, 2, 4, 2, 2),  # even k, left-over pixels
    (2, 10, 11, 1, 4, 3, 2),  # left-over pixels of two kinds
    (1, 6, 5, 2, 1, 1, 3),  # k = 1
    (2, 7, 8, 1, 1, 2, 2),  # k < stride
    (1, 11, 8, 2, 2, 3, 1),  # k < stride, left-over pixels
    (1, 11, 14, 1, 5, 4, 2),
    (1, 1, 1, 1, 1, 1, 1),
]


def data(B, H, W, C, k, stride, O, dtype=np.float64):
    rng = np.random.default_rng(H * W + k)
    x, w = rng.normal(size=(B, H, W, C)), rng.normal(size=(k, k, C, O))
    g = rng.normal(size=(B, (H - k) // stride + 1, (W - k) // stride + 1, O))
    return x.astype(dtype), w.astype(dtype), g.astype(dtype)


def expected(x, w, stride, g):
    """Returns the value and both gradients."""
    y = np.stack([reference.convolution(image, w, stride) for image in x])
    dx, dw = zip(
        *[
            reference.convolution_gradients(*pair, stride, gi)
            for *pair, gi in zip(x, [w] * len(x), g)
        ]
    )
    return y, np.stack(dx), sum(dw)


@functools.cache
def jitted(stride):
    """Returns the value and both gradients in every form."""

    @jax.jit
    def everything(x, w, g):
        out = {}
        for form in IMPLEMENTATIONS:
            conv = functools.partial(conv2d, stride=stride, implementation=form)
            y, vjp = jax.vjp(conv, x, w)
            out[form] = (y, *vjp(g))
        return out

    return everything


def relative_error(a, b):
    """Returns the largest difference relative to the largest value."""
    return abs(np.asarray(a, np.float64) - b).max() / abs(b).max()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_value_and_gradients(x64, size):
    stride = size[5]
    x, w, g = data(*size)
    exact = expected(x, w, stride, g)
    for form, results in jitted(stride)(x, w, g).items():
        for got, true in zip(results, exact, strict=True):
            assert got.shape == true.shape and got.dtype == np.float64
            assert relative_error(got, true) < 1e-13, form


@pytest.mark.parametrize("form", ["im2col", "winograd"])
def test_mapped_over_images_and_kernels(x64, form):
    """Every pair gives the same result alone, as runs that are trained together need."""
    size = SIZES[6]
    pairs = [data(*size) for _ in range(2)]
    pairs[1] = tuple(a[::-1] for a in pairs[1])

    def everything(x, w, g):
        y, vjp = jax.vjp(lambda x, w: conv2d(x, w, size[5], implementation=form), x, w)
        return y, *vjp(g)

    mapped = jax.jit(jax.vmap(everything))(*map(np.stack, zip(*pairs)))
    for n, (x, w, g) in enumerate(pairs):
        for got, true in zip(mapped, expected(x, w, size[5], g), strict=True):
            assert relative_error(got[n], true) < 1e-13


@pytest.mark.parametrize("tiles", [(1, 1), (2, 2), (1, 3), (6, 2)], ids=str)
def test_tiled_convolution_equals_reference(x64, tiles):
    """Covers all sizes, including partial last tiles and fewer outputs than a tile has."""

    def everything(x, w, g, stride):
        y, vjp = jax.vjp(lambda x, w: winograd.convolve(x, w, stride, tiles), x, w)
        return y, *vjp(g)

    for size in SIZES:
        x, w, g = data(*size)
        results = jax.jit(everything, static_argnums=3)(x, w, g, size[5])
        for got, true in zip(results, expected(x, w, size[5], g), strict=True):
            assert got.shape == true.shape
            assert relative_error(got, true) < 1e-13, size


@pytest.mark.parametrize(
    "size, last",
    [
        ((1, 5, 5, 6, 3, 1, 2), (6, 2)),  # few tiles: X is transposed
        ((8, 8, 8, 6, 3, 1, 2), (2, 6)),  # many: the gradient, once it is transformed back
        ((8, 8, 8, 2, 3, 1, 6), (2, 6)),  # X is smaller than the gradient of Y
    ],
    ids=str,
)
def test_gradient_of_the_kernel_transposes_what_is_cheaper(x64, size, last):
    x, w, g = data(*size)

    def gradient(x, w, g):
        return jax.vjp(lambda w: conv2d(x, w, size[5], implementation="winograd"), w)[1](g)[0]

    shapes = [p.outvars[0].aval.shape for p in products(jax.make_jaxpr(gradient)(x, w, g).jaxpr)]
    assert (size[4] ** 2, *last) in shapes and (size[4] ** 2, *last[::-1]) not in shapes
    assert relative_error(jax.jit(gradient)(x, w, g), expected(x, w, size[5], g)[2]) < 1e-13


@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 9])
def test_transforms_are_a_correlation(kernel):
    """Sums of their products are one where sample = result + tap, along both axes, else zero."""
    narrow = interpolation.Axis(1, 2, kernel, kernel + 1)
    for out in (1, 2, 3, 4, 6, 10, 17):
        axis = interpolation.Axis(1, out, kernel, out + kernel - 1)
        for h, v in ((axis, narrow), (narrow, axis)):
            image, taps, result = interpolation.transforms(h, v)
            assert image.shape[0] == interpolation.count_products(h, v)
            got = np.einsum("yp,px,pk->yxk", result, image, taps)
            exact = np.zeros((h.out, v.out, h.length, v.length, kernel, kernel))
            for y, x, i, j in np.ndindex(h.out, v.out, kernel, kernel):
                exact[y, x, y + i, x + j, i, j] = 1
            np.testing.assert_allclose(got, exact.reshape(got.shape), atol=1e-12)


def traced(x, w, stride=1):
    """Counts products by tracing, without computing anything."""
    arguments = (jax.ShapeDtypeStruct(shape, np.float32) for shape in (x, w))
    conv = functools.partial(conv2d, stride=stride)
    return list(products(jax.make_jaxpr(conv)(*arguments).jaxpr))


def test_large_images_are_cut_into_tiles():
    """The second layer of the paper's CNN needs a quarter of the direct form's multiplications."""
    x, w = (32, 32, 32, 256), (5, 5, 256, 256)
    found, count = traced(x, w), 0
    for product in found:
        (summed, _), _ = product.params["dimension_numbers"]
        sizes = [product.invars[0].aval.shape[n] for n in summed]
        count += math.prod([*product.outvars[0].aval.shape, *sizes])
    assert count < 32 * 28 * 28 * 5 * 5 * 256 * 256 / 4
    # Of the tiles that the count chooses, 16 of 7x7 results: 11 points along an axis, 5 of them
    # real, hence 5 * 5 products and three for each of (11 * 11 - 5 * 5) / 2 pairs of conjugates.
    assert (169, 32 * 16, 256) in {product.outvars[0].aval.shape for product in found}


@pytest.mark.parametrize("size", [(32, 20, 20, 256, 9, 2, 256), (4, 33, 18, 6, 3, 1, 8)], ids=str)
def test_number_of_tiles_is_the_cheapest(size):
    B, H, W, C, k, stride, O = size
    x, w = (B, H, W, C), (k, k, C, O)
    every = np.ndindex((H - k) // stride + 1, (W - k) // stride + 1)
    costs = [winograd.cost(x, w, stride, (m + 1, n + 1)) for m, n in every]
    assert winograd.cost(x, w, stride) == min(costs) < costs[0]


@pytest.mark.parametrize(
    "batch, side, channels, outputs, kernel, stride, form",
    [
        (64, 28, 1, 64, 9, 1, "im2col"),
        (64, 32, 3, 64, 9, 1, "im2col"),
        (64, 32, 6, 64, 9, 1, "winograd"),
        (32, 28, 1, 64, 5, 1, "im2col"),
        (64, 20, 16, 16, 9, 2, "winograd"),
        (64, 20, 64, 64, 9, 2, "winograd"),
        (1, 20, 64, 64, 9, 2, "im2col"),
        (64, 28, 64, 64, 9, 2, "winograd"),
        (1, 20, 256, 256, 9, 2, "im2col"),
        (4, 20, 256, 256, 9, 2, "im2col"),
        (16, 20, 256, 256, 9, 2, "winograd"),
        (64, 20, 256, 256, 9, 2, "winograd"),
        (64, 20, 32, 32, 5, 1, "winograd"),
        (64, 22, 64, 64, 3, 1, "winograd"),
        (16, 12, 128, 128, 3, 2, "im2col"),
    ],
)
def test_forms_are_chosen_as_measured(batch, side, channels, outputs, kernel, stride, form):
    """Gradients of the other form took at least a tenth more time, on 2 cores and JAX 0.12."""
    found = traced((batch, side, side, channels), (kernel, kernel, channels, outputs), stride)
    assert len(found) == {"im2col": 1, "winograd": 4}[form]


@pytest.mark.parametrize(
    "size", [(1, 20, 20, 16, 9, 2, 4), (1, 28, 28, 1, 9, 1, 4)], ids=["primary", "first"]
)
def test_float32_error_at_the_sizes_of_capsnet(size):
    x, w, g = data(*size, dtype=np.float32)
    exact = expected(*(a.astype(np.float64) for a in (x, w)), size[5], g.astype(np.float64))
    for form, results in jitted(size[5])(x, w, g).items():
        for got, true in zip(results, exact, strict=True):
            assert got.dtype == jnp.float32
            assert relative_error(got, true) < 2e-6, form


def test_bfloat16_is_accumulated_in_float32():
    """Errors are those of a few roundings to bfloat16, not of sums of 512 terms in it."""
    args = [jnp.asarray(a, jnp.bfloat16) for a in data(2, 8, 8, 32, 4, 2, 8)]
    exact = expected(
        *(np.asarray(a.astype(jnp.float32), np.float64) for a in args[:2]),
        2,
        np.asarray(args[2].astype(jnp.float32), np.float64),
    )
    for form, results in jitted(2)(*args).items():
        for name, got, true in zip(["y", "dx", "dw"], results, exact, strict=True):
            assert got.dtype == jnp.bfloat16
            # One rounding at the end, except that winograd also rounds both transforms and
            # their product, and im2col's dx is a sum of patches in bfloat16.
            once = form == "xla" or (form == "im2col" and name != "dx")
            assert relative_error(got.astype(jnp.float32), true) < (2**-8 if once else 2**-7)
    # CPUs accumulate so whether asked or not; accelerators need to be asked.
    for form, count in {"im2col": 3, "winograd": 4 + 5}.items():
        conv = functools.partial(conv2d, stride=2, implementation=form)

        def value_and_gradients(x, w, g, conv=conv):
            y, pull = jax.vjp(conv, x, w)
            return y, pull(g)

        found = list(products(jax.make_jaxpr(value_and_gradients)(*args).jaxpr))
        assert len(found) == count
        assert {e.params["preferred_element_type"] for e in found} == {np.dtype("float32")}


def products(jaxpr):
    """Returns all matrix products, including those inside calls."""
    for equation in jaxpr.eqns:
        if "dot" in equation.primitive.name:
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("size", [(2, 20, 20, 4, 9, 2, 4), (1, 9, 9, 1, 9, 1, 1)], ids=str)
def test_default_is_one_of_the_forms_for_cpu(size):
    x, w, _ = data(*size, dtype=np.float32)
    default = functools.partial(conv2d, stride=size[5])
    assert "conv_general_dilated" not in str(jax.make_jaxpr(default)(x, w))
    exact = jax.jit(functools.partial(default, implementation="xla"))(x, w)
    assert relative_error(jax.jit(default)(x, w), np.asarray(exact)) < 2e-6


def test_default_stride_is_one():
    x, w, _ = data(*SIZES[0], dtype=np.float32)
    np.testing.assert_array_equal(conv2d(x, w), conv2d(x, w, 1))


def test_vmap_equals_a_loop():
    x, w, _ = data(3, 8, 6, 2, 3, 2, 2, dtype=np.float32)
    for implementation in IMPLEMENTATIONS:
        conv = functools.partial(conv2d, stride=2, implementation=implementation)
        mapped = jax.jit(jax.vmap(lambda x, conv=conv: conv(x[None], w)[0]))(x)
        np.testing.assert_allclose(mapped, jax.jit(conv)(x, w), rtol=1e-5, atol=1e-5)


def test_errors():
    x = np.zeros((1, 6, 8, 2), np.float32)
    for implementation in (*IMPLEMENTATIONS, None):
        with pytest.raises(ValueError, match="6x8 pixels is smaller than the 7x7 kernel"):
            conv2d(x, np.zeros((7, 7, 2, 1), np.float32), implementation=implementation)
    with pytest.raises(ValueError, match="xla, im2col, winograd, not 'fft'"):
        conv2d(x, np.zeros((3, 3, 2, 1), np.float32), implementation="fft")
    for shape in [(3, 3, 1, 4), (3, 4, 2, 1), (3, 3, 2)]:
        with pytest.raises(AssertionError):
            conv2d(x, np.zeros(shape, np.float32))


def alone(x, w, stride, g):
    """Returns the value and both gradients, one image and one channel at a time."""
    y, dx, dw = np.zeros(g.shape), np.zeros(x.shape), np.zeros(w.shape)
    for b, row, column, c in np.ndindex(*g.shape):
        for i, j in np.ndindex(*w.shape[:2]):
            at = (b, stride * row + i, stride * column + j, c)
            y[b, row, column, c] += x[at] * w[i, j, 0, c]
            dx[at] += g[b, row, column, c] * w[i, j, 0, c]
            dw[i, j, 0, c] += g[b, row, column, c] * x[at]
    return y, dx, dw


@pytest.mark.parametrize("size", [SIZES[n] for n in (0, 1, 5, 8, 11)], ids=str)
def test_depthwise(x64, size):
    B, H, W, _, k, stride, _ = size
    x, _, _ = data(B, H, W, 3, k, stride, 1)
    _, w, g = data(B, H, W, 1, k, stride, 3)
    exact = alone(x, w, stride, g)

    @jax.jit
    def everything(x, w, g):
        y, vjp = jax.vjp(functools.partial(depthwise_conv2d, stride=stride), x, w)
        return y, *vjp(g)

    for got, true in zip(everything(x, w, g), exact, strict=True):
        assert got.shape == true.shape and got.dtype == np.float64
        assert relative_error(got, true) < 1e-13


def test_depthwise_in_bfloat16_is_accumulated_in_float32():
    x, _, _ = data(2, 6, 6, 3, 5, 1, 1)
    _, w, g = data(2, 6, 6, 1, 5, 1, 3)
    half = [jnp.asarray(a, jnp.bfloat16) for a in (x, w)]
    exact = alone(*(np.asarray(a.astype(jnp.float32), np.float64) for a in half), 1, g)[0]
    got = jax.jit(depthwise_conv2d)(*half)
    assert got.dtype == jnp.bfloat16
    assert relative_error(got.astype(jnp.float32), exact) < 2**-8
    found = products(jax.make_jaxpr(depthwise_conv2d)(*half).jaxpr)
    assert [e.params["preferred_element_type"] for e in found] == [np.dtype("float32")]


def test_depthwise_errors():
    x = np.zeros((1, 6, 8, 2), np.float32)
    for shape in [(3, 3, 2, 2), (3, 3, 1, 3), (3, 3, 1, 1), (3, 4, 1, 2), (3, 3, 2)]:
        with pytest.raises(AssertionError):
            depthwise_conv2d(x, np.zeros(shape, np.float32))
    with pytest.raises(AssertionError):
        depthwise_conv2d(x[0], np.zeros((3, 3, 1, 2), np.float32))
    for k in (7, 9):
        with pytest.raises(ValueError, match=f"6x8 pixels is smaller than the {k}x{k} kernel"):
            depthwise_conv2d(x, np.zeros((k, k, 1, 2), np.float32))


def test_depthwise_module():
    conv = Conv(
        3,
        3,
        2,
        stride=2,
        scale=0.25,
        depthwise=True,
        bias_init=jax.nn.initializers.normal(1),
        rngs=nnx.Rngs(0),
    )
    assert conv.kernel[...].shape == (2, 2, 1, 3)
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)
    kernel, bias = np.asarray(conv.kernel[...]), np.asarray(conv.bias[...])
    exact = 0.25 * alone(x, kernel, 2, np.zeros((2, 2, 3, 3)))[0] + bias
    np.testing.assert_allclose(conv(x), exact, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="depthwise: 3 channels can't become 6"):
        Conv(3, 6, 2, depthwise=True, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("side", [24, 28, 32, 36, 40])
def test_gradients_at_the_image_sizes_of_the_presets(side):
    """Compares both convolutions of CapsNet in float32 with XLA's convolution and its gradient."""
    for H, C, stride in ((side, 1, 1), (side, 3, 1), (side - 8, 16, 2)):
        x, w, g = data(2, H, H, C, 9, stride, 8, dtype=np.float32)
        results = jitted(stride)(x, w, g)
        for form in ("im2col", "winograd"):
            for got, plain in zip(results[form], results["xla"], strict=True):
                assert relative_error(got, np.asarray(plain, np.float64)) < 1e-5, (form, H)


def test_gradients_of_the_whole_loss(monkeypatch):
    """Compares fast convolutions and streamed routing with XLA's convolutions and stored votes."""
    config = preset("capsnet_mnist", conv_channels=32, primary_types=4, decoder=(16,))
    images = jax.random.uniform(jax.random.key(1), (2, 28, 28, 1))
    labels, found = jnp.array([3, 7]), {}
    for conv, routing in (("xla", "naive"), ("winograd", "stream"), ("im2col", "stream")):
        # Of the first convolution no gradient of the image is needed, but that of its kernel.
        monkeypatch.setattr("capsjax.conv._fastest", lambda *shapes, conv=conv: conv)
        model = create_model(dataclasses.replace(config, routing_implementation=routing))
        params = model.init(jax.random.key(0))
        loss = capsnet_loss(model)
        found[conv] = jax.jit(jax.grad(lambda p, f=loss: f(p, images, labels)[0].mean()))(params)
    plain = found.pop("xla")
    for form, gradient in found.items():
        for got, exact in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain), strict=True):
            assert relative_error(got, np.asarray(exact, np.float64)) < 1e-4, form


@pytest.mark.parametrize("implementation", [None, "xla", "im2col", "winograd"])
@pytest.mark.parametrize("which", [0, 1])
def test_whole_numbers_are_refused(which, implementation):
    """Their products would wrap, or be rounded to zero."""
    arrays = [np.ones((1, 8, 8, 1), np.float32), np.ones((3, 3, 1, 2), np.float32)]
    arrays[which] = arrays[which].astype(np.uint8)
    with pytest.raises(TypeError, match="must be floats, not uint8"):
        conv2d(*arrays, implementation=implementation)
