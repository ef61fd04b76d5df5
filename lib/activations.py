"""Activations whose kernels are known in closed form, and tanh, whose kernel is a series."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lib.gaussian_moments import Activation, check_covariance, check_kernel, check_variance, mirror

CHUNK = 1 << 11  # pairs at a time, with 20 or 64 nodes each: what the cache of a core holds


class _Elementwise(Activation):
    """An activation whose ``cross`` costs the same per pair for one and for many: a kernel is its upper triangle."""

    def kernel(self, K: Tensor) -> Tensor:
        q, rho = check_kernel(K)
        i, j = torch.triu_indices(len(q), len(q), 1, device=q.device)
        F = torch.zeros_like(rho)
        if len(i):
            F[i, j] = self._cross(q[i], q[j], rho[i, j])
        return mirror(F, self.second_moment(q))

    def cross(self, q1, q2, c) -> Tensor:
        return self._cross(*check_covariance(q1, q2, c))

    def cross_derivative(self, q1, q2, c) -> Tensor:
        return self._cross_derivative(*check_covariance(q1, q2, c))


class Relu(_Elementwise):
    """``phi(u) = max(u, 0)``: ``F = (sqrt(q1 q2) / 2 pi) (sin t + (pi - t) cos t)``, ``cos t = rho``.

    Source: Cho & Saul (2009), the arc-cosine kernel of degree 1.
    """

    def _cross(self, q1: Tensor, q2: Tensor, rho: Tensor) -> Tensor:
        t = torch.acos(rho)
        return (q1 * q2).sqrt() / (2 * math.pi) * ((1 - rho.square()).sqrt() + (math.pi - t) * rho)

    def _cross_derivative(self, q1: Tensor, q2: Tensor, rho: Tensor) -> Tensor:
        """``(pi - t) / 2 pi``, the probability that both are positive."""
        return (math.pi - torch.acos(rho)) / (2 * math.pi) * torch.ones_like(q1 * q2)

    def second_moment(self, K):
        """``K / 2``."""
        return check_variance("K", K) / 2

    def second_moment_slope(self, K):
        """``1 / 2``."""
        return torch.full_like(check_variance("K", K), 0.5)

    def second_moment_curvature(self, K):
        """0."""
        return torch.zeros_like(check_variance("K", K))

    def derivative_moment(self, K):
        """``1 / 2``."""
        return torch.full_like(check_variance("K", K), 0.5)

    def fourth_moment(self, K):
        """``3 K^2 / 2``."""
        return 1.5 * check_variance("K", K).square()

    def square_variance(self, K):
        """``5 K^2 / 4``."""
        return 1.25 * check_variance("K", K).square()


class Erf(_Elementwise):
    """``phi(u) = erf(u)``: ``F = (2/pi) asin(2 c / sqrt((1 + 2 q1) (1 + 2 q2)))``.

    Source: Williams (1997).
    """

    def _cross(self, q1: Tensor, q2: Tensor, rho: Tensor) -> Tensor:
        s = (q1 * q2).sqrt()
        return 2 / math.pi * torch.asin(2 * rho * s / ((1 + 2 * q1) * (1 + 2 * q2)).sqrt())

    def _cross_derivative(self, q1: Tensor, q2: Tensor, rho: Tensor) -> Tensor:
        """``(4/pi) / sqrt(1 + 2 q1 + 2 q2 + 4 q1 q2 (1 - rho^2))``."""
        return 4 / math.pi * (1 + 2 * (q1 + q2) + 4 * q1 * q2 * (1 - rho.square())).rsqrt()

    def second_moment(self, K):
        """``(2/pi) asin(2K / (1 + 2K))``."""
        K = check_variance("K", K)
        return 2 / math.pi * torch.asin(2 * K / (1 + 2 * K))

    def second_moment_slope(self, K):
        """``(4/pi) / ((1 + 2K) sqrt(1 + 4K))``."""
        K = check_variance("K", K)
        return 4 / math.pi / ((1 + 2 * K) * (1 + 4 * K).sqrt())

    def second_moment_curvature(self, K):
        """``-(4/pi) (2 / (1 + 2K) + 2 / (1 + 4K)) / ((1 + 2K) sqrt(1 + 4K))``."""
        K = check_variance("K", K)
        return -self.second_moment_slope(K) * (2 / (1 + 2 * K) + 2 / (1 + 4 * K))

    def derivative_moment(self, K):
        """``(4/pi) / sqrt(1 + 4K)``."""
        return 4 / math.pi * (1 + 4 * check_variance("K", K)).rsqrt()


@dataclass(frozen=True)
class PiecewiseLinear(_Elementwise):
    """A continuous ``phi`` with slope ``s_j`` between kinks ``t_j``; jumps ``J_j`` of the slope at ``t_j``.

    ``phi'' = sum_j J_j delta_{t_j}`` turns ``d^2 F / dc^2 = E[phi''(u) phi''(v)]`` into a sum of Gaussian densities
    (Price's theorem). Integrated twice over ``c = s sin x``, ``s = sqrt(q1 q2)``:

    ``F = E phi(u) E phi(v) + c E phi'(u) E phi'(v) + sum_{jk} J_j J_k I_{jk}``,
    ``I_{jk} = int_0^{asin rho} (c - s sin x) e_{jk}(x) dx / 2 pi``,
    ``e_{jk}(x) = exp(-(a^2 + b^2 - 2 a b sin x) / (2 cos^2 x))``, ``a = t_j / sqrt(q1)``, ``b = t_k / sqrt(q2)``.

    Gauss-Legendre with 20 nodes for ``|rho| <= 0.9``, and with 64 beyond, drawn towards the end, where ``e`` may switch
    on within ``|a - b|``. For hard-tanh the error is below 1e-12 for ``q <= 10``, 5e-12 for ``q <= 40``,
    and 3e-7 in ``dF/dc``, where the switch is all that is left.

    Args:
        name, phi, derivative, kinks: as in :class:`~lib.gaussian_moments.Activation`.

    Raises:
        ValueError: ``phi`` bends between its kinks.

    Source: Price (1958); for Gaussian probabilities Drezner & Wesolowsky (1990).
    """

    def __post_init__(self):
        super().__post_init__()
        u = torch.linspace(-10, 10, 1001, dtype=torch.float64)
        if not self.kinks or not torch.allclose(self._sum_of_ramps(u), self.phi(u), rtol=1e-9, atol=1e-9):
            raise ValueError(f"phi: {self.name} is not linear between its kinks {self.kinks}; use Activation")

    @cached_property
    def _pieces(self) -> tuple[Tensor, Tensor, Tensor]:
        """Kinks ``t`` (J,), jumps of the slope there (J,), and the slope before the first (1,)."""
        t = torch.tensor(sorted(self.kinks), dtype=torch.float64)
        u = torch.cat([t[:1] - 1, t, t[-1:] + 1])
        slopes = self.phi(u).diff() / u.diff()
        return t, slopes.diff(), slopes[:1]

    def _sum_of_ramps(self, u: Tensor) -> Tensor:
        t, jumps, tilt = self._pieces
        return self.phi(t[:1]) + tilt * (u - t[0]) + ((u[..., None] - t).clamp_min(0) * jumps).sum(-1)

    def _means(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """``E phi(u)`` and ``E phi'(u)``, from ``E max(u - t, 0) = sqrt(q) (n(x) - x N(-x))``, ``x = t / sqrt(q)``."""
        t, jumps, tilt = (p.to(q.device) for p in self._pieces)
        root = q.sqrt().clamp_min(1e-150)[..., None]
        x = t / root
        above = torch.special.ndtr(-x)
        ramps = root * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi) - t * above
        start = self.phi(self._pieces[0][:1]).to(q.device)
        return (start - tilt * t[0]) + (jumps * ramps).sum(-1), tilt + (jumps * above).sum(-1)

    def _cross(self, q1: Tensor, q2: Tensor, rho: Tensor) -> Tensor:
        return self._integral(q1, q2, rho, derivative=False)

    def _cross_derivative(self, q1: Tensor, q2: Tensor, rho: Tensor) -> Tensor:
        return self._integral(q1, q2, rho, derivative=True)

    def _integral(self, q1: Tensor, q2: Tensor, rho: Tensor, derivative: bool) -> Tensor:
        shape = torch.broadcast_shapes(q1.shape, q2.shape, rho.shape)
        q1, q2, rho = (x.expand(shape).reshape(-1) for x in (q1, q2, rho))
        out, near = torch.empty_like(rho), rho.abs() > 0.9
        for nodes, pairs in ((_FAR, (~near).nonzero()[:, 0]), (_NEAR, near.nonzero()[:, 0])):
            for some in pairs.split(CHUNK):
                out[some] = self._quadrature(q1[some], q2[some], rho[some], nodes, derivative)
        return out.reshape(shape)

    def _quadrature(self, q1: Tensor, q2: Tensor, rho: Tensor, nodes: tuple, derivative: bool) -> Tensor:
        (mean1, slope1), (mean2, slope2) = self._means(q1), self._means(q2)
        s, y, w = (q1 * q2).sqrt(), *(x.to(q1.device) for x in nodes)
        end = torch.asin(rho)
        sine = torch.sin(end[:, None] * y)
        cosine2 = 1 - sine.square()
        total = torch.zeros_like(sine)
        r1, r2 = (q.sqrt().clamp_min(1e-30)[:, None] for q in (q1, q2))
        for (square1, square2, product), weight in self._corners.items():
            squares, twice = square1 / r1.square() + square2 / r2.square(), 2 * product / (r1 * r2)
            exponent = (twice * sine - squares) / (2 * cosine2)
            total += weight * exponent.clamp_max(0).exp()  # positive by rounding alone
        if derivative:
            return slope1 * slope2 + end * (total @ w) / (2 * math.pi)
        total *= rho[:, None] - sine
        return mean1 * mean2 + s * (rho * slope1 * slope2 + end * (total @ w) / (2 * math.pi))

    @cached_property
    def _corners(self) -> dict[tuple[float, float, float], float]:
        """``J_j J_k`` by ``(t_j^2, t_k^2, t_j t_k)``, which is all that the density at ``(t_j, t_k)`` depends on."""
        t, jumps, _ = (p.tolist() for p in self._pieces)
        corners: dict[tuple[float, float, float], float] = {}
        for tj, Jj in zip(t, jumps, strict=True):
            for tk, Jk in zip(t, jumps, strict=True):
                key = (tj * tj, tk * tk, tj * tk)
                corners[key] = corners.get(key, 0.0) + Jj * Jk
        return corners


