"""Causal attention at initialisation: its mean is the Cesàro matrix, and what the fix leaves has rows that shrink.

``A_ij = Z_ij / sum_{k <= i} Z_ik`` for ``j <= i``, else 0. Exchangeable entries give ``E A = C`` exactly, with the
Cesàro matrix ``C_ij = 1/i`` for ``j <= i``. In its causal form the fix is ``A_perp = A - C``. ``T`` tokens throughout.
"""

import math

import numpy as np
import torch
from scipy import optimize
from scipy.linalg import eigvalsh_tridiagonal
from scipy.special import loggamma
from torch import Tensor

from lib.attention import EntryLaw


def causal_markov_matrix(T: int, law: EntryLaw, generator: torch.Generator) -> Tensor:
    """Lower triangular ``A`` with independent rows that sum to 1, shape (T, T).

    Its leading ``n x n`` block is a draw for ``n`` tokens: causal attention does not know what comes later.
    """
    _check_size("T", T)
    Z = law.draw(T, T, generator).tril_()
    totals = Z.sum(-1, keepdim=True)
    if not (totals > 0).all():
        raise ValueError(f"law: {law.name} drew a row of zeros, which cannot be normalised; take a law with Z > 0")
    return Z / totals


def cesaro_matrix(T: int) -> Tensor:
    """``C_ij = 1/i`` for ``j <= i``, else 0: the mean of causal attention, and what the fix subtracts; (T, T)."""
    _check_size("T", T)
    i = torch.arange(1, T + 1, dtype=torch.float64)
    return (1 / i)[:, None].expand(T, T).tril()


def cesaro_singular_values(T: int, k: int = 1) -> Tensor:
    """The ``k`` largest singular values of the Cesàro matrix, in ``O(k T)`` operations; shape (k,).

    ``C^{-1}`` is bidiagonal, with ``i`` on the diagonal and ``-i`` below it, so ``1/s`` are the smallest positive
    eigenvalues of the symmetric tridiagonal matrix with zero diagonal and ``1, 1, 2, 2, ..., T-1, T-1, T`` beside it.
    """
    _check_order(T, k)
    beside = np.repeat(np.arange(1.0, T + 1), 2)[:-1]
    smallest = eigvalsh_tridiagonal(np.zeros(2 * T), beside, select="i", select_range=(T, T + k - 1))
    return torch.from_numpy(1 / smallest)


def cesaro_closed_form(T: int, k: int = 1) -> float:
    """``2 / sqrt(1 + 4 xi^2)``, ``xi log(T + 1/2) + arg Gamma(1 + 2 i xi) - 3 arg Gamma(1/2 + i xi) = k pi``.

    The ``k``-th singular value of the Cesàro matrix up to ``O(T^{-2})``, for ``k`` far below ``T``. Exactly, ``xi`` is
    a zero of the continuous dual Hahn polynomial ``3F2(-T, 1/2 + i xi, 1/2 - i xi; 1, 1; 1)``, since
    ``C^{-1} C^{-T}`` is the Jacobi matrix of that family; the phase is that of its asymptotics. For large ``T``,
    ``xi = k pi / (log T + gamma + 6 log 2)`` with Euler's ``gamma``: the norm tends to 2, the constant of Hardy's
    inequality, and misses it by ``4 pi^2 / log^2 T``.

    Source: Štampach (2022) for the expansion of ``||C||^2`` to ``log^{-3} T``; the closed form is this book's.
    """
    _check_order(T, k)

    def excess(xi: float) -> float:
        phase = loggamma(1 + 2j * xi).imag - 3 * loggamma(0.5 + 1j * xi).imag
        return xi * math.log(T + 0.5) + phase - k * math.pi

    # The left side rises from 0 to some 4 T at xi = 4 T, and falls beyond.
    xi = optimize.brentq(excess, 0, 4 * T + 2, xtol=1e-14)
    return 2 / math.sqrt(1 + 4 * xi**2)


def cesaro_stable_rank(T: int) -> float:
    """``sr(C C^T) = (2 H_T - H_T^(2)) / ||C||^4``, which grows as ``log(T) / 8``.

    ``H_T^(p) = sum_{j <= T} j^{-p}``; the entries of ``C C^T`` are ``1 / max(i, j)``.
    """
    norm = float(cesaro_singular_values(T))
    j = np.arange(1.0, T + 1)
    return float((2 / j - 1 / j**2).sum()) / norm**4


def fixed_singular_value(T: int, k: int, sigma: float) -> float:
    """``sigma sqrt(1/k - 1/T)``: the ``k``-th singular value of ``A_perp`` for ``1 << k << T``.

    Row ``i`` has ``i`` entries of variance ``sigma^2 / i^2``. A profile that is homogeneous in ``(i, j)`` gives
    ``s_k^2 = K / k``, and the Frobenius norm ``sum_i sigma^2 / i`` says that ``K = sigma^2``. That is for ``T``
    infinite: the rows beyond ``T`` would add ``sigma^2 / T`` to the diagonal of ``A_perp^T A_perp``.
    """
    _check_order(T, k)
    return sigma * math.sqrt(1 / k - 1 / T)


def fixed_shift(T: int, k: int, law: EntryLaw) -> float:
    """How far ``s_k`` may lie from :func:`fixed_singular_value`, as a share of it: ``(|a| + 1/2) / k + (k / T)^2``.

    The variance of an entry is ``sigma^2 / i^2`` times ``1 - 2 a / i``, ``a = 1/2 + skewness sigma - 3 sigma^2 / 2``,
    and ``s_k`` sees the rows from ``k`` on; a count of singular values names ``k`` up to 1/2. The rows beyond ``T``
    come in again at second order.
    """
    a = 0.5 + law.skewness * law.sigma - 1.5 * law.sigma**2
    return (abs(a) + 0.5) / k + (k / T) ** 2


def _check_size(name: str, value: int) -> None:
    if int(value) != value or value < 1:
        raise ValueError(f"{name}: got {value}; a size is an integer >= 1")


def _check_order(T: int, k: int) -> None:
    _check_size("T", T)
    if not 1 <= k <= T:
        raise ValueError(f"k: got {k}; the matrix has {T} singular values")
