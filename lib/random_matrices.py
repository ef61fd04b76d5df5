"""Draws and factorisations of small random matrices, shared by all samplers; batched, and float64 unless asked."""

import numpy as np
import torch
from torch import Tensor


def frame(m: int, k: int, generator: torch.Generator, batch: tuple[int, ...] = ()) -> Tensor:
    """Uniform orthonormal frame: ``m x k``, ``C^T C = I``; Haar for ``k = m``. Shape (*batch, m, k)."""
    if k > m:
        raise ValueError(f"k: got {k}; R^{m} holds at most {m} orthonormal vectors")
    Q, R = torch.linalg.qr(gaussian(*batch, m, k, generator=generator))
    return Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]  # the signs make it Haar


def gram(X: Tensor) -> Tensor:
    """``X X^T`` in float64; (..., k, n) -> (..., k, k)."""
    X = X.double()
    return X @ X.mT


def block_grams(X: Tensor, blocks: int) -> Tensor:
    """Gram matrices of equal blocks of columns; (..., k, n) -> (..., blocks, k, k)."""
    parts = X.unflatten(-1, (blocks, -1)).transpose(-2, -3)
    # Contiguous, since products of strided batches are slow.
    return gram(parts.to(torch.float64, memory_format=torch.contiguous_format))


def cholesky(G: Tensor) -> Tensor:
    """Lower-triangular ``L`` with ``L L^T = G`` for positive *semi*-definite ``G``, shape (..., k, k).

    A pivot that is zero up to rounding gives a zero column: equal inputs, or a layer that is all zero, are no error.
    """
    floor = 8 * torch.finfo(G.dtype).eps * G.diagonal(dim1=-2, dim2=-1)
    L, failed = torch.linalg.cholesky_ex(G)
    if not failed.any() and bool((L.diagonal(dim1=-2, dim2=-1).square() > floor).all()):
        return L
    L = torch.zeros_like(G)
    for j in range(G.shape[-1]):
        column = G[..., j:, j] - (L[..., j:, :j] @ L[..., j, :j, None])[..., 0]
        pivot = column[..., 0]
        keep = pivot > floor[..., j]
        scale = torch.where(keep, pivot, 1.0).rsqrt()
        L[..., j:, j] = torch.where(keep[..., None], column * scale[..., None], 0.0)
    return L


def right_divide(X: Tensor, L: Tensor) -> Tensor:
    """``X L^{-1}`` for lower-triangular ``L``."""
    return torch.linalg.solve_triangular(L, X, upper=False, left=False)


def wishart_factor(freedom: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Lower-triangular ``T``, ``T T^T = N N^T`` for ``N`` of shape (k, freedom) standard Gaussian; float64 (..., k, k).

    Bartlett's factor; with fewer columns than ``k``, ``N`` is drawn itself.

    Args:
        freedom: columns of ``N``.
        like: shape (..., k, m): the batch and ``k``.
    """
    *batch, k, _ = like.shape
    if freedom < k:
        return cholesky(gram(gaussian(*batch, k, freedom, generator=generator)))
    T = gaussian(*batch, k, k, generator=generator).tril_(-1)
    chi2 = freedom - torch.arange(k, dtype=torch.float64, device=generator.device)
    chi = torch._standard_gamma(chi2.expand(*batch, k) / 2, generator=generator).mul_(2).sqrt_()
    T.diagonal(dim1=-2, dim2=-1).copy_(chi)
    return T


def wishart(freedom: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """``N N^T`` for ``N`` of shape (k, freedom) standard Gaussian; arguments of :func:`wishart_factor`."""
    T = wishart_factor(freedom, like, generator)
    return T @ T.mT


def gaussian(*shape: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard Gaussian tensor on the generator's device."""
    return torch.randn(*shape, dtype=dtype, device=generator.device, generator=generator)


def contingency_table(batch: tuple[int, ...], rows: int, size: int, groups: int, generator: torch.Generator) -> Tensor:
    """How many of the ``size`` members of each of ``rows`` kinds fall into each of ``groups`` equal random groups.

    Sequential hypergeometric draws; shape (*batch, groups, rows), sums ``size`` over groups, ``rows size / groups``
    over rows.
    """
    if rows * size % groups:
        raise ValueError(f"groups: got {groups}; it divides the number of outputs, {rows * size}")
    rng = _numpy(generator)
    table = np.zeros((*batch, groups, rows), dtype=np.int64)
    room = np.full((*batch, groups), rows * size // groups)
    for row in range(rows - 1):  # the last row takes the room that is left
        left, pool = np.full(batch, size), room.sum(-1)
        for group in range(groups - 1):
            pool = pool - room[..., group]
            table[..., group, row] = rng.hypergeometric(room[..., group], pool, left)
            left = left - table[..., group, row]
        table[..., -1, row] = left
        room -= table[..., row]
    table[..., -1] = room
    return torch.from_numpy(table).to(generator.device)


def shuffle(Z: Tensor, generator: torch.Generator) -> Tensor:
    """The columns of each ``Z`` of shape (k, n) in a random order of its own; shape (..., k, n)."""
    if Z.device.type != "cpu":
        order = permutations(Z.shape[-1], Z.shape[:-2], generator)
        return Z.gather(-1, order[..., None, :].expand(Z.shape))
    # NumPy shuffles whole columns in place, as opaque items: five times faster than sorting random keys.
    columns = Z.mT.contiguous()
    items = columns.numpy().view(f"V{columns.shape[-1] * columns.itemsize}")[..., 0]
    _numpy(generator).permuted(items, axis=-1, out=items)
    return columns.mT.contiguous()


def _numpy(generator: torch.Generator) -> np.random.Generator:
    """A NumPy generator that descends from a torch one, for what torch cannot draw."""
    return np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device)))


def permutations(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(*batch, n, dtype=torch.float64, device=generator.device, generator=generator).argsort(-1)
