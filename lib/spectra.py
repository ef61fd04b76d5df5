"""Singular values and stable ranks, without forming or factorising more than is needed.

Every function is batched over leading dimensions, runs on any device, and keeps the dtype of its argument.
"""

import math

import torch
from torch import Tensor


def top_singular_triplets(
    M: Tensor, k: int = 1, *, tol: float | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` largest singular values of ``M`` and their vectors: ``M v_i = s_i u_i``, ``M^T u_i = s_i v_i``.

    Golub-Kahan bidiagonalisation with full reorthogonalisation, one triplet after the other, each found one deflated,
    so that repeated singular values are counted as often as they occur. About ``T^{1/3} log(1/tol)`` products with
    ``M`` at a soft spectral edge, a handful where there is a gap, against ``O(T^3)`` for all singular values.

    Args:
        M: real matrix, shape (..., m, n).
        k: how many, ``1 <= k <= min(m, n)``.
        tol: stop when ``||M^T u - s v|| <= tol * s_1``; the square root of the machine epsilon unless given. The
            error of ``s`` itself is at most that, and quadratically smaller where there is a gap.
        generator: draws the start vectors, on the device of ``M``; a private one with a fixed seed unless given.

    Returns:
        ``U`` of shape (..., m, k), ``s`` of shape (..., k) in decreasing order, ``V`` of shape (..., n, k).

    Raises:
        ValueError: ``M`` is not a finite real floating-point matrix, or ``k`` is out of range.

    Source: Golub & Kahan (1965); equivalent to the leading part of ``torch.linalg.svd``.
    """
    _check_matrix(M)
    m, n = M.shape[-2:]
    if not 1 <= k <= min(m, n):
        raise ValueError(f"k: got {k}; a matrix of shape {m} x {n} has {min(m, n)} singular values")
    if generator is None:
        generator = torch.Generator(M.device).manual_seed(0)
    tol = math.sqrt(torch.finfo(M.dtype).eps) if tol is None else tol

    if m < n:  # the Krylov space lives on the shorter side, which it exhausts last
        V, s, U = top_singular_triplets(M.mT, k, tol=tol, generator=generator)
        return U, s, V

    batch = M.reshape(-1, m, n)
    U, s, V = M.new_zeros(len(batch), m, 0), M.new_zeros(len(batch), 0), M.new_zeros(len(batch), n, 0)
    for _ in range(k):
        start = torch.randn(len(batch), n, dtype=M.dtype, device=M.device, generator=generator)
        u, top, v = _golub_kahan(batch, U, V, start, tol)
        U, s, V = torch.cat([U, u[..., None]], -1), torch.cat([s, top[:, None]], -1), torch.cat([V, v[..., None]], -1)
    order = s.argsort(-1, descending=True)  # neighbours closer than the tolerance may come out swapped
    s = s.gather(-1, order)
    U, V = (X.gather(-1, order[:, None].expand(-1, X.shape[1], -1)) for X in (U, V))
    return U.reshape(*M.shape[:-1], k), s.reshape(*M.shape[:-2], k), V.reshape(*M.shape[:-2], n, k)


def top_singular_values(
    M: Tensor, k: int = 1, *, tol: float | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """``s_1(M) >= ... >= s_k(M)``, shape (..., k); see :func:`top_singular_triplets`."""
    return top_singular_triplets(M, k, tol=tol, generator=generator)[1]


def stable_rank(M: Tensor) -> Tensor:
    """``sr(M) = ||M||_F^2 / ||M||_2^2``, between 1 and ``rank M``; shape (..., m, n) -> (...).

    Raises:
        ValueError: ``M`` is zero, where the ratio has no value.
    """
    s = top_singular_values(M)[..., 0]
    _check_nonzero(s)
    return M.square().sum((-2, -1)) / s.square()


def covariance_stable_rank(X: Tensor) -> Tensor:
    """``sr(X X^T) = ||X X^T||_F^2 / ||X||_2^4`` through the smaller of the two Gram matrices; (..., T, d) -> (...)."""
    return 1 + covariance_stable_rank_excess(X)


def covariance_stable_rank_excess(X: Tensor) -> Tensor:
    """``sr(X X^T) - 1 = sum_{i >= 2} s_i^4 / s_1^4`` with full relative accuracy, however small; (..., T, d) -> (...).

    Subtracting 1 from the stable rank loses everything below 1e-16, which rank collapse passes in three layers. Here
    the top singular pair is projected out on both sides, which leaves an error of second order in the pair's own.
    """
    U, s, V = top_singular_triplets(X)
    _check_nonzero(s)
    R = X - U @ (U.mT @ X)
    R = (R - (R @ V) @ V.mT) / s[..., None]  # singular values s_2/s_1, s_3/s_1, ...
    gram = R @ R.mT if R.shape[-2] <= R.shape[-1] else R.mT @ R
    return gram.square().sum((-2, -1))


def _golub_kahan(M: Tensor, U_found: Tensor, V_found: Tensor, start: Tensor, tol: float):
    """Top triplet of ``M`` (b, m, n), ``m >= n``, on the complement of the triplets already found."""
    b, _, n = M.shape
    known = U_found.shape[-1]
    steps = n - known
    # Rows hold the Krylov vectors after those already found: one product orthogonalises against both.
    U, V, B = U_found.mT, V_found.mT, M.new_zeros(b, 0, 0)
    floor = torch.finfo(M.dtype).eps * torch.linalg.matrix_norm(M)  # below this a direction is rounding noise

    v, beta = _orthonormalise(start, V, torch.zeros_like(floor))
    for j in range(steps):
        if j == B.shape[-1]:  # grow by doubling: most runs need a small part of min(m, n)
            more = min(max(j, 16), steps - j)
            U, V = (torch.nn.functional.pad(X, (0, 0, 0, more)) for X in (U, V))
            B = torch.nn.functional.pad(B, (0, more, 0, more))
        if j:
            B[:, j - 1, j] = beta
        V[:, known + j] = v
        u, alpha = _orthonormalise((M @ v[..., None])[..., 0], U[:, : known + j], floor)
        v, beta = _orthonormalise((M.mT @ u[..., None])[..., 0], V[:, : known + j + 1], floor)
        U[:, known + j], B[:, j, j] = u, alpha
        last = j + 1 == steps
        if last or j % 8 == 7:
            P, theta, Qh = torch.linalg.svd(B[:, : j + 1, : j + 1])
            residual = beta * P[:, -1, 0].abs()
            if last or bool((residual <= tol * theta[:, 0]).all()):
                break
    u = (U[:, known : known + j + 1].mT @ P[:, :, :1])[..., 0]
    v = (V[:, known : known + j + 1].mT @ Qh[:, :1].mT)[..., 0]
    return u, theta[:, 0], v


def _orthonormalise(x: Tensor, basis: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` (b, n) less its part in the rows of ``basis`` (b, j, n), normalised, and its norm; zero below ``floor``."""
    for _ in range(2):  # once loses orthogonality, twice is enough (Kahan, Parlett)
        x = x - (basis.mT @ (basis @ x[..., None]))[..., 0]
    norm = x.norm(dim=-1)
    keep = norm > floor
    norm = torch.where(keep, norm, 0.0)
    return torch.where(keep[:, None], x / norm[:, None], 0.0), norm


def _check_matrix(M: Tensor) -> None:
    if not isinstance(M, Tensor) or M.ndim < 2 or not M.is_floating_point():
        given = f"{M.dtype} of shape {tuple(M.shape)}" if isinstance(M, Tensor) else type(M).__name__
        raise ValueError(f"M: got {given}; need a real floating-point tensor of shape (..., m, n)")
    if 0 in M.shape:
        raise ValueError(f"M: shape {tuple(M.shape)} has no entries")
    if not M.isfinite().all():
        raise ValueError(f"M: {int((~M.isfinite()).sum())} entries are not finite")


def _check_nonzero(s: Tensor) -> None:
    if (s == 0).any():
        raise ValueError("M: a zero matrix has no stable rank (0/0)")
