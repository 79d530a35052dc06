"""The forward passes of three public programs, written down again in NumPy, float64.

They follow the order of the operations and the axes of the programs, not ours. Arrays have their
names. ``made_up`` draws arrays of their layouts for a small network.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SIDE = 20  # of images: 12 pixels after the first convolution, a grid of 2x2 capsules
CONV, TYPES, J, D, K = 6, 3, 4, 5, 8
I = 2 * 2 * TYPES
HIDDEN = 7, 6


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def conv_nchw(x, weight, bias, stride=1):
    """[B, C, H, W] and [O, C, k, k]."""
    k = weight.shape[-1]
    windows = sliding_window_view(x, (k, k), (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bchwij,ocij->bohw", windows, weight) + bias[:, None, None]


def conv_nhwc(x, kernel, bias, stride=1):
    """[B, H, W, C] and [k, k, C, O]."""
    k = kernel.shape[0]
    windows = sliding_window_view(x, (k, k), (1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijco->bhwo", windows, kernel, optimize=True) + bias


def norm(x):
    return np.sqrt((x**2).sum(-1, keepdims=True))


def torch_decoder(a, x):
    for place in (0, 2, 4):
        x = x @ a[f"decoder.{place}.weight"].T + a[f"decoder.{place}.bias"]
        x = 1 / (1 + np.exp(-x)) if place == 4 else np.maximum(x, 0)
    return x


def torch_arrays(rng, channels, decoder_in=J * D):
    sizes = (decoder_in, *HIDDEN, channels * SIDE * SIDE)
    found = {"conv1.weight": rng.normal(size=(CONV, channels, 9, 9)) / 9}
    found["conv1.bias"] = rng.normal(size=CONV)
    for place, m, n in zip((0, 2, 4), sizes, sizes[1:]):
        found[f"decoder.{place}.weight"] = rng.normal(size=(n, m))
        found[f"decoder.{place}.bias"] = rng.normal(size=n)
    return found


def gram_ai_arrays(rng, learned_logits=False, decoder_in=J * D):
    found = torch_arrays(rng, 1, decoder_in)
    for k in range(K):
        found[f"primary_capsules.capsules.{k}.weight"] = rng.normal(size=(TYPES, CONV, 9, 9)) / 9
        found[f"primary_capsules.capsules.{k}.bias"] = rng.normal(size=TYPES)
    found["digit_capsules.route_weights"] = rng.normal(size=(J, I, K, D))
    if learned_logits:
        found["digit_capsules.route_logits"] = rng.normal(size=(J, 1, I, 1, 1))
    return found


def gram_ai(a, images, axis=2):
    """Returns classes, poses, reconstructions of [B, H, W, 1]; ``axis`` of their softmax."""

    def squash(x):
        square = (x**2).sum(-1, keepdims=True)
        return square / (1 + square) * x / np.sqrt(square)

    x = np.maximum(conv_nchw(images.transpose(0, 3, 1, 2), a["conv1.weight"], a["conv1.bias"]), 0)
    each = []
    for k in range(K):
        name = f"primary_capsules.capsules.{k}"
        y = conv_nchw(x, a[f"{name}.weight"], a[f"{name}.bias"], 2)
        each.append(y.reshape(len(images), -1, 1))
    u = squash(np.concatenate(each, -1))
    priors = u[None, :, :, None, :] @ a["digit_capsules.route_weights"][:, None]
    logits = np.zeros_like(priors)
    if "digit_capsules.route_logits" in a:
        logits = a["digit_capsules.route_logits"] + logits
    for n in range(3):
        outputs = squash((softmax(logits, axis) * priors).sum(2, keepdims=True))
        if n < 2:
            logits = logits + (priors * outputs).sum(-1, keepdims=True)
    poses = outputs[:, :, 0, 0].transpose(1, 0, 2)
    classes = softmax(norm(poses)[..., 0], -1)
    best = classes.argmax(1)
    rows = np.arange(len(images))
    if a["decoder.0.weight"].shape[1] == D:
        chosen = poses[rows, best]
    else:
        chosen = (poses * np.eye(J)[best][:, :, None]).reshape(len(images), -1)
    return classes, poses, torch_decoder(a, chosen).reshape(images.shape)


def routed(W, u, squash):
    """XifengGuo's layer: W [J, I, D, K], the softmax over J."""
    votes = np.einsum("jidk,bik->bjid", W, u)
    b = np.zeros(votes.shape[:3])
    for n in range(3):
        v = squash(np.einsum("bji,bjid->bjd", softmax(b, 1), votes))
        if n < 2:
            b = b + np.einsum("bjd,bjid->bji", v, votes)
    return v


