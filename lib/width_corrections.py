"""How far a network of width ``n`` is from its Gaussian limit: the term of order ``1/n``, and exact kurtosis for relu.

All widths are ``n``, the first layer is Gaussian. With ``K`` the limiting variance of a pre-activation ``z_1``, two
numbers a layer make the order ``1/n``: ``kappa_4(z_1) = 3 C / n`` and ``E z_1^2 = K + m / n``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.ensembles import BlockSparse, Ensemble, Gaussian, GaussianProduct, LowRank, Orthogonal, rank_of
from lib.gaussian_moments import Activation
from lib.weight_conditions import FourthMoments


@dataclass(frozen=True)
class Correction:
    """A layer's limit and its correction: variance ``K + m / n``, fourth cumulant ``3 C / n``."""

    K: float
    C: float
    m: float

    @property
    def kurtosis(self) -> float:
        """``3 C / K^2``: the limit of ``n`` times the excess kurtosis."""
        return 3 * self.C / self.K**2

    def shift(self, x: Tensor) -> Tensor:
        """``n (F_n - Phi)`` at ``sqrt(K) x``, by Edgeworth's series.

        ``-[a x + b (x^3 - 3x)] phi(x)`` with ``a = m / 2K``, ``b = C / 8K^2`` and the normal density ``phi``.
        """
        a, b = self.m / (2 * self.K), self.C / (8 * self.K**2)
        return -(a * x + b * (x**3 - 3 * x)) * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)

    @property
    def sign_changes(self) -> tuple[float, float]:
        """``(sign, c)``: for ``x > 0``, ``-shift`` has that sign below ``c`` and the other above it."""
        a, b = self.m / (2 * self.K), self.C / (8 * self.K**2)
        if a * b >= 3 * b**2:  # one sign: the zero 3 - a/b of a + b (x^2 - 3) is not positive, or there is none
            return math.copysign(1.0, a), math.inf
        return math.copysign(1.0, a - 3 * b), math.sqrt(3 - a / b)

    @property
    def wasserstein(self) -> float:
        """Limit of ``n W_1(z_1, N(0, K))``: ``sqrt(K)`` times the integral of ``|shift|``."""
        x = torch.linspace(-12, 12, 24001, dtype=torch.float64)
        return math.sqrt(self.K) * float(torch.trapezoid(self.shift(x).abs(), x))

    @property
    def kolmogorov(self) -> float:
        """Limit of ``n`` times the Kolmogorov-Smirnov distance: the maximum of ``|shift|``."""
        return float(self.shift(torch.linspace(0, 12, 12001, dtype=torch.float64)).abs().max())


def corrections(
    phi: Activation, weights: FourthMoments, n: int, K: float, *, sigma_w: float, sigma_b: float = 0.0
) -> Iterator[Correction]:
    """Corrections of layers 1, 2, ...: the first is Gaussian, and the recursion is, with ``q = sigma_w^2 g``,

        C'_cross = s4 v + (sigma_w^2 g')^2 C_cross + (tau_2 + 2 tau_3) q^2 + (mu_22 - 1) s4 E4,
        C'       = s4 v + (sigma_w^2 g')^2 C_cross + tau_1 q^2 + (mu_4 / 3 - 1) s4 E4,
        m'       = sigma_w^2 (g' m + g'' C / 2),

    where ``s4 = sigma_w^4``, ``E4 = E phi^4``, ``v = E4 - g^2``. The weights enter by how far their fourth moments are
    from those of independent Gaussian ones: ``tau_1 / n = same_row - 1``, ``tau_2 / n = two_rows - 1``, ``tau_3 / n =
    crossed``, ``mu_4 = entry``, ``mu_22 = column``. Holds for every symmetric law that is exchangeable over rows and
    over columns.

    Args:
        phi: the activation, for its Gaussian moments.
        weights: fourth moments of ``W`` at width ``n``; see :func:`lib.weight_conditions.exact_moments`.
        n: the width those moments belong to.
        K: variance of the first layer, ``sigma_b^2 + sigma_w^2 ||x||^2 / N_0``.
    """
    if not (math.isfinite(K) and K > 0):
        raise ValueError(f"K: got {K}; the variance of the first layer is finite and > 0")
    s2 = sigma_w**2
    tau_1, tau_2, tau_3 = n * (weights.same_row - 1), n * (weights.two_rows - 1), n * weights.crossed
    cross = C = m = 0.0
    while True:
        yield Correction(K, C, m)
        moments = phi.second_moment, phi.second_moment_slope, phi.second_moment_curvature, phi.fourth_moment
        g, slope, curvature, E4 = (float(moment(K)) for moment in moments)
        q, v = s2 * g, E4 - g**2
        shared = s2**2 * v + (s2 * slope) ** 2 * cross
        m = s2 * (slope * m + curvature * C / 2)
        C = shared + tau_1 * q**2 + (weights.entry / 3 - 1) * s2**2 * E4
        cross = shared + (tau_2 + 2 * tau_3) * q**2 + (weights.column - 1) * s2**2 * E4
        K = sigma_b**2 + q


def relu_excess_kurtosis(ensemble: Ensemble, n: int, l: int) -> float:
    """Excess kurtosis of ``z^(l)``, exact at finite ``n``, for relu, ``sigma_w^2 = 2``, no bias, all widths ``n``.

    A factor ``1 + 5/n`` a layer for the activation, ``n/(n+2)`` a layer for a uniform frame in place of Gaussian
    columns, ``1 + 2/r`` a layer for the rank. Block sparse weights mix the moments within one block and between two.
    """
    if l < 1 or n < 2:
        raise ValueError(f"n, l: got {n}, {l}; need n >= 2 and l >= 1")
    if l == 1:
        return 0.0
    relu, on_sphere = 1 + 5 / n, (n + 5) / (n + 2)
    match ensemble:
        case Gaussian():
            return 3 * (relu ** (l - 1) - 1)
        case Orthogonal():
            return 3 * (relu * on_sphere ** (l - 2) * n / (n + 2) - 1)
        case LowRank():
            rank = 1 + 2 / rank_of(ensemble.rank, n)
            return 3 * (relu * on_sphere ** (l - 2) * rank ** (l - 1) * n / (n + 2) - 1)
        case GaussianProduct():
            return 3 * ((relu * (1 + 2 / rank_of(ensemble.rank, n))) ** (l - 1) - 1)
        case BlockSparse(degree=1):
            b = n // ensemble.blocks
            w = (b - 1) / (n - 1)
            within = between = 1.0
            for _ in range(l - 1):
                mix = w * within + (1 - w) * between
                within, between = (6 * within + (b - 1) * mix) / b, mix
            return 3 * (within - 1)
    raise ValueError(f"ensemble: no closed form for {ensemble.name} with relu")
