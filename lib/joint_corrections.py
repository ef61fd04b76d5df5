"""The term of order ``1/n`` for several inputs at once: how far any combination ``theta . z`` is from its limit.

With ``z_a`` the pre-activation of one neuron at input ``a``, two of them have the covariance ``K_ab + m_ab / n`` and
four the cumulant ``(C_ab,cd + C_ac,bd + C_ad,bc) / n``. One input: :mod:`lib.width_corrections`.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.gaussian_moments import Activation
from lib.gaussian_quadrature import gaussian_rule
from lib.weight_conditions import FourthMoments
from lib.width_corrections import Correction

MOST_INPUTS = 3  # the grid has some 100 points per input


@dataclass(frozen=True)
class JointCorrection:
    """A layer's limit ``K`` and its corrections ``C``, ``m``: shapes (k, k), (k, k, k, k), (k, k)."""

    K: Tensor
    C: Tensor
    m: Tensor

    def along(self, theta: Tensor) -> Correction:
        """The correction of ``theta . z``: variance ``theta^T K theta`` and so on; (k,) -> numbers."""
        theta = torch.as_tensor(theta, dtype=torch.float64)
        if theta.shape != self.K.shape[:1]:
            raise ValueError(f"theta: got shape {tuple(theta.shape)}; need one number for each of {len(self.K)} inputs")
        pair = torch.outer(theta, theta)
        K, m = (float((pair * x).sum()) for x in (self.K, self.m))
        return Correction(K, float(torch.einsum("ab,cd,abcd", pair, pair, self.C)), m)


def joint_corrections(
    phi: Activation, weights: FourthMoments, n: int, K: Tensor, *, sigma_w: float, sigma_b: float = 0.0
) -> Iterator[JointCorrection]:
    """Corrections of layers 1, 2, ... at ``k`` inputs; the first is Gaussian. With ``q = sigma_w^2 F(K)``,

        s4       = sigma_w^4,   J = sigma_w^2 dF/dK,
        base     = s4 Cov(phi_a phi_b, phi_c phi_d) + (J C_cross J^T)_ab,cd,
        C_cross' = base + tau_2 q_ab q_cd + tau_3 (q_ac q_bd + q_ad q_bc) + (mu_22 - 1) s4 E[phi_a phi_b phi_c phi_d],
        C'       = base + tau_1 q_ab q_cd + (mu_4 / 3 - 1) s4 E[phi_a phi_b phi_c phi_d],
        m'       = J m + (sigma_w^2 / 8) sum_ijkl C_ij,kl E d_i d_j d_k d_l (phi_a phi_b).

    For one input this is :func:`lib.width_corrections.corrections`, and ``weights``, ``n`` are what they are there.
    Means are taken on a grid of the whitened inputs, with Hermite polynomials in place of derivatives of ``phi``.

    Args:
        K: covariance of the first layer, (k, k), positive definite, ``k <= 3``.

    Raises:
        ValueError: ``K`` is no such matrix, or ``phi`` has kinks, which the grid would not resolve.
    """
    K = torch.as_tensor(K, dtype=torch.float64)
    if K.ndim != 2 or K.shape[0] != K.shape[1] or not 1 <= len(K) <= MOST_INPUTS:
        raise ValueError(f"K: got shape {tuple(K.shape)}; need (k, k) with k = 1 to {MOST_INPUTS} inputs")
    if not K.isfinite().all() or not torch.equal(K, K.T) or float(torch.linalg.eigvalsh(K)[0]) <= 0:
        raise ValueError("K: need a symmetric positive definite matrix; equal inputs are one input")
    if phi.kinks:
        raise ValueError(f"phi: {phi.name} has kinks at {phi.kinks}; need an analytic activation")
    return _layers(phi, weights, n, K, sigma_w**2, sigma_b**2)