def xifeng_torch_arrays(rng, channels=2):
    found = torch_arrays(rng, channels)
    found["primarycaps.conv2d.weight"] = rng.normal(size=(TYPES * K, CONV, 9, 9)) / 9
    found["primarycaps.conv2d.bias"] = rng.normal(size=TYPES * K)
    found["digitcaps.weight"] = rng.normal(size=(J, I, D, K))
    return found


def xifeng_torch(a, images):
    """Returns lengths, poses, reconstructions of [B, H, W, C]."""

    def squash(x):
        n = norm(x)
        return n**2 / (1 + n**2) / (n + 1e-8) * x

    nchw = images.transpose(0, 3, 1, 2)
    x = np.maximum(conv_nchw(nchw, a["conv1.weight"], a["conv1.bias"]), 0)
    y = conv_nchw(x, a["primarycaps.conv2d.weight"], a["primarycaps.conv2d.bias"], 2)
    poses = routed(a["digitcaps.weight"], squash(y.reshape(len(images), -1, K)), squash)
    lengths = norm(poses)[..., 0]
    chosen = (poses * np.eye(J)[lengths.argmax(1)][:, :, None]).reshape(len(images), -1)
    drawn = torch_decoder(a, chosen).reshape(nchw.shape)
    return lengths, poses, drawn.transpose(0, 2, 3, 1)


def xifeng_keras_arrays(rng, channels=2):
    sizes = (J * D, *HIDDEN, channels * SIDE * SIDE)
    found = {
        "conv1/conv1/kernel:0": rng.normal(size=(9, 9, channels, CONV)) / 9,
        "conv1/conv1/bias:0": rng.normal(size=CONV),
        "primarycap_conv2d/primarycap_conv2d/kernel:0": rng.normal(size=(9, 9, CONV, TYPES * K))
        / 9,
        "primarycap_conv2d/primarycap_conv2d/bias:0": rng.normal(size=TYPES * K),
        "digitcaps/digitcaps/W:0": rng.normal(size=(J, I, D, K)),
    }
    for n, (m, o) in enumerate(zip(sizes, sizes[1:]), 1):
        found[f"decoder/dense_{n}/kernel:0"] = rng.normal(size=(m, o))
        found[f"decoder/dense_{n}/bias:0"] = rng.normal(size=o)
    return found


def dense(a, names, x):
    for n, name in enumerate(names):
        x = x @ a[f"{name}/kernel:0"] + a[f"{name}/bias:0"]
        x = 1 / (1 + np.exp(-x)) if n == 2 else np.maximum(x, 0)
    return x


def xifeng_keras(a, images):
    def squash(x):
        square = (x**2).sum(-1, keepdims=True)
        return square / (1 + square) / np.sqrt(square + 1e-7) * x

    name = "primarycap_conv2d/primarycap_conv2d"
    x = conv_nhwc(images, a["conv1/conv1/kernel:0"], a["conv1/conv1/bias:0"])
    y = conv_nhwc(np.maximum(x, 0), a[f"{name}/kernel:0"], a[f"{name}/bias:0"], 2)
    u = squash(y.reshape(len(images), -1, K))
    poses = routed(a["digitcaps/digitcaps/W:0"], u, squash)
    lengths = np.sqrt((poses**2).sum(-1) + 1e-7)
    chosen = (poses * np.eye(J)[lengths.argmax(1)][:, :, None]).reshape(len(images), -1)
    drawn = dense(a, [f"decoder/dense_{n}" for n in (1, 2, 3)], chosen)
    return lengths, poses, drawn.reshape(images.shape)


