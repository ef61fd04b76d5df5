"""Length and correlation of signals at infinite depth and width: fixed points, depth scales and the critical line."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from scipy import optimize

from lib.gaussian_moments import Activation
from lib.gaussian_quadrature import gaussian_rule
from lib.nngp import check_scales

ROUNDING = 1e-12  # closer to 1 than this a slope counts as 1
LARGEST, SMALLEST = 1e8, 1e-30  # variances between which fixed points are looked for


@dataclass(frozen=True)
class MeanField:
    """The recursion of one variance ``q`` and one correlation ``c`` through infinitely wide layers.

    ``q <- sigma_b^2 + sigma_w^2 E phi(sqrt(q) Z)^2``, and at its fixed point ``q*``
    ``c <- (sigma_b^2 + sigma_w^2 E[phi(u) phi(v)]) / q*``, ``(u, v) ~ N(0, q* [[1, c], [c, 1]])``.
    The slope ``chi`` of the second map at ``c = 1`` separates order (``chi < 1``: nearby inputs merge, gradients
    vanish) from chaos (``chi > 1``: they part, gradients explode).

    Args:
        activation: ``phi``.
        sigma_w, sigma_b: as in :func:`~lib.nngp.nngp`.

    Source: Poole et al. (2016); Schoenholz et al. (2017).
    """

    activation: Activation
    sigma_w: float
    sigma_b: float

    def __post_init__(self):
        check_scales(self.sigma_w, self.sigma_b)

    def length_map(self, q: float) -> float:
        """``sigma_b^2 + sigma_w^2 g(q)``, ``g(q) = E phi(sqrt(q) Z)^2``."""
        return self.sigma_b**2 + self.sigma_w**2 * float(self.activation.second_moment(q))

    def correlation_map(self, c: float, q: float | None = None) -> float:
        """``(sigma_b^2 + sigma_w^2 F(q, q, c q)) / q`` at the fixed point, or at another fixed ``q``."""
        q = self._positive_q() if q is None else q
        return (self.sigma_b**2 + self.sigma_w**2 * float(self.activation.cross(q, q, c * q))) / q

    @cached_property
    def q_star(self) -> float:
        """The smallest stable fixed point of the length map above 0, else 0; ``inf`` if lengths grow beyond 1e8.

        Where every ``q`` is fixed, as for relu at ``(sqrt 2, 0)``, it is 1.
        """
        gain = lambda q: self.length_map(q) - q  # noqa: E731
        if all(abs(gain(q)) <= ROUNDING * q for q in (0.5, 1.0, 2.0)):
            return 1.0
        return _crossing(gain, SMALLEST, LARGEST)

    @cached_property
    def c_star(self) -> float:
        """The stable fixed point of the correlation map on [0, 1]: 1 if ``chi <= 1``."""
        if self.chi <= 1 + ROUNDING:
            return 1.0
        gain = lambda c: self.correlation_map(c) - c  # noqa: E731
        if gain(0.0) <= ROUNDING:
            return 0.0
        gap = 0.5  # the map is convex on [0, 1]: below the diagonal from c* to 1
        while gain(1 - gap) >= 0:
            gap /= 2
            if gap < 1e-9:
                return 1.0
        return optimize.brentq(gain, 0.0, 1 - gap, xtol=1e-14)

    @cached_property
    def chi(self) -> float:
        """``sigma_w^2 E phi'(sqrt(q*) Z)^2``: slope of the correlation map at ``c = 1``, and the gain of gradients."""
        return self.sigma_w**2 * float(self.activation.derivative_moment(self._finite_q()))

    @cached_property
    def chi_c(self) -> float:
        """``sigma_w^2 E[phi'(u) phi'(v)]`` at ``c*``: slope of the correlation map at its stable fixed point."""
        if self.c_star == 1:
            return self.chi
        q = self._positive_q()
        return self.sigma_w**2 * float(self.activation.cross_derivative(q, q, self.c_star * q))

    @cached_property
    def chi_par(self) -> float:
        """``sigma_w^2 g'(q*)``: slope of the length map at its fixed point."""
        return self.sigma_w**2 * float(self.activation.second_moment_slope(max(self._finite_q(), SMALLEST)))

    @property
    def xi_q(self) -> float:
        """``-1 / ln |chi_par|``: layers in which lengths approach ``q*`` by a factor e."""
        return depth_scale(self.chi_par)

    @property
    def xi_c(self) -> float:
        """``-1 / ln |chi_c|``: layers in which correlations approach ``c*`` by a factor e; infinite at criticality."""
        return depth_scale(self.chi_c)

    def _finite_q(self) -> float:
        if math.isinf(self.q_star):
            raise ValueError(f"sigma_w: lengths grow without bound at {self.sigma_w:g}, {self.sigma_b:g}; lower it")
        return self.q_star

    def _positive_q(self) -> float:
        if self._finite_q() == 0:
            raise ValueError(
                f"sigma_b: lengths shrink to 0 at {self.sigma_w:g}, {self.sigma_b:g} and leave no correlation to "
                f"follow; raise sigma_b or sigma_w, or give q to correlation_map"
            )
        return self.q_star


