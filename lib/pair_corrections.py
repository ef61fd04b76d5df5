"""Finite width for a pair of inputs: where lengths and correlation are at width ``n``, to order ``1/n``.

The activation may have kinks. For more inputs and an analytic activation see :mod:`lib.joint_corrections`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.gaussian_moments import Activation
from lib.nngp import check_scales
from lib.weight_conditions import FourthMoments

STEP = 1e-3  # of the differences, relative to the smallest eigenvalue: cross is exact to about 1e-13
FIRST, SECOND = (0, 1, 0), (0, 1, 1)  # the products 11, 22, 12 of a pair, in this order everywhere


@dataclass(frozen=True)
class PairCorrection:
    """A layer's limit ``K`` and its shift: ``E z_a z_b = K_ab + m_ab / n``, for the products 11, 22, 12; shape (3,)."""

    K: Tensor
    m: Tensor

    @property
    def c(self) -> float:
        """The limit ``c = K_12 / sqrt(K_11 K_22)``."""
        return float(self.K[2] / (self.K[0] * self.K[1]).sqrt())

    @property
    def c_shift(self) -> float:
        """``m_c``: the ratio of the means, ``E z_1 z_2 / sqrt(E z_1^2 E z_2^2)``, is ``c + m_c / n``."""
        relative = self.m / self.K
        return float(self.m[2] / (self.K[0] * self.K[1]).sqrt() - self.c * (relative[0] + relative[1]) / 2)


def pair_corrections(
    phi: Activation, weights: FourthMoments, n: int, K: Tensor, *, sigma_w: float, sigma_b: float = 0.0
) -> Iterator[PairCorrection]:
    """Corrections of layers 1, 2, ... for two inputs; :func:`lib.width_corrections.corrections` is the case of one.

    With ``P = (phi_1^2, phi_2^2, phi_1 phi_2)``, ``F = E P``, its derivatives ``J``, ``H`` by ``K``, and
    ``q = sigma_w^2 F``,

        C_cross' = s4 Cov P + s4 J C_cross J^T + tau_2 q_ab q_cd + tau_3 (q_ac q_bd + q_ad q_bc)
                   + (mu_22 - 1) s4 E P P^T,
        C'       = s4 Cov P + s4 J C_cross J^T + tau_1 q_ab q_cd + (mu_4 / 3 - 1) s4 E P P^T,
        m'       = sigma_w^2 (J m + H : C / 2),

    ``s4 = sigma_w^4``, from zero at the first layer, which is Gaussian.

    Args:
        phi: the activation; ``J`` and ``H`` are differences of its ``cross``.
        weights: fourth moments of ``W`` at width ``n``; see :func:`lib.weight_conditions.exact_moments`.
        n: the width those moments belong to.
        K: covariance of the two inputs in the first layer, shape (2, 2), positive definite.
    """
    check_scales(sigma_w, sigma_b)
    K = torch.as_tensor(K, dtype=torch.float64)
    if K.shape != (2, 2) or not bool((torch.linalg.eigvalsh(K) > 0).all()):
        raise ValueError(f"K: got {K.tolist()}; need a positive definite matrix of shape (2, 2)")
    k, s2 = torch.stack([K[0, 0], K[1, 1], K[0, 1]]), sigma_w**2
    tau_1, tau_2, tau_3 = n * (weights.same_row - 1), n * (weights.two_rows - 1), n * weights.crossed
    m, cross, C = torch.zeros_like(k), k.new_zeros(3, 3), k.new_zeros(3, 3)
    while True:
        yield PairCorrection(k, m)
        F, J, H = _derivatives(phi, k)
        PP = _products(phi, k)
        q = s2 * F
        square = torch.outer(q, q)
        full = torch.stack([torch.stack([q[0], q[2]]), torch.stack([q[2], q[1]])])
        swapped = torch.stack([full[a, c] * full[b, d] + full[a, d] * full[b, c] for a, b, c, d in _INDICES])
        shared = s2**2 * (PP - torch.outer(F, F) + J @ cross @ J.T)
        m = s2 * (J @ m + (H * C).sum((-2, -1)) / 2)
        C = shared + tau_1 * square + (weights.entry / 3 - 1) * s2**2 * PP
        cross = shared + tau_2 * square + tau_3 * swapped.view(3, 3) + (weights.column - 1) * s2**2 * PP
        k = sigma_b**2 + q


_INDICES = [(a, b, c, d) for a, b in zip(FIRST, SECOND, strict=True) for c, d in zip(FIRST, SECOND, strict=True)]


def _derivatives(phi: Activation, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``F`` (3,), its Jacobian (3, 3) and Hessians (3, 3, 3) by the variances ``k`` = (K_11, K_22, K_12)."""
    gap = (k[0] * k[1] - k[2].square()) / (k[0] + k[1])  # below the smallest eigenvalue
    e = STEP * float(gap) * torch.eye(3, dtype=torch.float64)
    pairs = [(i, j) for i in range(3) for j in range(3)]
    corners = torch.stack([s * e[i] + t * e[j] for i, j in pairs for s in (1, -1) for t in (1, -1)])
    ends = torch.cat([torch.zeros(1, 3, dtype=torch.float64), e, -e])
    values = phi.cross(*(k + torch.cat([ends, corners])).T)
    h = float(e[0, 0])
    J = torch.zeros(3, 3, dtype=torch.float64)
    H = torch.zeros(3, 3, 3, dtype=torch.float64)
    J[0, 0], J[1, 1] = phi.second_moment_slope(k[:2])
    H[0, 0, 0], H[1, 1, 1] = phi.second_moment_curvature(k[:2])
    J[2] = (values[1:4] - values[4:7]) / (2 * h)
    H[2] = (values[7:].view(3, 3, 4) @ torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)) / (4 * h * h)
    return torch.cat([phi.second_moment(k[:2]), values[:1]]), J, H


def _products(phi: Activation, k: Tensor) -> Tensor:
    """``E P P^T``, shape (3, 3), by a product of two rules; 1e-4 off at worst where ``phi`` has kinks."""
    z, w = _GRID
    u = k[0].sqrt() * z[:, None]
    v = k[2] / k[0].sqrt() * z[:, None] + (k[1] - k[2].square() / k[0]).sqrt() * z
    f, g = phi.phi(u), phi.phi(v)
    P = torch.stack([(f * f).expand_as(g), g * g, f * g])
    return torch.einsum("aij,bij,i,j->ab", P, P, w, w)


def _trapezoid(step: float, radius: float) -> tuple[Tensor, Tensor]:
    z = torch.arange(-radius, radius + step / 2, step, dtype=torch.float64)
    return z, step / math.sqrt(2 * math.pi) * torch.exp(-z.square() / 2)


_GRID = _trapezoid(0.1, 9.0)
