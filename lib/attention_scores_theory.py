"""Where the outlier of an attention matrix comes from: its mean against its bulk, for every score function.

Everything here is about ``sqrt(T) A`` at initialisation, in the limit of many tokens at fixed ratios.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize, special, stats
from torch import Tensor

from lib.attention_bulk import Bulk
from lib.attention_scores import Score


@dataclass(frozen=True)
class Hermite:
    """What spectra see of a score function ``f`` at ``b G``, ``G`` standard Gaussian.

    ``mean = E f``, ``linear = E f G``, ``quadratic = E f (G^2 - 1) / sqrt(2)``, ``quartic = E f (G^4 - 6 G^2 + 3)``,
    and ``noise = sqrt(Var f - linear^2)``.
    """

    mean: float
    linear: float
    quadratic: float
    quartic: float
    noise: float

    @classmethod
    def of(cls, f: Callable[[Tensor], Tensor], b: float) -> "Hermite":
        """By Gauss-Legendre quadrature on either side of 0, where ``f`` may bend or jump."""
        if not (math.isfinite(b) and b > 0):
            raise ValueError(f"b: got {b}; the standard deviation of a logit is finite and > 0")
        nodes, weights = _legendre()
        reach = 12 + 2 * b  # e^{2 b x} times the Gaussian density has its peak at 2 b
        x = torch.cat([reach * (nodes - 1) / 2, reach * (nodes + 1) / 2])
        p = reach / 2 * weights.repeat(2) * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
        y = f(b * x)
        mean, first = float(p @ y), float(p @ (y * x))
        second = float(p @ (y * (x.square() - 1))) / math.sqrt(2)
        fourth = float(p @ (y * (x**4 - 6 * x.square() + 3)))
        rest = float(p @ (y - mean - first * x).square())
        return cls(mean, first, second, fourth, math.sqrt(rest))


@dataclass(frozen=True)
class ScoreLaw:
    """Outlier and bulk of ``sqrt(T) A`` for ``A = f(S) / T``, or its row-normalised form.

    With ``m, c_1, c_q, c_2`` the mean, linear, quadratic and noise coefficients of :class:`Hermite` (divided by ``m``
    for ``by_rows``) and ``e = 1 / sqrt(T)``,

        sqrt(T) A = sqrt(T) m e e^T + a (u e^T + e v^T) + bulk,    a = c_q sqrt(gamma + tokens),

    with unit vectors ``u, v``: the squared lengths of queries and keys, less their mean. They vanish for ``unit``
    scores, and row sums of one leave only ``v``. By Benaych-Georges & Nadakuditi (2012) an outlier ``x`` solves
    ``w(x) t = 1``, ``t`` a singular value of the perturbation. Row sums of one take ``e`` out of the bulk's right side,
    where the resolvent is then ``1/x`` in place of ``w``: ``w (m^2 T / x + a^2 w) = 1``.

    Args:
        mean, quadratic: ``|m|`` and ``|c_q|``.
        bulk: of ``sqrt(T) A``.
        by_rows: rows of ``A + const`` sum to a fixed number.
        quartic: ``E f (G^4 - 6 G^2 + 3)``, for :meth:`top_shift`.
    """

    mean: float
    quadratic: float
    bulk: Bulk
    by_rows: bool = False
    quartic: float = 0.0

    @classmethod
    def of(cls, score: Score, b: float, gamma: float, tokens: float = 0.0) -> "ScoreLaw":
        """Of a score function at logits of standard deviation ``b``, ``gamma = T / d_qk``; see :class:`Bulk`."""
        f = Hermite.of(score.f, b)
        if score.by_rows and f.mean <= 1e-6 * math.hypot(f.linear, f.noise):
            raise ValueError(f"score: {score.name} has mean {f.mean:.3g}; rows of scores need a positive mean")
        scale = f.mean if score.by_rows else 1.0
        bulk = Bulk(abs(f.linear) / scale, f.noise / scale, gamma, tokens)
        quadratic = 0.0 if score.unit else abs(f.quadratic) / scale
        return cls(abs(f.mean) / scale, quadratic, bulk, score.by_rows, 0.0 if score.by_rows else f.quartic)

    @property
    def lengths(self) -> float:
        """``a = c_q sqrt(gamma + tokens)``: how strongly the lengths of queries and keys perturb the bulk."""
        return self.quadratic * math.sqrt(self.bulk.gamma + self.bulk.tokens)

    @property
    def threshold(self) -> float:
        """``sqrt(T) m`` beyond which there is an outlier; 0 if the lengths alone make one."""
        t, edge, a = self.bulk.threshold, self.bulk.edge, self.lengths
        if a >= t:
            return 0.0
        return math.sqrt(edge * (t - a**2 / t)) if self.by_rows else t - a**2 / t

    def outlier(self, signal: float) -> float:
        """Limit of ``sqrt(T) s_1(A)`` when ``sqrt(T) m = signal``: the outlier, or the edge if there is none."""
        if signal < 0:
            raise ValueError(f"signal: got {signal}; it is sqrt(T) |m| >= 0")
        bulk, a = self.bulk, self.lengths
        if signal <= self.threshold and a < bulk.threshold:
            return bulk.edge

        def excess(log_u: float) -> float:
            w, x = bulk.transform(log_u)
            if self.by_rows:
                return w * (signal**2 / x + a**2 * w) - 1
            return w * (signal / 2 + math.hypot(signal / 2, a)) - 1

        return bulk.transform(float(optimize.brentq(excess, bulk.log_u_edge - 80, bulk.log_u_edge, xtol=1e-14)))[1]

    def top(self, T: int) -> float:
        """Limit law of ``sqrt(T) s_1(A)`` at ``T`` tokens: ``outlier(sqrt(T) m)``."""
        return self.outlier(math.sqrt(T) * self.mean)

    def top_shift(self, T: int) -> float:
        """How far ``sqrt(T) E s_1(A)`` may lie from :meth:`top` where there is an outlier.

        ``|E f He_4| gamma / (4 sqrt(T))``, which the kurtosis ``6 / d_qk`` of a logit adds to ``sqrt(T) m``, and terms
        of relative order ``1/T``.
        """
        return abs(self.quartic) * self.bulk.gamma / (4 * math.sqrt(T)) + self.top(T) / T


def random_map_values(T: int, gamma: float, k: int) -> list[float]:
    """``E s_1, ..., E s_k`` of hard attention: a random map of ``T`` queries to ``T`` keys.

    ``s_i = sqrt(i-th largest count)``. A query is won at the level ``x``, ``P(G > x) = 1/T``, and a key of squared
    length ``d (1 + v)``, ``v`` nearly ``N(0, 2/d)``, reaches it more often by the factor ``exp(v x phi(x) T / 2)``,
    ``phi`` the Gaussian density. So counts are Poisson with a log-normal rate of mean 1 and log-standard deviation
    ``tau = sqrt(gamma T / 2) x phi(x)``, and nearly independent:
    ``E s_i = sum_n (sqrt(n) - sqrt(n-1)) P(at least i counts >= n)``. As ``T`` grows ``tau -> 0``, and
    ``s_1^2 ~ log T / log log T`` as for balls thrown into bins.
    """
    if int(T) != T or T < 2 or not (math.isfinite(gamma) and gamma >= 0) or not 1 <= k <= T:
        raise ValueError(f"T, gamma, k: got {T}, {gamma}, {k}; need T >= 2, gamma >= 0 and 1 <= k <= T")
    level = -special.ndtri(1 / T)
    tau = math.sqrt(gamma * T / 2) * level * stats.norm.pdf(level)
    g, p = np.polynomial.hermite_e.hermegauss(64)
    rate = np.exp(tau * g - tau**2 / 2)
    n = np.arange(1, T + 1)
    tail = special.gammainc(n[:, None], rate) @ (p / p.sum())  # P(count >= n)
    step = np.sqrt(n) - np.sqrt(n - 1)
    return [float(step @ stats.binom.sf(i - 1, T, tail)) for i in range(1, k + 1)]


@functools.cache
def _legendre(n: int = 400) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights)