def depth_scale(slope: float) -> float:
    """``-1 / ln |slope|``, infinite from ``1 - 1e-12`` on, 0 at 0."""
    if abs(slope) >= 1 - ROUNDING:
        return math.inf
    return -1 / math.log(abs(slope)) if slope else 0.0


class CriticalRate(NamedTuple):
    """Layer ``l`` adds about ``rate (1 + drift / l)`` to ``(1 - c_l)^{-power}``."""

    power: float
    rate: float
    drift: float


def critical_rate(field: MeanField) -> CriticalRate:
    """How correlations approach 1 where ``chi = 1``: as ``1/l`` if ``phi`` is smooth, as ``1/l^2`` if it has kinks.

    Let ``e = 1 - c``. Smooth ``phi``: ``e' = e - B e^2 + D e^3``, ``B = sigma_w^2 q* E phi''^2 / 2`` and
    ``D = sigma_w^2 q*^2 E phi'''^2 / 6``; power 1, rate ``B``, drift ``1 - D / B^2``. Slopes that jump by ``J_j`` at
    the kinks ``t_j``: ``e' = e - a e^{3/2}``, ``a = (2/3) sigma_w^2 sum_j J_j^2 p(t_j) sqrt(q*/pi)`` with the density
    ``p`` of N(0, q*); power 1/2, rate ``a / 2``, drift 3/2. The half power takes ``phi`` linear between its kinks.

    Raises:
        ValueError: the slope ``chi`` is not 1.
    """
    if abs(field.chi - 1) > 1e-9 or not 0 < field.q_star < math.inf:
        raise ValueError(f"field: chi = {field.chi:.6g} at q* = {field.q_star:.3g}; take a point of the critical line")
    phi, q, s2, h = field.activation, field.q_star, field.sigma_w**2, 1e-4
    if not phi.kinks:
        z, w = gaussian_rule(torch.tensor([q], dtype=torch.float64), strip=phi.strip)
        u = math.sqrt(q) * z
        above, here, below = (phi.derivative(u + x) for x in (h, 0.0, -h))
        B = s2 * q * float((w * ((above - below) / (2 * h)).square()).sum()) / 2
        D = s2 * q**2 * float((w * ((above - 2 * here + below) / h**2).square()).sum()) / 6
        return CriticalRate(1.0, B, 1 - D / B**2)
    t = torch.tensor(phi.kinks, dtype=torch.float64)
    jumps = phi.derivative(t + h) - phi.derivative(t - h)
    density = torch.exp(-t.square() / (2 * q)) / math.sqrt(2 * math.pi * q)
    return CriticalRate(0.5, s2 * float((jumps.square() * density).sum()) * math.sqrt(q / math.pi) / 3, 1.5)


def critical_point(activation: Activation, sigma_b: float) -> tuple[float, float]:
    """``sigma_w`` and ``q*`` with ``chi = 1`` for this ``sigma_b``.

    The line is explicit in ``q``: ``sigma_w(q)^2 = 1 / E phi'(sqrt(q) Z)^2``, ``sigma_b(q)^2 = q - sigma_w(q)^2 g(q)``,
    and ``q`` solves the second. At ``sigma_b = 0`` it ends in ``q = 0``.

    Raises:
        ValueError: the line does not reach this ``sigma_b``; relu has the point ``(sqrt 2, 0)`` alone.
    """
    check_scales(1.0, sigma_b)
    q = _crossing(lambda q: sigma_b**2 - _critical_bias(activation, q), SMALLEST, LARGEST) if sigma_b else 0.0
    if math.isinf(q):
        raise ValueError(f"sigma_b: the critical line of {activation.name} does not reach {sigma_b:g}; lower it")
    return _critical_weight(activation, q), q


def critical_bias(activation: Activation, sigma_w: float) -> tuple[float, float]:
    """``sigma_b`` and ``q*`` with ``chi = 1`` for this ``sigma_w``; see :func:`critical_point`.

    Raises:
        ValueError: the line does not reach this ``sigma_w``.
    """
    check_scales(sigma_w, 0.0)
    q = _crossing(lambda q: sigma_w - _critical_weight(activation, q), SMALLEST, LARGEST)
    bias = math.inf if math.isinf(q) else _critical_bias(activation, q) if q else 0.0
    if math.isinf(q) or bias < -ROUNDING or abs(_critical_weight(activation, q) - sigma_w) > 1e-9:
        raise ValueError(f"sigma_w: the critical line of {activation.name} does not pass {sigma_w:g}")
    return math.sqrt(max(bias, 0.0)), q


def _critical_weight(activation: Activation, q: float) -> float:
    return float(activation.derivative_moment(q)) ** -0.5


def _critical_bias(activation: Activation, q: float) -> float:
    return q - _critical_weight(activation, q) ** 2 * float(activation.second_moment(q))


def _crossing(gain: Callable[[float], float], low: float, high: float) -> float:
    """Where ``gain`` falls through 0 on ``(low, high)``: 0 if it starts below, ``inf`` if it stays above."""
    if gain(low) <= 0:
        return 0.0
    right = low
    while gain(right) > 0:
        low, right = right, 4 * right
        if right > high:
            return math.inf
    return optimize.brentq(gain, low, right, xtol=1e-300, rtol=1e-14)
