"""Limit laws of random spectra: quarter circle, disk, and free multiplicative powers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import integrate, optimize, special, stats
from torch import Tensor

# Mean of the Tracy-Widom law TW_1: the largest eigenvalue of a real covariance matrix.
TW1_MEAN = -1.2065335745820


@dataclass(frozen=True)
class QuarterCircle:
    """Singular values of a square matrix with i.i.d. entries of variance ``sigma^2 / T``.

    Density ``sqrt(4 sigma^2 - x^2) / (pi sigma^2)`` on ``[0, 2 sigma]``.
    """

    sigma: float = 1.0

    def __post_init__(self):
        _check_positive("sigma", self.sigma)

    @property
    def edge(self) -> float:
        """``2 sigma``."""
        return 2 * self.sigma

    def density(self, x: Tensor) -> Tensor:
        inside = (4 * self.sigma**2 - x.square()).clamp(min=0).sqrt() / (math.pi * self.sigma**2)
        return torch.where(x >= 0, inside, 0.0)

    def cdf(self, x: Tensor) -> Tensor:
        y = (torch.as_tensor(x) / self.edge).clamp(0, 1)
        return 2 / math.pi * (y * (1 - y.square()).sqrt() + y.asin())


@dataclass(frozen=True)
class Disk:
    """Eigenvalues of the same matrix: uniform on the disk of radius ``sigma`` (the circular law)."""

    sigma: float = 1.0

    def __post_init__(self):
        _check_positive("sigma", self.sigma)

    @property
    def edge(self) -> float:
        """The radius ``sigma``."""
        return self.sigma

    def modulus_cdf(self, r: Tensor) -> Tensor:
        """``P(|lambda| <= r) = (r / sigma)^2``."""
        return (torch.as_tensor(r) / self.sigma).clamp(0, 1).square()

    def edge_mean(self, T: int) -> float:
        """Mean of the largest modulus of a real ``T x T`` Gaussian matrix: ``sigma int_0^inf (1 - F(r)) dr``.

        For complex entries the squared moduli are those of independent Gamma(k) variables, k = 1..T (Kostlan 1992). For
        real entries eigenvalues pair up, which takes the square root of the law of the largest (Rider & Sinclair 2014):
        ``F(r) = prod_k P(Gamma(k) <= T r^2)^{1/2}``.
        """
        k = np.arange(1, T + 1)

        def beyond(r: float) -> float:
            with np.errstate(divide="ignore"):
                return -math.expm1(0.5 * float(np.log(special.gammainc(k, T * r**2)).sum()))

        width = 10 / math.sqrt(T)  # F falls from 1 to 0 within a few 1/sqrt(T) of r = 1
        start = max(0.0, 1 - width)
        return self.sigma * (start + integrate.quad(beyond, start, 1 + width, limit=200)[0])


@dataclass(frozen=True)
class FreePower:
    """Free multiplicative power: ``l`` square factors and ``l`` factors of aspect ratio ``gamma``, each of mean 1.

    The limit of the eigenvalues of ``Y Y^T``, ``Y = A_l ... A_1 X_0 W_1 ... W_l``, with ``A_i`` of ``T x T`` and
    ``W_i`` of ``d x d`` independent Gaussian entries, ``X_0 X_0^T = I_T`` and ``gamma = T / d``. Its S-transform is
    ``S(z) = 1 / ((1 + z)^l (1 + gamma z)^l)``, so that ``psi^{-1}(z) = chi(z) = z / ((1 + z)^{l+1} (1 + gamma z)^l)``,
    with ``psi(chi) = sum_n m_n chi^n``. At ``gamma = 1`` these are the Fuss-Catalan laws of order ``2 l``; as ``gamma``
    falls to 0, those of order ``l``.

    Args:
        l: number of layers, at least 1.
        gamma: ``T / d``, at least 0.
    """

    l: int
    gamma: float = 1.0

    def __post_init__(self):
        if int(self.l) != self.l or self.l < 1:
            raise ValueError(f"l: got {self.l}; the number of layers is an integer >= 1")
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise ValueError(f"gamma: got {self.gamma}; the ratio T/d is finite and >= 0")

    def moment(self, n: int) -> float:
        """``m_n = (1/n) sum_k binom(n(l+1), n-1-k) binom(n l, k) gamma^k``, by Lagrange inversion; ``m_1 = 1``."""
        if int(n) != n or n < 1:
            raise ValueError(f"n: got {n}; moments are numbered by integers >= 1")
        terms = (math.comb(n * (self.l + 1), n - 1 - k) * math.comb(n * self.l, k) * self.gamma**k for k in range(n))
        return sum(terms) / n

    def chi(self, z: float) -> float:
        """``chi(z) = z / ((1 + z)^{l+1} (1 + gamma z)^l)``."""
        return z / ((1 + z) ** (self.l + 1) * (1 + self.gamma * z) ** self.l)

    def _log_chi_slope(self, z: float) -> float:
        return 1 / z - (self.l + 1) / (1 + z) - self.l * self.gamma / (1 + self.gamma * z)

    @property
    def z_star(self) -> float:
        """The positive root of ``1/z = (l+1)/(1+z) + l gamma/(1 + gamma z)``, where ``chi`` is largest."""
        # The slope is positive near 0 and at most 1/z - (l+1)/(1+z) = 0 at z = 1/l.
        return float(optimize.brentq(self._log_chi_slope, 1e-12, 1 / self.l + 1e-12, xtol=1e-15))

    @property
    def edge(self) -> float:
        """Right edge ``1 / chi(z*)`` of the support."""
        return 1 / self.chi(self.z_star)

    def edge_at(self, T: int) -> float:
        """Mean of the largest of ``T`` eigenvalues: ``edge + (C T)^{-2/3} E[TW_1]``.

        The density vanishes as ``(C / pi) sqrt(edge - x)`` with ``C = sqrt(2 / x''(z*)) / edge``, ``x = 1 / chi``.
        """
        z = self.z_star
        # x = exp(-log chi) is stationary at z*, so x'' = -x (log chi)''.
        log_chi_curvature = -1 / z**2 + (self.l + 1) / (1 + z) ** 2 + self.l * self.gamma**2 / (1 + self.gamma * z) ** 2
        C = math.sqrt(-2 / (self.edge * log_chi_curvature)) / self.edge
        return self.edge + (C * T) ** (-2 / 3) * TW1_MEAN


def ks_distance(samples: Tensor, cdf: Callable[[Tensor], Tensor]) -> float:
    """Kolmogorov-Smirnov distance ``sup_x |F_T(x) - F(x)|`` of the samples' empirical law to ``cdf``."""
    x = samples.detach().cpu().double().numpy()
    return float(stats.ks_1samp(x, lambda x: cdf(torch.from_numpy(x)).numpy()).statistic)


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: got {value}; it is finite and > 0")
