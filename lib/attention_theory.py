"""What theory predicts for attention layers at initialisation: edges, rates and constants, as formulas."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import integrate
from torch import Tensor

from lib.attention import EntryLaw
from lib.attention_bulk import Bulk
from lib.laws import TW1_MEAN, FreePower


def edge_shift(T: int, law: EntryLaw) -> float:
    """How far ``sqrt(T) E s_2(A)`` may lie from ``2 sigma`` at finite ``T``: ``sigma (fluctuation + bulk + tail)``.

    - fluctuation: the mean ``2^{-2/3} |E TW_1| T^{-2/3}`` of the Tracy-Widom law at the edge, downwards;
    - bulk: ``|kappa_4| / T``, since the resolvent obeys ``1 + w m + m^2 + kappa_4 m^4 / T = 0`` to first order in the
      fourth cumulant, with edge ``w = 2 + kappa_4 / T`` (compare Lee & Schnelli 2018 for sparse matrices);
    - tail: ``E[phi(max(1, M)) - 2]``, ``phi(x) = x + 1/x``, where ``M`` is the largest of the ``T^2`` entries
      ``(Z - 1) / (sigma sqrt(T))``. An entry larger than 1 is a perturbation of rank one, and takes a singular value
      out of the bulk to ``phi(M)``. For the log-normal law this dies out only for ``T`` in the ten thousands.
    """
    return law.sigma * (tracy_widom_shift(T) + abs(law.kurtosis) / T + stray_shift(T, law))


def tracy_widom_shift(T: int) -> float:
    """``2 - E s_1`` for a ``T x T`` Gaussian matrix of entry variance ``1/T``: ``2^{-2/3} |E TW_1| T^{-2/3}``."""
    return 2 ** (-2 / 3) * abs(TW1_MEAN) * T ** (-2 / 3)


def stray_shift(T: int, law: EntryLaw) -> float:
    """``E[phi(max(1, M)) - 2] = int_1^inf (1 - x^{-2}) P(M > x) dx``, the tail term of :func:`edge_shift`."""

    def integrand(x: float) -> float:
        y = 1 + law.sigma * math.sqrt(T) * x
        # The row of a large Z has the sum T + Z - 1, so that its entry of T A is y for Z = y (T - 1) / (T - y).
        expected = T**2 * law.tail(y * (T - 1) / (T - y))
        return (1 - x**-2) * -math.expm1(-expected)

    largest = (T - 1) / (law.sigma * math.sqrt(T))  # a row of T A that is all in one entry
    return integrate.quad(integrand, 1, largest)[0] if largest > 1 else 0.0


def top_shift(T: int, law: EntryLaw) -> float:
    """Next order of the top singular value: ``T (E s_1(A)^2 - 1) = sigma^2 + top_shift + O(T^{-2})``.

    ``(4 sigma^4 - sigma^2 - 2 mu_3) / T``, ``mu_3 = E (Z-1)^3``: the variance of an entry of ``T A`` is
    ``sigma^2 + (3 sigma^4 - sigma^2 - 2 mu_3) / T``, and second-order perturbation theory adds ``sigma^4 / T``.
    """
    s2 = law.sigma**2
    return (4 * s2**2 - s2 - 2 * law.skewness * law.sigma**3) / T


def width_collapse_shift(T: int, l: int, gamma: float, law: EntryLaw) -> float:
    """Relative distance of ``T^{2l-1} (sr(Sigma_l) - 1) / sigma^{4l}`` from its limit, to order 1/T.

    Absolute values add up. Per layer: the variance of an entry, ``2 |1 + 2 mu_3 / sigma^2 - 3 sigma^2|``; the kurtosis
    in the second moment, ``|kappa_4| / m_2``; the chi-square of the values in the mean of ``s_1^{-4}``, ``6 gamma``;
    and the top singular value of ``A``, ``2 sigma^2``.
    """
    s2 = law.sigma**2
    entry = 2 * abs(1 + 2 * law.skewness * law.sigma - 3 * s2)
    return l * (entry + abs(law.kurtosis) / width_collapse_constant(l, gamma) + 6 * gamma + 2 * s2) / T


def width_collapse_constant(l: int, gamma: float) -> float:
    """``1 + l (1 + gamma)``: the limit of ``T^{2l-1} (sr(Sigma_l) - 1) / sigma^{4l}`` without the fix.

    It is the second moment of :class:`~lib.laws.FreePower`.
    """
    return FreePower(l, gamma).moment(2)


def width_collapse_exponent(l: int) -> int:
    """``1 - 2 l``: ``sr(Sigma_l) - 1`` falls as ``T`` to this power."""
    return 1 - 2 * l


def fixed_rank_constant(l: int, gamma: float) -> float:
    """``(1 + l (1 + gamma)) chi(z*)^2 = m_2 / edge^2``: the limit of ``sr(Sigma_l) / T`` with the fix."""
    law = FreePower(l, gamma)
    return law.moment(2) / law.edge**2


def fixed_rank_at(T: int, l: int, gamma: float, kurtosis: float = 0.0) -> float:
    """``sr(Sigma_l) / T`` with the fix at finite ``T``: ``m_2(T) / edge(T)^2``.

    ``edge(T)`` is the mean of the largest of ``T`` eigenvalues, a correction of order ``T^{-2/3}``. An excess kurtosis
    ``kappa_4`` of ``Z`` changes ``chi(z)`` by the factor ``1 - l kappa_4 z / T``, hence ``m_2`` by ``l kappa_4 / T``
    and the edge by the factor ``1 + l kappa_4 z* / T``; see :func:`edge_shift` for its origin.
    """
    law = FreePower(l, gamma)
    edge = law.edge_at(T) + law.edge * l * kurtosis * law.z_star / T
    return (law.moment(2) + l * kurtosis / T) / edge**2


@dataclass(frozen=True)
class GaussianEquivalent:
    """Limit of the singular values of ``sqrt(T) (A(X) - 1 1^T / T)`` for key-query attention on isometric tokens.

    The model of :func:`lib.attention.gaussian_equivalent` is ``[b Q K^T / sqrt(d) + c Z] / sqrt(T)``,
    ``c^2 = e^{b^2} - 1 - b^2``, with ``Q``, ``K``, ``Z`` standard Gaussian. The two parts are free and bi-invariant, so
    the R-transforms of their symmetrised singular values add: ``R(w) = c^2 w + b^2 w / (1 - gamma b^2 w^2)``. With
    ``K(w) = 1/w + R(w)`` the right edge is the minimum of ``K`` on ``0 < w < 1 / (b sqrt(gamma))``.

    Args:
        b: variance of an entry of ``W_Q`` and ``W_K``, > 0.
        gamma: ``T / d``, > 0.
    """

    b: float
    gamma: float

    def __post_init__(self):
        for name in ("b", "gamma"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: got {value}; it is finite and > 0")

    @property
    def sigma(self) -> float:
        """``sqrt(e^{b^2} - 1)``: std/mean of log-normal entries; the quarter circle would end at ``2 sigma``."""
        return math.sqrt(math.expm1(self.b**2))

    @property
    def noise(self) -> float:
        """``c = sqrt(e^{b^2} - 1 - b^2)``: what the exponential adds to its linear part."""
        return math.sqrt(math.expm1(self.b**2) - self.b**2)

    @property
    def bulk(self) -> Bulk:
        """The two parts as a :class:`~lib.attention_bulk.Bulk`."""
        return Bulk(self.b, self.noise, self.gamma)

    @property
    def edge(self) -> float:
        """Right edge of the singular values: ``min_w K(w)``."""
        return self.bulk.edge

    def edge_at(self, T: int) -> float:
        """Mean of the largest of ``T`` singular values: the edge and its Tracy-Widom shift."""
        return self.bulk.edge_at(T)

    @property
    def top(self) -> float:
        """``e^{b^2} - 1 + gamma b^4 / 2``: the limit of ``T (s_1(A)^2 - 1)``.

        ``s_1^2 - 1`` is the mean square of the column sums less 1. To the ``sigma^2 / T`` of independent entries comes
        what a column shares: its key's squared norm over ``d`` has variance ``2 / d``, and its mean thus ``b^4 / 2d``.
        """
        return self.sigma**2 + self.gamma * self.b**4 / 2

    def cdf(self, x: Tensor) -> Tensor:
        """``P(s <= x)``, by the trapezoid rule on the density."""
        grid = torch.linspace(1e-6, self.edge, 2001, dtype=torch.float64)
        mass = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(self.density(grid), grid)])
        x = torch.as_tensor(x, dtype=torch.float64).cpu()
        return torch.from_numpy(np.interp(x.numpy(), grid.numpy(), (mass / mass[-1]).numpy()))

    def density(self, x: Tensor) -> Tensor:
        """Density of the singular values at ``x > 0``: ``-(2/pi) Im w``, ``w`` the root of ``K(w) = x`` below the axis.

        ``K(w) = x`` is a quartic in ``w`` with one pair of complex roots inside the support and none outside.
        """
        b2, c2, g = self.b**2, self.noise**2, self.gamma * self.b**2
        x = torch.as_tensor(x, dtype=torch.float64)
        # 0 = g c2 w^4 - g x w^3 + (g - c2 - b2) w^2 + x w - 1, as the eigenvalues of its companion matrix.
        one = torch.ones_like(x)
        coefficients = torch.stack([-g * x, (g - c2 - b2) * one, x, -one], -1) / (g * c2)
        companion = torch.diag_embed(torch.ones(*x.shape, 3, dtype=x.dtype), offset=-1)
        companion[..., 0, :] = -coefficients
        return 2 / math.pi * (-torch.linalg.eigvals(companion).imag).amax(-1).clamp(min=0)
