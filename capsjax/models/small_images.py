"""Networks for images that are smaller than the kernels of their convolutions allow."""

import dataclasses
from collections.abc import Iterator

from capsjax.models.capsnet_config import CapsNetConfig
from capsjax.models.windows import Window, smallest_image

LEAST = 3  # kernels become smaller than this only where nothing else fits


def fit_image(config: CapsNetConfig, image_shape: tuple[int, int, int]) -> CapsNetConfig:
    """Adapt a network to images of another shape, with smaller kernels where it is necessary.

    A network whose kernels fit is changed in ``image_shape`` alone. Otherwise the first of these
    changes that makes it fit is made: kernels shrink in proportion to the image, or by more,
    but not below 3 pixels; then strides become 1, those of the last layers first; then the
    largest kernels lose a pixel at a time. The result depends on the arguments alone.

    Args:
      config: a network for images for which its kernels were chosen.
      image_shape: height, width and channels of the images.

    Example:
      >>> from capsjax import PRESETS
      >>> small = fit_image(PRESETS["capsnet_mnist"], (8, 8, 1))
      >>> small.conv_kernel, small.primary_kernel, small.primary_stride, small.primary_grid
      (3, 3, 2, (2, 2))
    """
    side, usual = min(image_shape[:2]), min(config.image_shape[:2])
    windows = next(
        c for c in _candidates(config.windows, side / usual) if smallest_image(c) <= side
    )
    sizes = [(window.kernel, window.stride) for window in windows]
    count = len(config.convs)
    primary = count + len(config.trunk)
    trunk = zip(config.trunk, sizes[count:primary], strict=True)
    more = [(c[0], *size) for c, size in zip(config.more_convs, sizes[1:count], strict=True)]
    deep = zip(config.capsule_layers, sizes[primary + 1 :], strict=True)
    (conv_kernel, conv_stride), (primary_kernel, primary_stride) = sizes[0], sizes[primary]
    return dataclasses.replace(
        config,
        image_shape=tuple(image_shape),
        conv_kernel=conv_kernel,
        conv_stride=conv_stride,
        more_convs=tuple(more),
        trunk=tuple((width, blocks, stride) for (width, blocks, _), (_, stride) in trunk),
        primary_kernel=primary_kernel,
        primary_stride=primary_stride,
        capsule_layers=tuple((layer[0], *size) for layer, size in deep),
    )


def _candidates(windows: list[Window], share: float) -> Iterator[list[Window]]:
    """Yield the windows, then ever smaller ones; the last ones fit an image of one pixel."""
    yield windows
    for percent in range(min(100, int(100 * share)), 0, -1):
        yield [_resize(w, max(LEAST, round(w.kernel * percent / 100))) for w in windows]
    windows = [_resize(w, LEAST) for w in windows]
    for n in reversed(range(len(windows))):
        windows = [*windows[:n], windows[n]._replace(stride=1), *windows[n + 1 :]]
        yield windows
    for size in reversed(range(1, LEAST)):
        for n in reversed(range(len(windows))):
            windows = [*windows[:n], _resize(windows[n], size), *windows[n + 1 :]]
            yield windows


def _resize(window: Window, kernel: int) -> Window:
    """Replace a larger kernel; padded windows fit everywhere."""
    return window if window.padded else window._replace(kernel=min(window.kernel, kernel))
