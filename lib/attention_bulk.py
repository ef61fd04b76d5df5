"""Where the bulk of an attention matrix ends: the sum of a linear part, a product of Gaussians, and noise."""

import functools
import math
from dataclasses import dataclass

from scipy import optimize

from lib.laws import TW1_MEAN


@dataclass(frozen=True)
class Bulk:
    """Singular values of ``[linear S + noise Z] / sqrt(T)``, ``Z`` Gaussian and ``S`` logits of variance 1.

    ``S = Q K^T / sqrt(d_qk)`` for isometric tokens, and ``C^{1/2} Q K^T C^{1/2} / sqrt(d_qk)``, ``C = X X^T``, for
    tokens with independent directions. The squared singular values of ``S / sqrt(T)`` have the S-transform
    ``1 / [(1 + z)(1 + gamma z)(1 + tokens z)^2]``: one square factor, one of ratio ``gamma``, and ``C`` twice. In
    ``u = sqrt(z) / linear`` and ``q(z) = sqrt(1 + gamma z) (1 + tokens z)`` the symmetrised law of the sum has the
    Cauchy transform ``w = u / q`` and its inverse

        K = 1/w + noise^2 w + linear^2 u q.

    The right edge is where ``dK/dw = 0`` first.

    Args:
        linear, noise: coefficients >= 0, not both 0.
        gamma: ``T / d_qk``, > 0.
        tokens: ``T / d`` for tokens with independent directions; 0 for isometric ones.
    """

    linear: float
    noise: float
    gamma: float
    tokens: float = 0.0

    def __post_init__(self):
        for name in ("linear", "noise", "gamma", "tokens"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: got {value}; it is finite and >= 0")
        if self.gamma == 0 or self.std == 0:
            raise ValueError(f"gamma, linear, noise: got {self.gamma}, {self.linear}, {self.noise}; no matrix is left")

    @property
    def std(self) -> float:
        """``sqrt(linear^2 + noise^2)``: of an entry; the quarter circle would end at ``2 std``."""
        return math.hypot(self.linear, self.noise)

    def transform(self, log_u: float) -> tuple[float, float]:
        """``(w, K)`` at ``u = exp(log_u)``."""
        u, q, _ = self._at(log_u)
        return u / q, q / u + self.noise**2 * u / q + self.linear**2 * u * q

    @functools.cached_property
    def log_u_edge(self) -> float:
        """``log u`` at the edge: the first zero of ``dK / d log u``."""
        return float(optimize.brentq(self._slope, self._log_u_end - 80, self._log_u_end, xtol=1e-14))

    @property
    def edge(self) -> float:
        """Right edge of the singular values."""
        return self.transform(self.log_u_edge)[1]

    @property
    def threshold(self) -> float:
        """``1 / w`` at the edge, at least ``std``: a perturbation of rank one makes an outlier if it is larger."""
        return 1 / self.transform(self.log_u_edge)[0]

    def edge_at(self, T: int) -> float:
        """Mean of the largest of ``T`` singular values: ``edge + (2 T sqrt(2 / K''(w)))^{-2/3} E[TW_1]``."""
        t, step = self.log_u_edge, 1e-5
        u, q, bend = self._at(t)
        # dK/dw = 0 at the edge, so K''(w) = K''(log u) / (dw / d log u)^2.
        curvature = (self._slope(t + step) - self._slope(t - step)) / (2 * step) / (u / q * (1 - bend)) ** 2
        return self.edge + (2 * T * math.sqrt(2 / curvature)) ** (-2 / 3) * TW1_MEAN

    def _at(self, log_u: float) -> tuple[float, float, float]:
        """``u``, ``q`` and ``d log q / d log u``."""
        u = math.exp(log_u)
        z = (self.linear * u) ** 2
        q = math.sqrt(1 + self.gamma * z) * (1 + self.tokens * z)
        bend = self.gamma * z / (1 + self.gamma * z) + 2 * self.tokens * z / (1 + self.tokens * z)
        return u, q, bend

    def _slope(self, log_u: float) -> float:
        """``dK / d log u``."""
        u, q, bend = self._at(log_u)
        return (self.noise**2 * u / q - q / u) * (1 - bend) + self.linear**2 * u * q * (1 + bend)

    @functools.cached_property
    def _log_u_end(self) -> float:
        """A point past the edge, and before ``w`` turns back: there the slope is positive."""
        if self.linear < 1e-9 * self.noise:  # no linear part, to all digits
            return math.log(2 / self.noise)
        end = -math.log(self.linear)  # z = 1
        if self._at(end)[2] <= 1:
            return end
        return float(optimize.brentq(lambda t: self._at(t)[2] - 1, end - 80, end))
