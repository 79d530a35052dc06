"""Measures of how features change with a transformation of the image; NumPy, float64.

A path is the features of one image for T values of the parameter of the transformation,
``[T, D]``; N paths are ``[N, T, D]``. Features are the pose of a class capsule, or any others.
"""

from typing import NamedTuple

import numpy as np

# Of ridge regression, relative to the number of examples, for features of mean variance 1.
PENALTIES = tuple(10.0**n for n in range(-5, 2))
TINY = 1e-12


def adjusted_r2(paths: np.ndarray, parameter: np.ndarray, degree: int) -> np.ndarray:
    r"""Computes how well a polynomial of the parameter predicts each path, by adjusted R^2.

    .. math::
       R^2 = 1 - \frac{\sum_{td} (y_{td} - \hat y_{td})^2 / (T - 1 - p)}
                      {\sum_{td} (y_{td} - \bar y_d)^2 / (T - 1)}

    1 for an exact polynomial of degree p, 0 in expectation for independent noise.

    Args:
      paths: ``[N, T, D]``.
      parameter: ``[T]``.
      degree: p, below T - 1.

    Returns:
      ``[N]``; NaN for a path that does not move.
    """
    x = np.asarray(parameter, np.float64)
    basis, _ = np.linalg.qr(np.vander((x - x.mean()) / np.ptp(x), degree + 1))
    centred = paths - paths.mean(axis=1, keepdims=True)
    rest = centred - (basis @ basis.T) @ centred
    left, total = (np.square(a).sum(axis=(1, 2)) for a in (rest, centred))
    still = total <= TINY * np.square(paths).sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        adjusted = 1 - left / total * (len(x) - 1) / (len(x) - 1 - degree)
    return np.where(still, np.nan, adjusted)


def variance_shares(paths: np.ndarray) -> np.ndarray:
    """Computes the share ``[D]`` of each dimension in the variance along the paths, or zeros."""
    variance = paths.var(axis=1).mean(axis=0)
    return variance / max(variance.sum(), TINY)


def participation_ratio(share: np.ndarray) -> float:
    """Computes the effective number of dimensions, 1 / sum of squared shares, from 1 to D."""
    return float(1 / max(np.square(share).sum(), TINY))


class Change(NamedTuple):
    """Root mean square over images, relative to that between two images of one class."""

    length: np.ndarray  # [T], of the norms
    direction: np.ndarray  # [T], of the unit vectors


def change(paths: np.ndarray, start: int, labels: np.ndarray) -> Change:
    """Computes how much the features differ from those of the untransformed image.

    A network is invariant where the change is small, and can be equivariant only in what changes.
    Classes with a single image do not contribute to the unit.

    Args:
      paths: ``[N, T, D]``.
      start: index of the parameter of the identity.
      labels: ``[N]``.
    """
    norms = np.linalg.norm(paths, axis=2, keepdims=True)
    return Change(
        *(_relative(values, start, labels) for values in (norms, paths / np.maximum(norms, TINY)))
    )


def _relative(values, start, labels):
    changed = np.square(values - values[:, [start]]).sum(axis=2).mean(axis=0)
    squares, freedom = 0.0, 0
    for label in np.unique(labels):
        group = values[labels == label, start]
        squares += np.square(group - group.mean(axis=0)).sum()
        freedom += len(group) - 1
    # Two independent draws differ by twice the variance.
    return np.sqrt(changed / max(2 * squares / max(freedom, 1), TINY))


def ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    r"""Minimizes :math:`\frac 1 N \sum (y - w \cdot x - b)^2 + \lambda |w|^2`.

    Args:
      x: ``[N, D]``.
      y: ``[N]``.
      penalty: lambda.

    Returns:
      w ``[D]`` and b.
    """
    mean, centred = x.mean(axis=0), x - x.mean(axis=0)
    gram = centred.T @ centred + penalty * len(x) * np.eye(x.shape[1])
    w = np.linalg.solve(gram, centred.T @ (y - y.mean()))
    return w, float(y.mean() - mean @ w)


class Examples(NamedTuple):
    """The examples of a probe."""

    features: np.ndarray  # [N, D]
    target: np.ndarray  # [N]
    labels: np.ndarray  # [N]


class Probe(NamedTuple):
    """R^2 on test examples: 1 for a perfect prediction, 0 for the mean of the class."""

    per_class: dict[int, float]
    pooled: float  # squares of all classes summed, each about its own mean


def probe(train: Examples, test: Examples, components: int | None = None) -> Probe:
    """Fits and tests a ridge regression for each class, so that no probe can use the label.

    The penalty is the one of :data:`PENALTIES` that is best for the last fifth of the training
    examples of the class when the others are fitted; the fit is then repeated with all.

    Args:
      train, test: examples; a class counts if it has at least 10 for training and 2 for the test.
      components: number of principal components of the training examples of the class that
        replace the features; None: keep the features.
    """
    scores, left, total = {}, 0.0, 0.0
    for label in np.unique(test.labels):
        fit, held = (_of_class(part, label) for part in (train, test))
        if len(fit.target) < 10 or len(held.target) < 2:
            continue
        x, z = _scaled(fit.features, held.features, components)
        few = len(x) * 4 // 5
        errors = []
        for penalty in PENALTIES:
            w, b = ridge(x[:few], fit.target[:few], penalty)
            errors.append(np.square(x[few:] @ w + b - fit.target[few:]).sum())
        w, b = ridge(x, fit.target, PENALTIES[int(np.argmin(errors))])
        rest = np.square(z @ w + b - held.target).sum()
        square = np.square(held.target - held.target.mean()).sum()
        scores[int(label)] = float(1 - rest / max(square, TINY))
        left, total = left + rest, total + square
    return Probe(scores, float(1 - left / total) if total else float("nan"))


def _of_class(examples, label):
    return Examples(*(values[examples.labels == label] for values in examples))


def _scaled(x, z, components):
    """Subtracts the mean of x, divides by its root mean variance, and projects on components.

    All features are divided by the same number: divided by its own, a feature that is nearly always
    zero would become the largest.
    """
    mean = x.mean(axis=0)
    deviation = max(np.sqrt(x.var(axis=0).mean()), TINY)
    x, z = (x - mean) / deviation, (z - mean) / deviation
    if components is not None and components < x.shape[1]:
        axes = np.linalg.svd(x, full_matrices=False)[2][:components].T
        x, z = x @ axes, z @ axes
    return x, z


def thickness(images: np.ndarray) -> np.ndarray:
    r"""Computes the width of strokes in pixels: twice the area over the perimeter.

    A stroke of width w and length l >> w has area wl and perimeter 2l. Both are averaged over
    all thresholds of the pixels p, with which they are

    .. math::
       \frac{2 \sum p}{\sum |\nabla p|}

    (coarea formula; forward differences, zero outside).

    Args:
      images: ``[N, H, W, C]``, at any positive scale; channels are summed.

    Returns:
      ``[N]``; 0 for an empty image.
    """
    p = np.pad(images.astype(np.float64).sum(axis=3), ((0, 0), (1, 1), (1, 1)))
    slope = np.hypot(np.diff(p, axis=1)[:, :, :-1], np.diff(p, axis=2)[:, :-1])
    perimeter = slope.sum(axis=(1, 2))
    return 2 * p.sum(axis=(1, 2)) / np.where(perimeter > 0, perimeter, 1)
