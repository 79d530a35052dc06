"""The paper in NumPy loops, in float64, for one example. Shares no code with capsjax.

Written from Sabour, Frosst & Hinton (2017): equations 1 to 4, Procedure 1, section 4.

Every function also takes complex numbers and continues the real one analytically, so that
:func:`derivative` gets derivatives exact to rounding from a complex step: no difference of
close numbers, no step size to choose. :func:`difference` is the ordinary central difference.
"""

from typing import NamedTuple

import numpy as np


def derivative(f, x, direction):
    """Directional derivative of an analytic ``f``: Im f(x + ih d) / h."""
    step = 1e-30
    return np.imag(f(x + 1j * step * direction)) / step


def difference(f, x, direction, step=1e-5):
    """Directional derivative by a central difference; the error is about step^2."""
    return (f(x + step * direction) - f(x - step * direction)) / (2 * step)


def gradient(f, x):
    """Gradient of a scalar function, component by component."""
    out = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        unit = np.zeros(x.shape)
        unit[index] = 1
        out[index] = derivative(f, x, unit)
    return out


# Capsules


def norm(x):
    total = 0.0
    for component in x:
        total = total + component * component
    return np.sqrt(total)


def squash(s):
    """Equation 1."""
    length = norm(s)
    if length == 0:
        return 0 * s
    return length**2 / (1 + length**2) * (s / length)


def squash_jacobian(s):
    """d squash_a / d s_b, by hand: g I + (g'/n) s s^T with gain g(n) = n / (1 + n^2)."""
    n, D = norm(s), len(s)
    out = np.zeros((D, D), s.dtype)
    if n == 0:
        return out
    gain, slope = n / (1 + n**2), (1 - n**2) / (1 + n**2) ** 2
    for a in range(D):
        for b in range(D):
            out[a, b] = gain * (a == b) + slope * s[a] * s[b] / n
    return out


def prediction_vectors(u, W):
    """Equation 2, right."""
    I, J, D, K = W.shape
    votes = np.zeros((I, J, D), np.result_type(u, W))
    for i in range(I):
        for j in range(J):
            for d in range(D):
                for k in range(K):
                    votes[i, j, d] += W[i, j, d, k] * u[i, k]
    return votes


def over_parents(b):
    """Equation 3: the coefficients of each child i sum to one."""
    c = np.zeros_like(b)
    for i in range(b.shape[0]):
        # Subtracting the largest changes nothing but the range of exp.
        largest = max(np.real(b[i]))
        total = 0.0
        for k in range(b.shape[1]):
            total = total + np.exp(b[i, k] - largest)
        for j in range(b.shape[1]):
            c[i, j] = np.exp(b[i, j] - largest) / total
    return c


def over_parents_or_nobody(b):
    """The leaky normaliser: one more parent with logit zero, whose share is dropped."""
    I, _ = b.shape
    return over_parents(np.concatenate([b, np.zeros((I, 1), b.dtype)], axis=1))[:, :-1]


def weighted_sum(c, votes):
    """Equation 2, left."""
    I, J, D = votes.shape
    s = np.zeros((J, D), np.result_type(c, votes))
    for j in range(J):
        for i in range(I):
            for d in range(D):
                s[j, d] += c[i, j] * votes[i, j, d]
    return s


def agreement(votes, v):
    I, J, D = votes.shape
    a = np.zeros((I, J), np.result_type(votes, v))
    for i in range(I):
        for j in range(J):
            for d in range(D):
                a[i, j] += votes[i, j, d] * v[j, d]
    return a


class Routed(NamedTuple):
    v: np.ndarray  # [J, D]
    lengths: np.ndarray  # [J]
    c: np.ndarray  # [I, J]
    earlier: np.ndarray  # [J, D] sum of the v of all iterations but the last


def outputs(s, bias):
    J, _ = s.shape
    return np.array([squash(s[j] if bias is None else s[j] + bias[j]) for j in range(J)])


def routing(votes, iterations, bias=None, coupling=over_parents, prior=None):
    """Procedure 1, with the logits ``prior`` in place of zero at first."""
    I, J, D = votes.shape
    b = np.zeros((I, J), votes.dtype)
    if prior is not None:
        b = b + prior
    earlier, v = np.zeros((J, D), votes.dtype), np.zeros((J, D), votes.dtype)
    for _ in range(iterations):
        earlier = earlier + v
        c = coupling(b)
        v = outputs(weighted_sum(c, votes), bias)
        b = b + agreement(votes, v)
    return Routed(v, np.array([norm(v[j]) for j in range(J)]), c, earlier)


def routing_constant_coupling(votes, c, bias=None):
    """The last iteration as a function of the votes when the coupling is a constant."""
    return outputs(weighted_sum(c, votes), bias)


def routing_constant_outputs(votes, earlier, bias=None):
    """The last iteration when the earlier outputs are constants.

    By then b_ij is the sum over the earlier iterations of votes_ij . v_j, that is
    votes_ij . (sum of the earlier v_j).
    """
    return outputs(weighted_sum(over_parents(agreement(votes, earlier)), votes), bias)


# Losses


def positive(x):
    """max(0, x), by the sign of the real part."""
    return np.where(np.real(x) > 0, x, 0)


def margin_loss(lengths, targets, m_plus=0.9, m_minus=0.1, down_weight=0.5):
    """Equation 4, summed over the classes."""
    total = 0.0
    for length, present in zip(lengths, targets, strict=True):
        total = total + present * positive(m_plus - length) ** 2
        total = total + down_weight * (1 - present) * positive(length - m_minus) ** 2
    return total


