"""Gaussian integrals on the line: rules that know where the integrand is singular, and Hermite coefficients."""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

LOG_ACCURACY = 46.0  # ln(1/eps): 1e-20, since the estimates leave out the order of a pole and powers of 1/h
RADIUS = 12.0  # of the integrals: e^{-72} outside, e^{-36} where a Hermite function takes half of the weight
PANEL_NODES = 32


def gaussian_rule(
    q: Tensor, kinks: tuple[float, ...] = (), strip: float = 1.0, degree: int = 0
) -> tuple[Tensor, Tensor]:
    """Nodes and weights with ``sum_j w_j f(sqrt(q) z_j) ~ E f(sqrt(q) Z)``, ``Z ~ N(0, 1)``, for every entry of ``q``.

    - No kinks: the trapezoid rule. For ``f`` analytic in ``|Im u| < a`` it errs by ``e^{-2 pi y / h + y^2 / 2}`` for
      every ``y <= a / sqrt(q)``; for tanh, ``a = pi / 2``, the step is thus ``h = pi^2 / (sqrt(q) ln(1/eps))``.
      Gauss-Hermite nodes lose against it from ``q ~ 1`` on, where the singularity comes close.
    - Kinks: Gauss-Legendre panels between them, no wider than what ``strip`` and ``degree`` allow.

    Args:
        q: variances, shape (Q,), >= 0.
        kinks: the points ``u`` where ``f`` is not analytic.
        strip: the half width ``a`` of the strip around the real axis in which ``f`` is analytic and bounded.
        degree: highest Hermite polynomial that ``f`` will be multiplied with.

    Returns:
        ``z`` and ``w`` of shape (1, n), or (Q, n) where the panels move with ``q``.

    Source: Trefethen & Weideman (2014) for the trapezoid rule.
    """
    if kinks:
        z, w = _panels(q.cpu(), kinks, strip / _root(q), degree)
    else:
        z, w = _trapezoid(_root(q), strip, degree)
    return z.to(q.device), w.to(q.device)


def hermite_coefficients(
    phi: Callable[[Tensor], Tensor], q: Tensor, degree: int, kinks: tuple[float, ...] = (), strip: float = 1.0
) -> Tensor:
    """``a_k(q) = E[phi(sqrt(q) Z) h_k(Z)]`` for the orthonormal Hermite polynomials; (Q,) -> (degree, Q).

    ``sum_k a_k^2 = E phi(sqrt(q) Z)^2``, so that the coefficients themselves say how much is missing.
    """
    z, w = gaussian_rule(q, kinks, strip, degree)
    f = phi(q.sqrt()[:, None] * z)  # (Q, n)
    if not kinks:  # the same nodes for all q: one product of matrices
        return _trapezoid_hermite(_root(q), strip, degree).to(q.device) @ f.T
    return torch.stack([(f * wh).sum(-1) for wh in _weighted_hermite(z, w, degree)])


def mehler(a: Tensor, b: Tensor, rho: Tensor) -> Tensor:
    """``sum_k a_k b_k rho^k``, broadcast, by Horner's rule in ``rho``, or in ``rho^2`` where one parity is absent.

    Args:
        a, b: coefficients, shape (d, ...), broadcasting against each other and ``rho`` behind the first dimension.
        rho: correlations, shape (...).
    """
    size = max(float((a * a).max()), float((b * b).max()), 1e-300)
    odd, even = (all(float((x[p::2] ** 2).sum(0).max()) <= 1e-30 * size for x in (a, b)) for p in (0, 1))
    first, step = (1, 2) if odd else (0, 2 if even else 1)
    a, b = a[first::step], b[first::step]
    x = rho.square() if step == 2 else rho
    total = torch.zeros(torch.broadcast_shapes(a.shape[1:], b.shape[1:], rho.shape), dtype=rho.dtype, device=rho.device)
    for k in reversed(range(len(a))):
        total.mul_(x).addcmul_(a[k], b[k])
    return total.mul_(rho) if first else total


def _root(q: Tensor) -> float:
    """``max sqrt(q)`` rounded up to a power of ``2^{1/4}``, so that neighbouring ``q`` share a table."""
    return 2.0 ** (math.ceil(4 * math.log2(max(q.max().sqrt().item(), 1e-2))) / 4)


@lru_cache(maxsize=128)
def _trapezoid(root: float, strip: float, degree: int) -> tuple[Tensor, Tensor]:
    y = min(strip / root, math.sqrt(2 * LOG_ACCURACY))  # beyond, the Gaussian itself is what grows
    h = 2 * math.pi / (LOG_ACCURACY / y + math.sqrt(degree) + y / 2)  # |h_k(x + iy)| grows as e^{sqrt(k) y}
    n = math.ceil(RADIUS / h)
    z = h * torch.arange(-n, n + 1, dtype=torch.float64)[None]
    return z, h / math.sqrt(2 * math.pi) * torch.exp(-z.square() / 2)


@lru_cache(maxsize=8)
def _trapezoid_hermite(root: float, strip: float, degree: int) -> Tensor:
    return torch.stack([wh[0] for wh in _weighted_hermite(*_trapezoid(root, strip, degree), degree)])


def _weighted_hermite(z: Tensor, w: Tensor, degree: int):
    """``w h_0(z), w h_1(z), ...``; starting from the weight keeps every term below overflow."""
    before, now = torch.zeros_like(w), w
    for k in range(degree):
        yield now
        before, now = now, (z * now - math.sqrt(k) * before) / math.sqrt(k + 1)


def _panels(q: Tensor, kinks: tuple[float, ...], strip: float, degree: int) -> tuple[Tensor, Tensor]:
    t = torch.tensor(sorted(kinks), dtype=torch.float64)
    scale = q[:1] if not t.any() else q  # a kink at 0 stays where it is
    inner = (t / scale.sqrt().clamp_min(1e-150)[:, None]).clamp(-RADIUS, RADIUS)
    ends = inner.new_full((len(inner), 1), RADIUS)
    edges = torch.cat([-ends, inner, ends], 1)
    # 32 nodes resolve e^{-z^2/2} on a panel of width 4, a pole 1/2 of the width away, and 12 radians of h_k.
    count = math.ceil(2 * RADIUS / min(4.0, 2 * strip, 24 / math.sqrt(max(degree, 1))))
    x, v = (torch.from_numpy(c) for c in np.polynomial.legendre.leggauss(PANEL_NODES))
    x = ((x + 1) / 2 + torch.arange(count)[:, None]).reshape(-1) / count  # all panels of a unit segment
    v = v.repeat(count) / (2 * count)
    length = edges.diff(dim=1)[..., None]
    z = (edges[:, :-1, None] + length * x).flatten(1)
    return z, (length * v).flatten(1) * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
