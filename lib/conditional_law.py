"""The law of one pre-activation given the layer before it: distances to the Gaussian limit without a sampling floor.

Given the activations ``phi`` of the layer before, ``z = sqrt(q) t``: the variance ``q = sigma_w^2 |phi|^2 / n`` differs
from network to network, and the law of ``t``, of variance 1, is known for each ensemble. So the law of ``z`` is a
mixture over networks of parts that are exact, and 1,000 networks show what 1,000 samples of ``z`` bury in noise. What
is left of the noise is mostly linear in ``q - K``, and there a martingale of mean 0 takes it away (:class:`Mixture`).

Networks without bias, all hidden widths equal.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from scipy import special
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from lib.ensembles import BlockSparse, Ensemble, Gaussian, GaussianProduct, LowRank, Orthogonal, Spectrum, rank_of
from lib.gaussian_moments import Activation
from lib.nngp import nngp
from lib.wide_networks import each_layer, preactivations
from lib.width_corrections import Correction

SCALE_NODES = 16  # of a chi^2 or beta variable near its mean
SPHERE_NODES = 160  # a tanh at variance 4 takes as many for 1e-8
DEGREE = 40  # of the interpolant in sqrt(q)


@dataclass(frozen=True)
class UnitLaw:
    """``t = sqrt(w d) u_1``: ``u`` uniform on the unit sphere of ``R^d``, or N(0, I/d) for infinite ``d``; ``E w = 1``.

    Args:
        dimension: ``d``.
        scales, weights: a Gauss rule for ``w``, shapes (J,).
    """

    dimension: float
    scales: np.ndarray
    weights: np.ndarray

    @property
    def fourth_moment(self) -> float:
        """``E t^4 = 3 E w^2 d / (d + 2)``."""
        d = self.dimension
        return 3 * float(self.weights @ self.scales**2) * (1.0 if math.isinf(d) else d / (d + 2))

    def cdf(self, x: np.ndarray) -> np.ndarray:
        """``P(t <= x)``, any shape."""
        x = np.asarray(x, dtype=float)[..., None] / np.sqrt(self.scales)
        if math.isinf(self.dimension):
            return special.ndtr(x) @ self.weights
        inside = special.betainc(0.5, (self.dimension - 1) / 2, np.minimum(x**2 / self.dimension, 1))
        return (1 + np.sign(x) * inside) / 2 @ self.weights

    def tail(self, c: np.ndarray) -> np.ndarray:
        """``E max(|t| - c, 0)`` for ``c >= 0``, any shape; at 0 it is ``E |t|``."""
        root = np.sqrt(self.scales)
        c = np.minimum(np.asarray(c, dtype=float), 1e9)[..., None] / root  # so that infinity gives 0
        d = self.dimension
        if math.isinf(d):
            part = 2 * (np.exp(-(c**2) / 2) / math.sqrt(2 * math.pi) - c * special.ndtr(-c))
        else:
            rest = np.maximum(1 - c**2 / d, 0)
            density = 2 * math.sqrt(d) * math.exp(-special.betaln(0.5, (d - 1) / 2)) / (d - 1)
            part = density * rest ** ((d - 1) / 2) - c * special.betainc((d - 1) / 2, 0.5, rest)
        return part @ (self.weights * root)

    def mean_square(self, phi: Activation, s: np.ndarray) -> np.ndarray:
        """``E phi(s t)^2``, shape of ``s``; to 1e-8 for a tanh at variance 4 and 1e-5 for kinks off 0."""
        s = np.asarray(s, dtype=float)[..., None] * np.sqrt(self.scales)
        if math.isinf(self.dimension):
            return phi.second_moment(torch.from_numpy(s**2)).numpy() @ self.weights
        u, v = symmetric_beta_rule((self.dimension - 1) / 2, SPHERE_NODES)
        values = phi.phi(torch.from_numpy(s[..., None] * (math.sqrt(self.dimension) * u))).square()
        return (values.numpy() @ v) @ self.weights


def unit_law(ensemble: Ensemble, m: int, n: int) -> UnitLaw:
    """Law of ``t = (W phi)_1 / sqrt(q)`` for ``W`` of shape (m, n) and ``q`` of :func:`variances`.

    Orthogonal weights give a coordinate on the sphere of ``R^max(m, n)``, low-rank ones that on the sphere of ``R^m``
    times ``chi_r / sqrt(r)``, products a Gaussian times ``chi_r / sqrt(r)``.

    Raises:
        ValueError: an ensemble for which the law is not known; of the spectra, two values in equal shares are.
    """
    one = np.ones(1)
    match ensemble:
        case Gaussian() | BlockSparse():
            return UnitLaw(math.inf, one, one)
        case Orthogonal():
            return UnitLaw(max(m, n), one, one)
        case LowRank():
            return UnitLaw(m, *chi_square_rule(rank_of(ensemble.rank, m), SCALE_NODES))
        case GaussianProduct():
            return UnitLaw(math.inf, *chi_square_rule(rank_of(ensemble.rank, m), SCALE_NODES))
        case Spectrum() if m == n:
            squares, counts = np.unique(ensemble.singular_values(m, n).square().numpy().round(12), return_counts=True)
            if len(squares) == 1:
                return UnitLaw(m, one, one)
            if len(squares) == 2 and counts[0] == counts[1]:  # v^T D^2 v = 1 + delta (2B - 1), B ~ Beta(n/4, n/4)
                x, v = symmetric_beta_rule(n / 4, SCALE_NODES)
                return UnitLaw(m, 1 + (squares[1] - squares[0]) / 2 * x, v)
    raise ValueError(
        f"ensemble: the law of one output is not known for {ensemble.name} of shape ({m}, {n}); known are the families "
        "of the book and square matrices with two singular values in equal shares"
    )


def variances(ensemble: Ensemble, phi: Tensor) -> Tensor:
    """Variance of an output given the vector ``phi`` and, for block sparse weights, which block it is in.

    ``|phi|^2 / n``, or the mean of ``phi_j^2`` over the columns that a block sees; (..., n) -> (..., 1 or blocks).
    """
    squares = phi.double().square()
    if not isinstance(ensemble, BlockSparse):
        return squares.mean(-1, keepdim=True)
    blocks = squares.unflatten(-1, (ensemble.blocks, -1)).mean(-1)
    return sum(blocks.roll(-shift, -1) for shift in range(ensemble.degree)) / ensemble.degree


@dataclass(frozen=True)
class Mixture:
    """The law of ``z^(l)`` over networks, each with its own variances.

    Any mean ``E h(q)`` is estimated by that of ``h(q) - h'(K) D``, one value a network, where ``D`` has mean 0 exactly
    and is ``q - K`` to first order. That leaves terms of second order: the error is a fixed share, at every width, of
    the corrections of order ``1/n``.

    Args:
        law: of ``t`` in ``z = sqrt(q) t``.
        q: variances, shape (networks, blocks).
        D: ``D' = (q' - E[q' | layer before]) + chi D`` along the layers, shape (networks,).
        K: variance in the limit.
    """

    law: UnitLaw
    q: Tensor
    D: Tensor
    K: float

    def values(self, h: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        """``h(s)``, ``s = sqrt(q)``, averaged over blocks and less ``h'(K) D``; shape (networks, *value).

        Args:
            h: smooth, shape (S,) -> (S, *value). It is called at Chebyshev points and around ``sqrt(K)`` only.
        """
        values = torch.from_numpy(_interpolated(h, self.q.numpy().ravel())).unflatten(0, self.q.shape).mean(1)
        step = 1e-4 * self.K
        low, high = (torch.from_numpy(h(np.sqrt([self.K + sign * step]))) for sign in (-1, 1))
        return values - (high - low) / (2 * step) * self.D.reshape(-1, *[1] * (values.ndim - 1))

    def excess_kurtosis(self) -> Tensor:
        """``E z^4 / (E z^2)^2 - 3`` as a mean over networks, shape (networks,): the ratio linearised at its value."""
        mean, square = self.values(lambda s: np.stack([s**2, s**4], -1)).unbind(-1)
        relative = mean / mean.mean() - 1
        ratio = square.mean() / mean.mean() ** 2
        return self.law.fourth_moment * (square / mean.mean() ** 2 - 2 * ratio * relative) - 3

    def wasserstein(self, correction: Correction) -> Tensor:
        """``E f(z) - E f(Z)``, ``Z ~ N(0, K)``, as a mean over networks; ``f`` is the best test function in theory.

        By duality ``W_1`` is the largest such difference over all ``f`` with slopes within +-1. The best slope is the
        sign of ``F - F_n``, which ``correction`` predicts up to order ``1/n``: ``f = +-(|x| - 2 max(|x| - c, 0))``. So
        this is a lower bound on ``W_1`` that misses it by a share of order ``1/n^2``, and it has no bias.
        """
        sign, c = correction.sign_changes
        normal = UnitLaw(math.inf, np.ones(1), np.ones(1))
        root = math.sqrt(self.K)

        def f(law, s):
            return sign * s * (law.tail(np.zeros_like(s)) - 2 * law.tail(c * root / s))

        return self.values(lambda s: f(self.law, s)) - float(f(normal, np.array(root)))

    def shift(self, x: Tensor) -> Tensor:
        """``F(sqrt(K) x) - Phi(x)`` as a mean over networks; (X,) -> (networks, X)."""
        x = x.numpy()
        points = math.sqrt(self.K) * x
        return self.values(lambda s: self.law.cdf(points / s[:, None])) - torch.from_numpy(special.ndtr(x))

    @cached_property
    def distances(self) -> tuple[float, float]:
        """``W_1`` to N(0, K) and the Kolmogorov-Smirnov distance, from the mixture: noise only adds to either."""
        x = torch.linspace(0, 8, 161, dtype=torch.float64)
        gap = self.shift(x).mean(0).abs()
        return 2 * math.sqrt(self.K) * float(torch.trapezoid(gap, x)), float(gap.max())


def last_layer(
    ensemble: Ensemble | Sequence[Ensemble],
    phi: Activation,
    n: int,
    l: int,
    generator: torch.Generator,
    *,
    sigma_w: float,
    networks: int,
    K: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Mixture:
    """The law of ``z^(l)``, ``l >= 2``, in networks without bias whose hidden widths are all ``n``.

    Args:
        ensemble: of ``W^(2), ..., W^(l)``, or one for each.
        K: variance of the first layer, ``sigma_w^2 ||x||^2 / N_0``; by default ``sigma_w^2``.
        networks: at least 2.

    Raises:
        ValueError: before anything is drawn.
    """
    K = sigma_w**2 if K is None else K
    if not (math.isfinite(K) and K > 0):
        raise ValueError(f"K: got {K}; the variance of the first layer is finite and > 0")
    if l < 2 or networks < 2:
        raise ValueError(f"l, networks: got {l}, {networks}; need l >= 2 and at least 2 networks")
    ensembles = each_layer(ensemble, l)
    laws = [unit_law(e, n, n) for e in ensembles]
    X = torch.full((1, 1), math.sqrt(K) / sigma_w, dtype=torch.float64)
    layers = preactivations(
        ensembles[:-1], X, [n] * (l - 1), phi.phi, generator, sigma_w=sigma_w, networks=networks, dtype=dtype
    )
    law, D, s2 = UnitLaw(math.inf, np.ones(1), np.ones(1)), torch.zeros(networks, dtype=torch.float64), sigma_w**2
    q = torch.full((networks, 1), K, dtype=torch.float64)
    for z, following, e in zip(layers, laws, ensembles, strict=True):
        expected = _interpolated(lambda s, law=law: law.mean_square(phi, s), q.numpy().ravel())
        expected = s2 * torch.from_numpy(expected).unflatten(0, q.shape).mean(1)
        q = s2 * variances(e, phi.phi(z[:, 0]))
        D = q.mean(1) - expected + s2 * float(phi.second_moment_slope(K)) * D
        K, law = s2 * float(phi.second_moment(K)), following
    return Mixture(law, q, D, K)


def last_layer_along(
    theta: Tensor,
    ensemble: Ensemble,
    phi: Activation,
    X: Tensor,
    n: int,
    l: int,
    generator: torch.Generator,
    *,
    sigma_w: float,
    networks: int,
    dtype: torch.dtype = torch.float64,
) -> Mixture:
    """The law of ``theta . z^(l)``, one neuron at several inputs combined: as :func:`last_layer`, with ``D = 0``.

    Args:
        theta: shape (k,).
        X: inputs, shape (k, N_0).
    """
    if theta.shape != X.shape[:1] or l < 2:
        raise ValueError(
            f"theta, l: got {tuple(theta.shape)}, {l}; need one number for each of {len(X)} inputs, l >= 2"
        )
    law = unit_law(ensemble, n, n)
    *_, K = nngp(X, l, phi, sigma_w, 0.0)
    *_, z = preactivations(
        ensemble, X, [n] * (l - 1), phi.phi, generator, sigma_w=sigma_w, networks=networks, dtype=dtype
    )
    q = sigma_w**2 * variances(ensemble, theta.to(z.dtype) @ phi.phi(z))
    return Mixture(law, q, torch.zeros(networks, dtype=torch.float64), float(theta.double() @ K @ theta.double()))


@cache
def chi_square_rule(freedom: float, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss rule for ``chi^2_r / r``, at any ``r > 0``: nodes and weights that sum to 1."""
    k, a = np.arange(nodes), freedom / 2 - 1
    x, w = _gauss(2 * k + 1 + a, np.sqrt(k[1:] * (k[1:] + a)))
    return 2 * x / freedom, w


@cache
def symmetric_beta_rule(a: float, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss rule for ``2B - 1``, ``B ~ Beta(a, a)``; a coordinate on the sphere of ``R^d`` has ``a = (d - 1) / 2``."""
    k, b = np.arange(2, nodes), a - 0.5
    rest = k * (k + 2 * b - 1) / (4 * (k + b) * (k + b - 1))
    return _gauss(np.zeros(nodes), np.sqrt(np.concatenate([[1 / (2 + 2 * b)], rest])))


def _gauss(diagonal: np.ndarray, beside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Golub and Welsch: nodes are the eigenvalues of the Jacobi matrix, weights the squared first components."""
    x, vectors = eigh_tridiagonal(diagonal.astype(float), beside)
    return x, vectors[0] ** 2


def _interpolated(h: Callable[[np.ndarray], np.ndarray], q: np.ndarray) -> np.ndarray:
    """``h(sqrt(q))`` by a polynomial through its values at Chebyshev points; shape (Q, *value)."""
    s = np.sqrt(q)
    middle, half = (s.max() + s.min()) / 2, max((s.max() - s.min()) / 2, 1e-12 * s.max())
    if s.min() == s.max():
        value = h(s[:1])
        return np.broadcast_to(value, (len(s), *value.shape[1:])).copy()
    angles = math.pi * (np.arange(DEGREE) + 0.5) / DEGREE
    at = h(middle + half * np.cos(angles))
    coefficients = np.cos(np.outer(np.arange(DEGREE), angles)) @ at.reshape(DEGREE, -1) * 2 / DEGREE
    coefficients[0] /= 2
    powers = np.polynomial.chebyshev.chebvander((s - middle) / half, DEGREE - 1)
    return (powers @ coefficients).reshape(len(s), *at.shape[1:])