def _layers(phi, weights, n, K, s2, b2):
    tau_1, tau_2, tau_3 = n * (weights.same_row - 1), n * (weights.two_rows - 1), n * weights.crossed
    k = len(K)
    cross = C = torch.zeros(k, k, k, k, dtype=torch.float64)
    m = torch.zeros(k, k, dtype=torch.float64)
    while True:
        yield JointCorrection(K, C, m)
        x, w, root = _grid(phi, K)
        f = phi.phi(x @ root.T)  # (N, k): the activations at every point of the grid
        G = f[:, :, None] * f[:, None, :]
        F, fourth = torch.einsum("i,iab->ab", w, G), _paired(w, G, G)
        J = s2 * _first(x, w, G, root)
        base = s2**2 * (fourth - _outer(F)) + torch.einsum("abij,ijkl,cdkl->abcd", J, cross, J)
        m = torch.einsum("abij,ij->ab", J, m) + s2 * _fourth_derivative(x, w, G, root, C) / 8
        q = s2 * F
        C = base + tau_1 * _outer(q) + (weights.entry / 3 - 1) * s2**2 * fourth
        swapped = _outer(q).transpose(1, 2) + _outer(q).permute(0, 2, 3, 1)  # q_ac q_bd + q_ad q_bc
        cross = base + tau_2 * _outer(q) + tau_3 * swapped + (weights.column - 1) * s2**2 * fourth
        K = b2 + (q + q.T) / 2


def _outer(q: Tensor) -> Tensor:
    return q[:, :, None, None] * q


def _grid(phi: Activation, K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points ``x`` of ``N(0, I_k)``, their weights, and the root ``R`` of ``K = R R^T``: (N, k), (N,), (k, k)."""
    z, w = (t[0] for t in gaussian_rule(K.diagonal().max()[None], strip=phi.strip))
    points = torch.cartesian_prod(*[z] * len(K)).reshape(-1, len(K))
    weights = math.prod(torch.meshgrid(*[w] * len(K), indexing="ij")).reshape(-1)
    inside = weights > 1e-18
    values, vectors = torch.linalg.eigh(K)
    return points[inside], weights[inside], vectors * values.sqrt()


def _paired(w: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """``E[A_ab B_cd]``; (N,), (N, k, k), (N, k, k) -> (k, k, k, k)."""
    return ((w[:, None] * A.flatten(1)).T @ B.flatten(1)).reshape(*A.shape[1:], *B.shape[1:])


def _first(x: Tensor, w: Tensor, G: Tensor, root: Tensor) -> Tensor:
    """``dF_ab / dK_ij = E[G_ab (x x^T - I)] / 2`` in the coordinates of the inputs, shape (k, k, k, k)."""
    hermite = x[:, :, None] * x[:, None, :] - torch.eye(x.shape[1], dtype=x.dtype)
    second = _paired(w, G, hermite)
    inverse = torch.linalg.inv(root)
    return torch.einsum("abij,ic,jd->abcd", second, inverse, inverse) / 2


def _fourth_derivative(x: Tensor, w: Tensor, G: Tensor, root: Tensor, C: Tensor) -> Tensor:
    """``sum_ijkl C_ij,kl E d_i d_j d_k d_l G_ab`` as a mean of ``G`` times a Hermite polynomial of degree 4, (k, k)."""
    inverse = torch.linalg.inv(root)
    C = torch.einsum("abcd,ia,jb,kc,ld->ijkl", C, *[inverse] * 4)
    C = sum(C.permute(p) for p in itertools.permutations(range(4))) / 24
    xx = (x[:, :, None] * x[:, None, :]).flatten(1)
    traced = torch.einsum("ijkk->ij", C)
    quartic = ((xx @ C.reshape(xx.shape[1], -1)) * xx).sum(-1)
    polynomial = quartic - 6 * xx @ traced.flatten() + 3 * traced.trace()
    return torch.einsum("n,nab->ab", w * polynomial, G)
