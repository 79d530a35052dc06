"""Routing algorithms from their papers in NumPy loops, in float64, for one example.

As in :mod:`reference`: no code shared with capsjax, and every function also takes complex
numbers and continues the real one analytically (comparisons go by the real parts), so that
:func:`reference.derivative` differentiates it by a complex step.

Letters: votes û_ij ``[I, J, D]`` of input capsule i for output capsule j; poses u_i ``[I, K]`` and
activations a_i ``[I]`` of the input capsules; coupling c_ij or r_ij ``[I, J]``.
"""

from typing import NamedTuple

import numpy as np
from reference import (
    agreement,
    norm,
    over_parents,
    over_parents_or_nobody,
    positive,
    prediction_vectors,
    squash,
    weighted_sum,
)
from scipy.special import digamma


class Routed(NamedTuple):
    pose: np.ndarray  # [J, D]
    activation: np.ndarray  # [J]
    coupling: np.ndarray  # [I, J] that of the last pass


def log_sigmoid(x):
    """-log(1 + exp(-x)), where exp never overflows."""
    return -np.log1p(np.exp(-x)) if np.real(x) >= 0 else x - np.log1p(np.exp(x))


def sigmoid(x):
    return np.exp(log_sigmoid(x))


def normalized(x):
    """Layer normalisation without scale and offset."""
    apart = x - sum(x) / len(x)
    return apart / np.sqrt(sum(apart * apart) / len(x) + 1e-5)


# Squashes, of one vector


def direction(s):
    length = norm(s)
    return 0 * s if length == 0 else s / length


def squash_exponential(s):
    """Efficient-CapsNet (Mazzia et al. 2021): length 1 - exp(-n)."""
    return -np.expm1(-norm(s)) * direction(s)


def squash_half(s):
    """Length n^2 / (0.5 + n^2), in the published code of NLP-Capsule (Zhao et al. 2019)."""
    n = norm(s)
    return n * n / (0.5 + n * n) * direction(s)


SQUASHES = {
    "paper": squash,
    "exponential": squash_exponential,
    "half": squash_half,
    "none": lambda s: s,
}


# Normalizers of logits [I, J] over the output capsules


def each_sigmoid(b):
    return np.array([[sigmoid(logit) for logit in row] for row in b])


def maxmin(b):
    """Zhao et al. (2019), Max-Min normalisation from 0 to 1; all equal: 1."""
    c = np.ones_like(b)
    for i in range(len(b)):
        low, high = min(b[i], key=np.real), max(b[i], key=np.real)
        if np.real(high) > np.real(low):
            c[i] = (b[i] - low) / (high - low)
    return c


def descending(z):
    return np.array(sorted(z, key=np.real, reverse=True))


def sparsemax(b):
    """Martins & Astudillo (2016), Algorithm 1: the nearest point of the simplex."""
    p = np.zeros_like(b)
    for i in range(len(b)):
        z = descending(b[i])
        for k in range(1, len(z) + 1):
            if np.real(1 + k * z[k - 1]) > np.real(sum(z[:k])):
                tau = (sum(z[:k]) - 1) / k
        p[i] = positive(b[i] - tau)
    return p


def entmax(b):
    """Peters, Niculae & Martins (2019), Algorithm 2: alpha = 1.5."""
    p = np.zeros_like(b)
    for i in range(len(b)):
        z = descending(b[i] / 2)
        for k in range(1, len(z) + 1):
            mean = sum(z[:k]) / k
            tau = mean - np.sqrt((1 - sum((z[:k] - mean) ** 2)) / k)
            if k == len(z) or np.real(z[k]) <= np.real(tau):
                break
        p[i] = positive(b[i] / 2 - tau) ** 2
    return p


NORMALIZERS = {
    "softmax": over_parents,
    "leaky": over_parents_or_nobody,
    "sigmoid": each_sigmoid,
    "maxmin": maxmin,
    "sparsemax": sparsemax,
    "entmax": entmax,
}


# Routing by agreement, or without


def outputs(s, squash="paper", bias=None):
    return np.array([SQUASHES[squash](x) for x in (s if bias is None else s + bias)])


def by_length(v, c):
    return Routed(v, np.array([norm(x) for x in v]), c)


def dynamic(
    votes, iterations, *, normalizer="softmax", prior=None, bias=None, squash="paper", scale=1
):
    """Sabour, Frosst & Hinton (2017), Procedure 1, with the logits ``prior`` at first."""
    b = np.zeros(votes.shape[:2], votes.dtype)
    if prior is not None:
        b = b + prior
    for _ in range(iterations):
        c = NORMALIZERS[normalizer](b)
        v = outputs(scale * weighted_sum(c, votes), squash, bias)
        b = b + agreement(votes, v)
    return by_length(v, c)


