"""Sums of heavy-tailed weights: the symmetric stable law, and the exact law of one layer of Student weights.

``S`` is standard symmetric alpha-stable when ``E e^{itS} = exp(-|t|^alpha)``. With independent weights of infinite
variance a wide layer converges to it in place of a Gaussian.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import gamma, gammaln, kv
from torch import Tensor

from lib.gaussian_quadrature import gaussian_rule

_Y = torch.arange(-44.0, 44.0, 0.125, dtype=torch.float64)  # logit of an angle: both ends to 1e-19


def _angles(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``V = (pi/2) sigmoid(y)``, ``cos V`` to full relative accuracy, and ``dV / dy``."""
    up, down = torch.sigmoid(y), torch.sigmoid(-y)
    return math.pi / 2 * up, torch.sin(math.pi / 2 * down), math.pi / 2 * up * down


def cdf(x: Tensor, alpha: float, scale: float = 1.0) -> Tensor:
    """``P(scale S <= x)``, any shape, to about 1e-8; ``scipy.stats.levy_stable.cdf``, which takes |x| < 0.005 for 0.

    From the representation of Chambers, Mallows & Stuck by an angle ``V`` and an exponential ``E``: for ``x > 0``,
    ``S > x`` says that ``E`` is beyond (``alpha > 1``) or below (``alpha < 1``)
    ``h = cos((1 - alpha) V) (x cos(V)^{1/alpha} / sin(alpha V))^{alpha / (alpha - 1)}``.
    The integral over ``V`` is a trapezoid sum in its logit; ``alpha = 1`` is Cauchy's law.

    Source: Nolan (1997) for the integral.
    """
    _check(alpha, scale)
    x = torch.as_tensor(x, dtype=torch.float64) / scale
    if alpha == 1:
        return 0.5 + torch.atan(x) / math.pi
    V, cosine, step = _angles(_Y)
    power = alpha / (alpha - 1)
    # In logarithms: h spans hundreds of orders of magnitude.
    base = torch.log(torch.cos((1 - alpha) * V)) + power * (torch.log(cosine) / alpha - torch.log(torch.sin(alpha * V)))
    upper = torch.empty(x.numel(), dtype=torch.float64)
    log_x = x.abs().clamp_min(1e-280).log().reshape(-1)
    for part in torch.arange(x.numel()).split(4096):
        h = torch.exp((base + power * log_x[part, None]).clamp_max(700))
        integrand = torch.exp(-h) if alpha > 1 else -torch.expm1(-h)
        upper[part] = integrand @ step * float(_Y[1] - _Y[0]) / math.pi
    return torch.where(x < 0, upper.reshape(x.shape), 1 - upper.reshape(x.shape))


def activity(phi: Callable[[Tensor], Tensor], alpha: float, scale: float) -> float:
    """``(E |phi(scale S)|^alpha)^{1/alpha}``: the scale of the next layer, over that of its weights.

    ``phi`` is odd or even. A trapezoid sum over the logit of ``V`` and the logarithm of ``E``, as in :func:`cdf`.
    """
    _check(alpha, scale)
    V, cosine, step = (part[:, None] for part in _angles(_Y))
    t = torch.arange(-44.0, 4.5, 0.125, dtype=torch.float64)  # ln E
    log_ratio = torch.log(torch.cos((1 - alpha) * V)) - t
    S = torch.sin(alpha * V) / cosine.pow(1 / alpha) * torch.exp(log_ratio * (1 / alpha - 1))
    weights = step * torch.exp(t - t.exp())
    total = (phi(scale * S).abs().pow(alpha) * weights).sum()
    return float(total / weights.sum()) ** (1 / alpha)


def gaussian_activity(phi: Callable[[Tensor], Tensor], alpha: float, K: float) -> float:
    """``(E |phi(u)|^alpha)^{1/alpha}``, ``u ~ N(0, K)``: the same behind a Gaussian layer, for ``phi(0) = 0``."""
    z, w = gaussian_rule(torch.tensor([K], dtype=torch.float64), kinks=(0.0,), strip=1.0)
    return float((phi(math.sqrt(K) * z).abs().pow(alpha) * w).sum()) ** (1 / alpha)


def student_scale(nu: float) -> float:
    """``c`` with ``n^{-1/nu} (T_1 + ... + T_n) -> c S`` for Student variables, ``nu = alpha < 2``.

    ``c^nu = (sqrt(nu) / 2)^nu Gamma(1 - nu/2) / Gamma(1 + nu/2)``, from ``E e^{itT} = 1 - |c t|^nu + ...``.
    """
    if not 0 < nu < 2:
        raise ValueError(f"nu: got {nu}; sums of Student variables have a stable limit for 0 < nu < 2")
    return math.sqrt(nu) / 2 * (gamma(1 - nu / 2) / gamma(1 + nu / 2)) ** (1 / nu)


def student_layer_cdf(
    x: Tensor, nu: float, n: int, scale: float, phi: Callable[[Tensor], Tensor], K: float, size: float
) -> Tensor:
    """``P(z <= x)`` of ``z = scale sum_{j<=n} T_j phi(u_j)``, ``u_j ~ N(0, K)``, exact at every ``n``, to about 1e-6.

    ``E e^{itz} = (E psi(t scale phi(u)))^n`` with Student's characteristic function
    ``psi(t) = (sqrt(nu) |t|)^{nu/2} K_{nu/2}(sqrt(nu) |t|) / (Gamma(nu/2) 2^{nu/2 - 1})``, and then
    ``F(x) = 1/2 + (1/pi) int_0^inf E e^{itz} sin(tx) / t dt``.

    Args:
        x: points within 10 sizes, shape (X,).
        nu: degrees of freedom of ``T_j``, > 0.
        n: how many, from 8 (below, the characteristic function decays too slowly) to 1e9 (beyond, it is rounded).
        scale: of the weights.
        size: the standard deviation or scale of ``z``, roughly: the integral runs to ``16 / size``.
    """
    if not 8 <= n <= 1e9:
        raise ValueError(f"n: got {n}; this inversion is accurate for 8 <= n <= 1e9")
    if not (nu > 0 and scale > 0 and size > 0):
        raise ValueError(f"nu, scale, size: got {nu}, {scale}, {size}; all are > 0")
    z, w = gaussian_rule(torch.tensor([K], dtype=torch.float64), kinks=(0.0,), strip=math.pi / 2)
    v = phi(math.sqrt(K) * z[0]).abs().numpy() * (scale / size)
    y, dy = np.polynomial.legendre.leggauss(160)
    y = (y + 1) / 2
    t, dt = 16 * y**3, 24 * y**2 * dy  # the power makes |t|^nu smooth at 0
    missing = ((_student_cf(nu, t[:, None] * v) - 1) * w[0].numpy()).sum(1)
    integrand = np.exp(n * np.log1p(missing)) * dt / t
    return torch.from_numpy(0.5 + np.sin(np.outer(x.numpy() / size, t)) @ integrand / math.pi)


def _student_cf(nu: float, t: np.ndarray) -> np.ndarray:
    s = np.sqrt(nu) * np.maximum(t, 1e-12)
    return np.exp(nu / 2 * np.log(s) - gammaln(nu / 2) - (nu / 2 - 1) * math.log(2)) * kv(nu / 2, s)


def _check(alpha: float, scale: float) -> None:
    if not 0 < alpha < 2:
        raise ValueError(f"alpha: got {alpha}; a stable law of infinite variance has 0 < alpha < 2")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale: got {scale}; it is finite and > 0")