def _nodes(n: int, power: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre on [0, 1] in ``1 - (1 - x)^power``, which draws the nodes towards 1."""
    x, w = np.polynomial.legendre.leggauss(n)
    gap = (1 - x) / 2
    return torch.from_numpy(1 - gap**power), torch.from_numpy(w / 2 * power * gap ** (power - 1))


_FAR, _NEAR = _nodes(20, 1), _nodes(64, 2)

RELU = Relu("relu", torch.relu, lambda u: (u > 0).double(), kinks=(0.0,), strip=math.inf)
# erf is entire but grows as e^{y^2} off the axis: a strip of 1.25 keeps that growth, to the fourth power, below e^7.
ERF = Erf("erf", torch.erf, lambda u: 2 / math.sqrt(math.pi) * torch.exp(-u.square()), strip=1.25)
HARD_TANH = PiecewiseLinear(
    "hard-tanh", lambda u: u.clamp(-1, 1), lambda u: (u.abs() < 1).double(), kinks=(-1.0, 1.0), strip=math.inf
)
TANH = Activation("tanh", torch.tanh, lambda u: torch.cosh(u).pow(-2), strip=math.pi / 2)

ACTIVATIONS = {phi.name: phi for phi in (RELU, ERF, HARD_TANH, TANH)}