def fixed(votes, logits, *, bias=None, squash="paper"):
    """No routing: the coupling is a parameter."""
    c = over_parents(logits)
    return by_length(outputs(weighted_sum(c, votes), squash, bias), c)


def uniform(votes, *, bias=None, squash="paper"):
    """No routing: every parent has the same share of every child."""
    I, J, _ = votes.shape
    c = np.full((I, J), 1 / J)
    return by_length(outputs(weighted_sum(c, votes), squash, bias), c)


def self_routing(votes, u, a, weights, offset):
    """Hahn, Pyeon & Kim (2019): each child decides alone."""
    I, J, D = votes.shape
    logits = [[sum(weights[i, j] * u[i]) + offset[i, j] for j in range(J)] for i in range(I)]
    c = over_parents(np.array(logits))
    activation = np.zeros(J, np.result_type(c, a))
    pose = np.zeros((J, D), np.result_type(c, a, votes))
    for j in range(J):
        activation[j] = sum(c[:, j] * a) / sum(a)
        for d in range(D):
            pose[j, d] = sum(c[:, j] * a * votes[:, j, d]) / sum(c[:, j] * a)
    return Routed(pose, activation, c)


def inverted(votes, iterations, *, scale, offset, readout, readout_offset):
    """Tsai et al. (2020), inverted dot-product attention; the activation is a logit."""
    I, J, D = votes.shape
    c = np.full((I, J), 1 / J)
    for t in range(1, iterations + 1):
        s = weighted_sum(c, votes)
        p = np.array([normalized(s[j]) * scale + offset for j in range(J)])
        if t < iterations:
            c = over_parents(agreement(votes, p) / np.sqrt(D))
    return Routed(p, np.array([sum(readout * p[j]) + readout_offset for j in range(J)]), c)


def self_attention(votes, beta):
    """Efficient-CapsNet (Mazzia et al. 2021); the coupling is without beta."""
    I, J, D = votes.shape
    everyone = weighted_sum(np.ones((I, J)), votes)
    c = over_parents(agreement(votes, everyone) / np.sqrt(D))
    return by_length(outputs(weighted_sum(c + beta, votes), "exponential"), c)


def kmeans(votes, iterations, squash="half"):
    """Agreement with the direction of the sum of the pass before, not accumulated."""
    I, J, _ = votes.shape
    c = np.full((I, J), 1 / J)
    for t in range(1, iterations + 1):
        s = weighted_sum(c, votes)
        if t < iterations:
            c = over_parents(agreement(votes, np.array([direction(s[j]) for j in range(J)])))
    return by_length(outputs(s, squash), c)


def kde(votes, iterations, squash="half"):
    """Kernel density estimation (Zhang et al. 2018), as in NLP-Capsule (Zhao et al. 2019)."""
    I, J, _ = votes.shape
    b = np.zeros((I, J), votes.dtype)
    for _ in range(iterations):
        c = over_parents(b)
        w = np.array([[c[i, j] / sum(c[:, j]) for j in range(J)] for i in range(I)])
        v = outputs(weighted_sum(w, votes), squash)
        for i, j in np.ndindex(I, J):
            apart = SQUASHES[squash](votes[i, j]) - v[j]
            b[i, j] += 1 - sum(apart * apart)
    return by_length(v, c)


def heinsen(votes, u, iterations, p):
    """Heinsen (2022), "bang per bit"; the activation is a logit."""
    I, J, _ = votes.shape
    scores = [sum(u[i] * p["score_weights"][i]) + p["score_offset"][i] for i in range(I)]
    f = np.array([sigmoid(score) for score in scores])
    R = np.full((I, J), 1 / J)
    kind = np.result_type(votes, u, *p.values())
    S, phi = np.zeros((I, J), kind), np.zeros((I, J), kind)
    for t in range(1, iterations + 1):
        for i, j in np.ndindex(I, J):
            phi[i, j] = p["use"][i, j] * f[i] * R[i, j] - p["ignore"][i, j] * f[i] * (1 - R[i, j])
        x = weighted_sum(
            phi, np.array([[v + p["vote_offset"][j] for j, v in enumerate(own)] for own in votes])
        )
        if t < iterations:
            for j in range(J):
                guess = (normalized(x[j]) @ p["predict"]) * p["predict_scale"][j]
                guess = guess + p["predict_offset"][j]
                for i in range(I):
                    match = sum(u[i] * guess) * p["similarity_scale"][i, j]
                    S[i, j] = log_sigmoid(match + p["similarity_offset"][i, j])
            R = over_parents(S)
    pose = np.array([normalized(x[j]) for j in range(J)])
    readout = [sum(p["readout"] * pose[j]) + p["readout_offset"] for j in range(J)]
    return Routed(pose, np.array(readout), R)


