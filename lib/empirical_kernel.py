"""The kernel of one finite network's last hidden layer: draws of it, and its variance to leading order.

Linear regression on the ``n`` features ``phi(z^(l))`` of a random network is regression with a Gaussian process whose
kernel is ``K_hat = sigma_b^2 + (sigma_w^2 / n) sum_i phi(z_i) phi(z_i)^T``, given the network. Its limit is the kernel
of :func:`lib.nngp.nngp`.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lib.ensembles import Ensemble
from lib.gaussian_moments import Activation
from lib.gaussian_quadrature import hermite_coefficients, mehler
from lib.nngp import check_scales
from lib.weight_conditions import FourthMoments
from lib.wide_networks import preactivations

DEGREE = 512  # of the series for moments of two variables


def empirical_kernel(
    ensemble: Ensemble,
    X: Tensor,
    widths: Sequence[int],
    phi: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    *,
    sigma_w: float,
    sigma_b: float = 0.0,
    **options,
) -> Tensor:
    """``K_hat_ab = sigma_b^2 + (sigma_w^2 / N_L) phi(z^(L)_a) . phi(z^(L)_b)`` of independent networks.

    The covariance, given ``L`` hidden layers, of an output with independent weights behind them.

    Args:
        widths: ``N_1, ..., N_L`` of the hidden layers.
        options: ``networks``, ``explicit``, ``dtype``; these and the others as in
            :func:`~lib.wide_networks.preactivations`.

    Returns:
        Kernels of shape (networks, k, k), float64; their rank is at most ``N_L + 1``.
    """
    *_, z = preactivations(ensemble, X, widths, phi, generator, sigma_w=sigma_w, sigma_b=sigma_b, **options)
    Phi = phi(z)
    return sigma_b**2 + sigma_w**2 / widths[-1] * (Phi @ Phi.mT).double()


def kernel_variances(
    phi: Activation, weights: FourthMoments, n: int, K: float, rho: Tensor, *, sigma_w: float, sigma_b: float = 0.0
) -> Iterator[Tensor]:
    """Limits of ``n Var K_hat_ab`` behind 1, 2, ... hidden layers of width ``n``, for inputs of one norm.

    With ``P`` and ``Q`` among the pairs ``aa, ab, bb``, ``F_P = E phi_P``, ``phi_ab = phi(u_a) phi(u_b)``, ``q = s2 F``
    and ``s2 = sigma_w^2``, the covariances ``V_PQ`` obey

        V' = s2^2 Cov(phi_P, phi_Q) + J X J^T,    J_PQ = s2 dF_P / dK_Q,
        X_ab,cd = V_ab,cd + tau_2 q_ab q_cd + tau_3 (q_ac q_bd + q_ad q_bc) + (mu_22 - 1) s2^2 E[phi_ab phi_cd],

    from ``X = 0`` in the first layer, which is Gaussian. ``X`` is ``n`` times the covariance of ``z_a z_b`` of one
    neuron and ``z_c z_d`` of another; ``tau_2, tau_3, mu_22`` are the weights', as in
    :func:`lib.width_corrections.corrections`, whose ``C_cross`` this is for equal inputs.

    Args:
        phi: the activation. Where it has kinks, moments err by some 1e-4 of their size at correlations next to 1.
        weights: fourth moments of ``W`` at width ``n``; see :func:`lib.weight_conditions.exact_moments`.
        n: the width those moments belong to.
        K: variance of the first layer, ``sigma_b^2 + sigma_w^2 ||x||^2 / N_0``.
        rho: correlations of the first layer, any shape, in [-1, 1].

    Yields:
        ``n Var K_hat_ab``, the shape of ``rho``, float64.

    Source: this book.
    """
    check_scales(sigma_w, sigma_b)
    if not (math.isfinite(K) and K > 0):
        raise ValueError(f"K: got {K}; the variance of the first layer is finite and > 0")
    rho = torch.as_tensor(rho, dtype=torch.float64)
    if rho.numel() == 0 or not bool((rho.abs() <= 1).all()):
        raise ValueError("rho: correlations lie in [-1, 1]")
    return _variances(phi, weights, n, K, rho, sigma_w**2, sigma_b**2)


def _variances(phi, weights, n, K, rho, s2, b2):
    tau_2, tau_3, column = n * (weights.two_rows - 1), n * weights.crossed, weights.column - 1
    c, X = K * rho, torch.zeros(*rho.shape, 3, 3, dtype=torch.float64)
    while True:
        F, J, fourth = _moments(phi, torch.tensor(K, dtype=torch.float64), c / K)
        V = s2**2 * (fourth - F[..., :, None] * F[..., None, :] + J @ X @ J.mT)
        yield V[..., 1, 1]
        q = s2 * F
        aa, ab, bb = q.unbind(-1)
        pairings = _matrix(
            [2 * aa * aa, 2 * aa * ab, 2 * ab * ab],
            [2 * aa * ab, aa * bb + ab * ab, 2 * ab * bb],
            [2 * ab * ab, 2 * ab * bb, 2 * bb * bb],
        )
        X = V + tau_2 * q[..., :, None] * q[..., None, :] + tau_3 * pairings + column * s2**2 * fourth
        K, c = b2 + float(aa.flatten()[0]), b2 + ab


def _moments(phi: Activation, K: Tensor, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``F_P``, ``dF_P / dK_Q`` and ``E[phi_P phi_Q]`` for ``u ~ N(0, K [[1, rho], [rho, 1]])``."""
    f, df = phi.phi, phi.derivative

    def expectation(left: Callable, right: Callable) -> Tensor:
        """``E[left(u) right(v)]``, by Mehler's series."""
        a, b = (hermite_coefficients(g, K[None], DEGREE, phi.kinks, phi.strip) for g in (left, right))
        return mehler(a.reshape(-1, *[1] * rho.ndim), b.reshape(-1, *[1] * rho.ndim), rho)

    one = torch.ones_like(rho)
    aa, ab = phi.second_moment(K) * one, phi.cross(K, K, K * rho)
    slope, dc = phi.second_moment_slope(K) * one, phi.cross_derivative(K, K, K * rho)
    # Stein: E[u phi'(u) phi(v)] = K E[phi''(u) phi(v)] + c E[phi'(u) phi'(v)], and dF_ab/dK_aa is half of that E phi''.
    dq = (expectation(lambda u: u * df(u), f) - K * rho * dc) / (2 * K)
    J = _matrix([slope, 0 * one, 0 * one], [dq, dc, dq], [0 * one, 0 * one, slope])
    four = phi.fourth_moment(K) * one
    three = expectation(lambda u: f(u) ** 3, f)
    two = expectation(lambda u: f(u).square(), lambda u: f(u).square())
    return torch.stack([aa, ab, aa], -1), J, _matrix([four, three, two], [three, two, three], [two, three, four])


def _matrix(*rows: list[Tensor]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