# Layers of Efficient-CapsNet: side of the kernel, channels, stride.
EFFICIENT = {
    "mnist": ((28, 28, 1), 10, ((5, 32, 1), (3, 64, 1), (3, 64, 1), (3, 128, 2)), 9),
    "smallnorb": ((48, 48, 2), 5, ((7, 32, 2), (3, 64, 1), (3, 64, 1), (3, 128, 2)), 8),
}


def efficient_arrays(rng, which, first=0):
    """As Keras numbers the layers of a process that has made ``first`` convolutions before."""
    shape, classes, convs, last = EFFICIENT[which]
    found, channels = {}, shape[2]

    def layer(kind, n):
        return f"Net/{kind}_{n}" if n else f"Net/{kind}"

    for n, (k, width, _) in enumerate((*convs, (last, 128, 1))):
        name = layer("conv2d", first + n)
        fan_in = 1 if n == 4 else channels
        found[f"{name}/kernel:0"] = rng.normal(size=(k, k, fan_in, width)) / (k * fan_in**0.5)
        found[f"{name}/bias:0"] = 0.1 * rng.normal(size=width)
        if n < 4:
            kind = "batch" if which == "mnist" else "instance"
            name = layer(f"{kind}_normalization", n)
            found[f"{name}/gamma:0"] = 0.5 * rng.normal(size=width)
            found[f"{name}/beta:0"] = 0.5 * rng.normal(size=width)
            if which == "mnist":
                found[f"{name}/moving_mean:0"] = rng.normal(size=width)
                found[f"{name}/moving_variance:0"] = rng.uniform(0.5, 2, size=width)
        channels = width
    found["Net/fc_caps/W:0"] = 0.3 * rng.normal(size=(classes, 16, 8, 16))
    found["Net/fc_caps/b:0"] = 0.1 * rng.normal(size=(classes, 16, 1))
    if which == "mnist":
        for n, (m, o) in enumerate(((160, 512), (512, 1024), (1024, 784))):
            name = layer("dense", n)
            found[f"{name}/kernel:0"] = rng.normal(size=(m, o)) / m**0.5
            found[f"{name}/bias:0"] = 0.1 * rng.normal(size=o)
    return found


def efficient(a, images, which, first=0):
    """Returns lengths, poses and, for MNIST, reconstructions."""

    def squash(s):
        n = norm(s)
        return (1 - 1 / np.exp(n)) * s / n

    def layer(kind, n):
        return f"Net/{kind}_{n}" if n else f"Net/{kind}"

    _, classes, convs, _ = EFFICIENT[which]
    x = images
    for n, (_, _, stride) in enumerate(convs):
        name = layer("conv2d", first + n)
        x = conv_nhwc(x, a[f"{name}/kernel:0"], a[f"{name}/bias:0"], stride)
        if which == "mnist":
            x, name = np.maximum(x, 0), layer("batch_normalization", n)
            mean, var = a[f"{name}/moving_mean:0"], a[f"{name}/moving_variance:0"]
        else:
            x, name = np.where(x > 0, x, 0.3 * x), layer("instance_normalization", n)
            mean, var = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
        x = a[f"{name}/gamma:0"] * (x - mean) / np.sqrt(var + 1e-3) + a[f"{name}/beta:0"]
    name = layer("conv2d", first + 4)
    x = np.einsum("bhwc,hwc->bc", x, a[f"{name}/kernel:0"][:, :, 0]) + a[f"{name}/bias:0"]
    u = squash(x.reshape(len(images), 16, 8))
    votes = np.einsum("bji,kjiz->bkjz", u, a["Net/fc_caps/W:0"])
    c = np.einsum("bkiz,bkjz->bkij", votes, votes).sum(-1, keepdims=True) / 4
    c = softmax(c, 1) + a["Net/fc_caps/b:0"]
    poses = squash((votes * c).sum(-2))
    lengths = np.sqrt((poses**2).sum(-1) + 1e-7)
    if which != "mnist":
        return lengths, poses, None
    chosen = (poses * np.eye(classes)[lengths.argmax(1)][:, :, None]).reshape(len(images), -1)
    drawn = dense(a, [layer("dense", n) for n in range(3)], chosen)
    return lengths, poses, drawn.reshape(images.shape)