# Routing by mixtures of Gaussians


def em_parents(votes, a, r, t, beta_u, beta_a, inverse_temperature=0.01, cost_scale=1):
    """The M-step of pass t = 1, 2, ...: mean and variance ``[J, D]``, and the logits of a_j.

    The floor of the variance and the scale of the cost are those of Gritzman (2019).
    """
    _, J, D = votes.shape
    kind = np.result_type(votes, a, r, beta_u, beta_a)
    mu, var, logits = np.zeros((J, D), kind), np.zeros((J, D), kind), np.zeros(J, kind)
    for j in range(J):
        R = r[:, j] * a
        cost = 0.0
        for d in range(D):
            mu[j, d] = sum(R * votes[:, j, d]) / sum(R)
            var[j, d] = sum(R * (votes[:, j, d] - mu[j, d]) ** 2) / sum(R) + 1e-9
            cost = cost + (beta_u[j] + 0.5 * np.log(var[j, d])) * sum(R)
        logits[j] = inverse_temperature * (1 - 0.95**t) * (beta_a[j] - cost_scale * cost)
    return mu, var, logits


def em_logits(votes, mu, var, logits):
    """The E-step before its softmax: log(a_j p_ij)."""
    out = np.zeros(votes.shape[:2], np.result_type(votes, mu, var, logits))
    for i, j in np.ndindex(*out.shape):
        out[i, j] = log_sigmoid(logits[j])
        for d in range(votes.shape[2]):
            out[i, j] -= (votes[i, j, d] - mu[j, d]) ** 2 / (2 * var[j, d])
            out[i, j] -= 0.5 * np.log(2 * np.pi * var[j, d])
    return out


def em(votes, a, iterations, beta_u, beta_a, inverse_temperature=0.01, cost_scale=1):
    """Hinton, Sabour & Frosst (2018), Procedure 1."""
    I, J, _ = votes.shape
    r = np.full((I, J), 1 / J)
    for t in range(1, iterations + 1):
        settings = inverse_temperature, cost_scale
        mu, var, logits = em_parents(votes, a, r, t, beta_u, beta_a, *settings)
        if t < iterations:
            r = over_parents(em_logits(votes, mu, var, logits))
    return Routed(mu, np.array([sigmoid(logit) for logit in logits]), r)


def em_field(votes, a, index, iterations, beta_u, beta_a, cost_scale=1):
    """:func:`em` of ``[P, n, J, D]``, where a child also chooses between the positions."""
    P, n, J, _ = votes.shape
    r = field_softmax(np.zeros((P, n, J)), index)
    for t in range(1, iterations + 1):
        settings = beta_u, beta_a, 0.01, cost_scale
        m = [em_parents(votes[p], a[p], r[p], t, *settings) for p in range(P)]
        if t < iterations:
            r = field_softmax(np.array([em_logits(votes[p], *m[p]) for p in range(P)]), index)
    activation = np.array([[sigmoid(logit) for logit in logits] for _, _, logits in m])
    return Routed(np.array([mu for mu, _, _ in m]), activation, r)


class Posterior(NamedTuple):
    m: np.ndarray  # [J, D]
    inverse_psi: np.ndarray  # [J, D]
    kappa: np.ndarray  # [J]
    nu: np.ndarray  # [J]
    ln_pi: np.ndarray  # [J]
    ln_det: np.ndarray  # [J]


def vb_parents(votes, a, r):
    """The posterior of Ribeiro, Leontidis & Kollias (2020), with diagonal precisions."""
    _, J, D = votes.shape
    alpha0, kappa0, Psi0, nu0 = 1.0, 1.0, 1.0, D + 1.0  # and m0 = 0
    kind = np.result_type(votes, a, r)
    m, inverse_psi = np.zeros((J, D), kind), np.zeros((J, D), kind)
    total = np.array([sum(r[:, j] * a) for j in range(J)])  # R_j
    alpha, kappa, nu = alpha0 + total, kappa0 + total, nu0 + total
    ln_pi = digamma(alpha) - digamma(sum(alpha))
    ln_det = np.full(J, D * np.log(2), kind)
    for j, d in np.ndindex(J, D):
        R = r[:, j] * a
        mu = sum(R * votes[:, j, d]) / total[j]
        m[j, d] = total[j] * mu / kappa[j]
        inverse_psi[j, d] = Psi0 + sum(R * (votes[:, j, d] - mu) ** 2)
        inverse_psi[j, d] += kappa0 * total[j] / kappa[j] * mu**2
        ln_det[j] += digamma((nu[j] - d) / 2) - np.log(inverse_psi[j, d])
    return Posterior(m, inverse_psi, kappa, nu, ln_pi, ln_det)