def reconstruction_loss(reconstruction, image):
    total = 0.0
    for a, b in zip(reconstruction.ravel(), image.ravel(), strict=True):
        total = total + (a - b) ** 2
    return total


def cross_entropy(logits, label):
    total = 0.0
    for logit in logits:
        total = total + np.exp(logit)
    return np.log(total) - logits[label]


# Networks


def convolution(x, w, stride=1):
    """Valid cross-correlation of ``[H, W, C]`` with ``[k, k, C, O]``."""
    (H, W, C), (k, _, _, O) = x.shape, w.shape
    out = np.zeros(((H - k) // stride + 1, (W - k) // stride + 1, O), np.result_type(x, w))
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            for i in range(k):
                for j in range(k):
                    for c in range(C):
                        out[row, column] += x[stride * row + i, stride * column + j, c] * w[i, j, c]
    return out


def convolution_gradients(x, w, stride, g):
    """Gradients of sum(g * convolution(x, w)): every product goes back to both factors."""
    dx, dw = np.zeros(x.shape), np.zeros(w.shape)
    k, _, C, _ = w.shape
    for row, column in np.ndindex(*g.shape[:2]):
        for i, j, c in np.ndindex(k, k, C):
            y, z = stride * row + i, stride * column + j
            dx[y, z, c] += np.sum(w[i, j, c] * g[row, column])
            dw[i, j, c] += x[y, z, c] * g[row, column]
    return dx, dw


def dense(x, layer):
    """``x W + b``."""
    W, b = layer["kernel"], layer["bias"]
    y = np.array(b, np.result_type(x, W, b))
    for m in range(W.shape[0]):
        y = y + x[m] * W[m]
    return y


def decode(params, pose, kept, image_shape):
    """Fully connected layers on the pose of one class, the others zero."""
    x = []
    for j in range(len(pose)):
        x += [p if j == kept else 0 * p for p in pose[j]]
    x = np.array(x)
    layers = [params["layers"][str(n)] for n in range(len(params["layers"]))]
    for layer in layers[:-1]:
        x = positive(dense(x, layer))
    return (1 / (1 + np.exp(-dense(x, layers[-1])))).reshape(image_shape)


class Network(NamedTuple):
    lengths: np.ndarray  # [J]
    v: np.ndarray  # [J, D]
    reconstruction: np.ndarray | None  # [H, W, C]


def primary_capsules(params, x, pose, stride, scale=1.0):
    """Squashed vectors ``[I, K]`` of neighbouring channels, position after position."""
    y = scale * convolution(x, params["conv"]["kernel"], stride) + params["conv"]["bias"]
    u = []
    for row in range(y.shape[0]):
        for column in range(y.shape[1]):
            for kind in range(y.shape[2] // pose):
                u.append(squash(y[row, column, kind * pose : (kind + 1) * pose]))
    return np.array(u)


def capsnet(params, image, *, pose, stride, iterations, scale=1.0, label=None):
    """Section 4. Without a label the longest capsule is decoded."""
    x = positive(convolution(image, params["conv"]["kernel"]) + params["conv"]["bias"])
    u = primary_capsules(params["primary"], x, pose, stride, scale)
    votes = prediction_vectors(u, params["classes"]["kernel"])
    routed = routing(votes, iterations, params["classes"].get("bias"))
    if "decoder" not in params:
        return Network(routed.lengths, routed.v, None)
    kept = int(np.argmax(np.real(routed.lengths))) if label is None else label
    return Network(routed.lengths, routed.v, decode(params["decoder"], routed.v, kept, image.shape))


def cnn(params, image, pool, padding="SAME"):
    """Convolutions with ReLU, 2x2 maxima, dense layers; logits."""
    x = image
    for n in range(len(params["convs"])):
        layer = params["convs"][str(n)]
        k = layer["kernel"].shape[0]
        before, after = (k - 1) // 2, k // 2
        if padding == "SAME":
            x = np.pad(x, ((before, after), (before, after), (0, 0)))
        x = positive(convolution(x, layer["kernel"]) + layer["bias"])
        if pool:
            height, width = x.shape[0] // 2, x.shape[1] // 2
            pooled = np.zeros((height, width, x.shape[2]))
            for row, column in np.ndindex(height, width):
                square = x[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                pooled[row, column] = square.max(axis=(0, 1))
            x = pooled
    x = x.ravel()
    for n in range(len(params["dense"]) - 1):
        x = positive(dense(x, params["dense"][str(n)]))
    return dense(x, params["dense"][str(len(params["dense"]) - 1)])


# Optimiser


def adam(x, gradients, rate=1e-3, decay=0.96, decay_steps=2000, floor=0.0):
    """Kingma & Ba (2015) with the rate max(floor, rate * decay^(t / decay_steps)).

    Yields x after each gradient; t is the number of updates before this one.
    """
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(gradients):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1 ** (t + 1)), v / (1 - beta2 ** (t + 1))
        x = x - max(floor, rate * decay ** (t / decay_steps)) * m_hat / (np.sqrt(v_hat) + epsilon)
        yield x


def adam_epsilon_hat(x, gradients, rate=1e-3, decay=0.96, decay_steps=2000, floor=0.0):
    """:func:`adam` as tf.train.AdamOptimizer documents it: epsilon beside the uncorrected root."""
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(gradients, start=1):
        lr = max(floor, rate * decay ** ((t - 1) / decay_steps))
        lr_t = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        x = x - lr_t * m / (np.sqrt(v) + epsilon)
        yield x
