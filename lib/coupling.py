"""Networks of different ensembles made from the same noise: how far apart they are, neuron by neuron.

In a right-invariant ensemble a layer is ``z = sigma_w M A + sigma_b b`` with ``A`` of shape (k, n) standard Gaussian
(:class:`lib.ensembles.RightInvariant`). The families differ in the ``k x k`` matrix ``M`` alone, and all their ``M``
have one limit. With one ``A`` for all, networks of width ``n`` are thus within ``O(n^{-1/2})`` of each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.ensembles import Ensemble, Gaussian, GaussianProduct, LowRank, Orthogonal, RightInvariant, rank_of
from lib.gaussian_moments import Activation
from lib.nngp import nngp
from lib.random_matrices import cholesky, gaussian, gram

STEP = 1e-4  # of central differences in K, relative: errors of 1e-8 from the third derivative, 1e-9 from rounding


@dataclass(frozen=True)
class Coupled(Ensemble):
    """One matrix of each family, made from the same Gaussian noise: ``Z_f = M_f A`` with one ``A`` for all ``f``.

    The rows of ``Phi`` are the ``k`` vectors of the first family, then those of the second, and so on. So
    ``preactivations(Coupled(families), X.repeat(len(families), 1), ...)`` draws networks that start from the same first
    layer, and each row of blocks has exactly the law of its own family.

    Args:
        families: right-invariant ensembles.
    """

    families: tuple[RightInvariant, ...]
    name: str = "coupled"

    def __post_init__(self):
        if others := [f.name for f in self.families if not isinstance(f, RightInvariant)]:
            raise ValueError(f"families: {', '.join(others)} cannot be coupled; use right-invariant ensembles")

    def outputs(self, Phi, m, generator, *, shuffled=False):
        rows, n = Phi.shape[-2:]
        k, left = divmod(rows, len(self.families))
        most = min(f.most_inputs(m, n) for f in self.families)
        if left or k > most:
            raise ValueError(f"Phi: got {rows} rows for {len(self.families)} families; need the same 1 to {most} each")
        A = gaussian(*Phi.shape[:-2], k, m, generator=generator, dtype=Phi.dtype)
        L = cholesky(gram(Phi.unflatten(-2, (-1, k))))  # (..., families, k, k)
        M = [f.mixing(L[..., i, :, :], A, n, generator) for i, f in enumerate(self.families)]
        return torch.cat(M, -2).to(A.dtype) @ A


def coupling_constants(
    ensemble: Ensemble,
    X: Tensor,
    layers: int,
    activation: Activation,
    n: int,
    *,
    sigma_w: float,
    sigma_b: float = 0.0,
) -> Iterator[Tensor]:
    """Limits of ``n E(z_f - z_iid)^2 / K_aa`` for layers 1, 2, ..., of coupled networks of width ``n``; shape (k,).

    The product ``M M^T`` of the family is that of independent weights plus ``D / sqrt(n)``, and to leading order

        D^(l) = J D^(l-1) + C eta C^T,    E eta_ab eta_cd = c (d_ac d_bd + d_ad d_bc),    D^(1) = 0,

    with ``J`` the derivative of ``K^(l-1) -> K^(l)``, ``C C^T = K^(l) - sigma_b^2``, and ``c = 1`` for orthogonal,
    ``1 + n/r`` for low-rank and ``n/r`` for product weights: ``1`` for a division by ``chol(A A^T / n)``, ``n/r`` for a
    multiplication with ``chol(V / r)``. As ``M`` is lower triangular, it moves by ``C low(C^{-1} D C^{-T})``, where
    ``low`` keeps the lower triangle and half of the diagonal.

    Args:
        ensemble: the family that is coupled with independent weights.
        X: linearly independent inputs, shape (k, N_0).
        layers: how many constants, >= 1.
        activation: ``phi``.
        n: the width that a rank belongs to.
        sigma_w, sigma_b: as in :func:`lib.nngp.nngp`.

    Raises:
        ValueError: at once, for a family without a constant, or inputs that are not independent.
    """
    kernels = nngp(X, layers, activation, sigma_w, sigma_b)
    if int(torch.linalg.matrix_rank(X)) < len(X):
        raise ValueError(f"X: got {len(X)} inputs in a space of fewer dimensions; need linearly independent ones")
    return _constants(_noise(ensemble, n), kernels, activation, sigma_w, sigma_b)


def _constants(c, kernels, activation, sigma_w, sigma_b):
    before = None
    for K in kernels:
        C = torch.linalg.cholesky(K - sigma_b**2)
        if before is None:
            k = len(K)
            low = torch.ones(k, k, dtype=K.dtype).tril() - torch.eye(k, dtype=K.dtype) / 2
            V = K.new_zeros(k, k, k, k)  # E D_ab D_cd
        else:
            J = sigma_w**2 * kernel_derivative(activation, before)
            Q = C @ C.mT
            V = torch.einsum("abij,ijkl,cdkl->abcd", J, V, J)
            V += c * (torch.einsum("ac,bd->abcd", Q, Q) + torch.einsum("ad,bc->abcd", Q, Q))
        B = torch.linalg.inv(C)
        inner = torch.einsum("ai,bj,ck,dl,ijkl->abcd", B, B, B, B, V)
        yield torch.einsum("ac,ad,cb,db,cbdb->a", C, C, low, low, inner) / K.diagonal()
        before = K


def kernel_derivative(activation: Activation, K: Tensor) -> Tensor:
    """``dF(K)_ab / dK_cd`` for ``F(K)_ab = E[phi(u_a) phi(u_b)]``, by central differences; (k, k) -> (k, k, k, k).

    Symmetric in c, d: the change of ``F`` under a small symmetric ``D`` is ``sum_cd J_abcd D_cd``.
    """
    k, h = len(K), STEP * float(K.diagonal().min())
    J = K.new_zeros(k, k, k, k)
    for c in range(k):
        for d in range(c + 1):
            S = torch.zeros_like(K)
            S[c, d] += h / 2
            S[d, c] += h / 2
            J[..., c, d] = J[..., d, c] = (activation.kernel(K + S) - activation.kernel(K - S)) / (2 * h)
    return J


def _noise(ensemble: Ensemble, n: int) -> float:
    """The constant ``c`` of :func:`coupling_constants`."""
    match ensemble:
        case Gaussian():
            return 0.0
        case Orthogonal():
            return 1.0
        case LowRank():
            return 1 + n / rank_of(ensemble.rank, n)
        case GaussianProduct():
            return n / rank_of(ensemble.rank, n)
    raise ValueError(f"ensemble: no constant for {ensemble.name}; use Orthogonal, LowRank or GaussianProduct")