def vb_logits(votes, q):
    """What the softmax of the couplings is taken of."""
    I, J, D = votes.shape
    logits = np.zeros((I, J), np.result_type(votes, *q))
    for i, j in np.ndindex(I, J):
        apart = D / q.kappa[j] + q.nu[j] * sum((votes[i, j] - q.m[j]) ** 2 / q.inverse_psi[j])
        logits[i, j] = q.ln_pi[j] + 0.5 * q.ln_det[j] - 0.5 * apart
    return logits


def vb_activation(q, beta_u, beta_a):
    """beta_a - (energy + beta_u), the energies normalized over the output capsules."""
    J, D = q.m.shape
    H = 0.5 * D * np.log(2 * np.pi * np.e) - 0.5 * q.ln_det
    energy = np.exp(q.ln_pi) * H
    apart = energy - sum(energy) / J
    # Three standard deviations of (1 / J) sum_d log(variance_d) / 2, from kappa votes.
    least = 3 * np.sqrt(D * 0.25 * 2 / (sum(q.kappa) / J)) / J
    x = beta_a - (apart / np.sqrt(sum(apart**2) / J + least**2) + beta_u)
    return np.array([sigmoid(logit) for logit in x])


def vb(votes, a, iterations, beta_u, beta_a):
    """Ribeiro, Leontidis & Kollias (2020), variational Bayes."""
    I, J, _ = votes.shape
    r = np.full((I, J), 1 / J)
    for t in range(1, iterations + 1):
        q = vb_parents(votes, a, r)
        if t < iterations:
            r = over_parents(vb_logits(votes, q))
    return Routed(q.m, vb_activation(q, beta_u, beta_a), r)


def vb_field(votes, a, index, iterations, beta_u, beta_a):
    """:func:`vb` of ``[P, n, J, D]``: at first 1/J at each position, then one share of a child."""
    P, n, J, _ = votes.shape
    r = np.full((P, n, J), 1 / J)
    for t in range(1, iterations + 1):
        q = [vb_parents(votes[p], a[p], r[p]) for p in range(P)]
        if t < iterations:
            r = field_softmax(np.array([vb_logits(votes[p], q[p]) for p in range(P)]), index)
    activation = np.array([vb_activation(one, beta_u, beta_a) for one in q])
    return Routed(np.array([one.m for one in q]), activation, r)


# Votes


def shared_votes(u, W):
    """W_j u_i: one matrix for all children."""
    return prediction_vectors(u, np.array([W for _ in u]))


def conv_votes(u, W):
    """W_tj u_i with the type t of child i, the last index of its number."""
    return prediction_vectors(u, np.array([W[i % len(W)] for i in range(len(u))]))


def matrix_votes(u, W):
    """M_i W_ij (Hinton, Sabour & Frosst 2018), matrices row by row."""
    I, J, P, _ = W.shape
    votes = np.zeros((I, J, P * P), np.result_type(u, W))
    for i, j, row, column, k in np.ndindex(I, J, P, P, P):
        votes[i, j, row * P + column] += u[i, row * P + k] * W[i, j, k, column]
    return votes


def elementwise_votes(u, W):
    return np.array([[W[i, j] * u[i] for j in range(W.shape[1])] for i in range(len(u))])


# Capsules on a grid


def patches(grid, kernel, stride):
    """Children ``[P, n, ...]`` of every position in ``[H, W, T, ...]``, and their numbers."""
    H, W, T = grid.shape[:3]
    children, numbers = [], []
    for top in range(0, H - kernel + 1, stride):
        for left in range(0, W - kernel + 1, stride):
            seen = [(top + h, left + w, t) for h, w, t in np.ndindex(kernel, kernel, T)]
            children.append([grid[h, w, t] for h, w, t in seen])
            numbers.append([(h * W + w) * T + t for h, w, t in seen])
    return np.array(children), np.array(numbers)


def field_softmax(logits, index):
    """Softmax of ``[P, n, J]`` over all parents that see a child, whatever their position."""
    r = np.zeros_like(logits)
    for child in set(index.ravel()):
        seen = [entry for entry in np.ndindex(*logits.shape) if index[entry[:2]] == child]
        largest = max(np.real(logits[entry]) for entry in seen)
        total = sum(np.exp(logits[entry] - largest) for entry in seen)
        for entry in seen:
            r[entry] = np.exp(logits[entry] - largest) / total
    return r


# Losses


def spread_loss(scores, label, margin):
    """Hinton, Sabour & Frosst (2018), equation 3."""
    total = 0.0
    for j in range(len(scores)):
        if j != label:
            total = total + positive(margin - (scores[label] - scores[j])) ** 2
    return total


def cross_entropy_of_probabilities(a, label):
    """Of the activations, divided by their sum."""
    return -np.log(a[label] / sum(a))
