"""Weight ensembles of variance ``1/n``, drawn as matrices or only through what they do to ``k`` given vectors.

For ``W`` of shape (m, n) and given vectors, the rows of ``Phi`` of shape (k, n), a network needs the law of
``Z = Phi W^T`` and nothing else of ``W``. For every ensemble here that law depends on ``Phi`` through Gram matrices
alone, so ``Z`` costs ``O((m + n) k^2)`` and no ``m x n`` matrix is formed: the *implicit* sampler. The matrix is its
oracle.

A family of your own needs :meth:`Ensemble.matrix` only; :meth:`Ensemble.outputs` then multiplies, exact and slow, until
you override it. Everything is batched: ``Phi`` has shape (..., k, n), and each batch entry gets a ``W`` of its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.random_matrices import (
    block_grams,
    cholesky,
    contingency_table,
    frame,
    gaussian,
    gram,
    permutations,
    right_divide,
    shuffle,
    wishart,
    wishart_factor,
)


class Ensemble:
    """A law of weight matrices ``W`` of shape (m, n) with centred, uncorrelated entries of variance ``1/n``."""

    name: str = "ensemble"

    def matrix(self, m: int, n: int, generator: torch.Generator, batch: tuple[int, ...] = ()) -> Tensor:
        """Independent draws of ``W``, shape (*batch, m, n), float64."""
        raise NotImplementedError

    def outputs(self, Phi: Tensor, m: int, generator: torch.Generator, *, shuffled: bool = False) -> Tensor:
        """``Z`` distributed as ``Phi W^T``, with a fresh ``W`` for each batch entry; (..., k, n) -> (..., k, m).

        Args:
            Phi: ``k`` vectors as rows.
            m: rows of ``W``.
            generator: on the device of ``Phi``.
            shuffled: the columns of ``Phi`` are exchangeable, so that shuffling those of ``W`` would only rename them.
        """
        W = self.matrix(m, Phi.shape[-1], generator, Phi.shape[:-2])
        return (Phi.to(W.dtype) @ W.mT).to(Phi.dtype)


class RightInvariant(Ensemble):
    """An ensemble whose law no rotation of the inputs changes: ``Z`` knows ``Phi`` through ``G = Phi Phi^T = L L^T``.

    Then ``Z = M A`` with ``A`` of shape (k, m) standard Gaussian and a small matrix ``M`` that a family defines.
    """

    def mixing(self, L: Tensor, A: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """``M`` of shape (..., k, k) from the factor ``L`` of the Gram matrix, float64; it may depend on ``A``."""
        raise NotImplementedError

    def most_inputs(self, m: int, n: int) -> int:
        """Up to how many vectors ``mixing`` is defined; beyond, ``outputs`` multiplies."""
        return n

    def outputs(self, Phi, m, generator, *, shuffled=False):
        k, n = Phi.shape[-2:]
        if k > self.most_inputs(m, n):
            return super().outputs(Phi, m, generator)
        A = gaussian(*Phi.shape[:-1], m, generator=generator, dtype=Phi.dtype)
        M = self.mixing(cholesky(gram(Phi)), A, n, generator)  # k x k algebra in float64, whatever Phi is
        return M.to(A.dtype) @ A


@dataclass(frozen=True)
class Gaussian(RightInvariant):
    """``W_ij ~ N(0, 1/n)``, independent: ``M = L / sqrt(n)``."""

    name: str = "i.i.d."

    def matrix(self, m, n, generator, batch=()):
        return gaussian(*batch, m, n, generator=generator) / math.sqrt(n)

    def mixing(self, L, A, n, generator):
        return L / math.sqrt(n)


@dataclass(frozen=True)
class Orthogonal(RightInvariant):
    """Haar: the first ``m`` rows of an orthogonal ``n x n`` matrix for ``m <= n``, else ``sqrt(m/n)`` times a frame.

    With orthonormal ``Q`` of shape (k, n), ``Q O^T`` is a uniform frame of which ``m`` columns are seen:
    ``M = L chol(A A^T + S)^{-1}``, ``S ~ Wishart_k(n - m)`` for those that are not.
    """

    name: str = "orthogonal"

    def matrix(self, m, n, generator, batch=()):
        if m <= n:
            return frame(n, m, generator, batch).mT
        return math.sqrt(m / n) * frame(m, n, generator, batch)

    def mixing(self, L, A, n, generator):
        m = A.shape[-1]
        S = gram(A) + wishart(n - m, A, generator) if m < n else gram(A)
        return math.sqrt(max(m, n) / n) * right_divide(L, cholesky(S))


@dataclass(frozen=True)
class OfRank(RightInvariant):
    """An ensemble of rank ``r``.

    Args:
        rank: ``r``, or its share of ``m`` when it is a fraction below 1.
    """

    rank: float = 0.5

    def __post_init__(self):
        _check_rank(self.rank)


@dataclass(frozen=True)
class LowRank(OfRank):
    """``W = C P``: ``C`` a uniform frame of shape (m, r), ``P`` of shape (r, n) with i.i.d. N(0, m/(rn)) entries.

    ``P Phi^T`` has the Gram matrix ``(m/(rn)) L V L^T``, ``V ~ Wishart_k(r)``, and ``C`` turns it into a uniform frame
    of ``R^m``: ``M = sqrt(m/(rn)) L chol(V) chol(A A^T)^{-1}``. The cost does not depend on ``r``.
    """

    name: str = "low rank"

    def matrix(self, m, n, generator, batch=()):
        r = rank_of(self.rank, m)
        P = gaussian(*batch, r, n, generator=generator)
        return math.sqrt(m / (r * n)) * frame(m, r, generator, batch) @ P

    def mixing(self, L, A, n, generator):
        m = A.shape[-1]
        r = rank_of(self.rank, m)
        T = wishart_factor(r, A, generator)  # V = T T^T
        return math.sqrt(m / (r * n)) * right_divide(L @ T, cholesky(gram(A)))

    def most_inputs(self, m, n):
        return min(m, n)


@dataclass(frozen=True)
class GaussianProduct(OfRank):
    """``W = G_1 G_2``, as in low-rank adapters: N(0, 1/r) of shape (m, r) times N(0, 1/n) of shape (r, n).

    ``M = L chol(V) / sqrt(rn)`` with ``V ~ Wishart_k(r)``.
    """

    name: str = "product"

    def matrix(self, m, n, generator, batch=()):
        r = rank_of(self.rank, m)
        G1, G2 = (gaussian(*batch, *shape, generator=generator) for shape in ((m, r), (r, n)))
        return G1 @ G2 / math.sqrt(r * n)

    def mixing(self, L, A, n, generator):
        r = rank_of(self.rank, A.shape[-1])
        return L @ wishart_factor(r, A, generator) / math.sqrt(r * n)


@dataclass(frozen=True)
class Spectrum(RightInvariant):
    """``W = U diag(s) V^T``: uniform frames ``U`` (m, p), ``V`` (n, p), ``p = min(m, n)``, and ``sum_i s_i^2 = m``.

    ``F = Q V`` is ``p`` columns of a uniform frame, as for :class:`Orthogonal`, and ``U`` turns ``L F diag(s)`` with
    Gram matrix ``H`` into a uniform frame of ``R^m``: ``M = chol(H) chol(A A^T)^{-1}``.

    Args:
        values: ``p -> s``, shape (p,), up to scale.
    """

    values: Callable[[int], Tensor]
    name: str = "spectrum"

    def singular_values(self, m: int, n: int) -> Tensor:
        """``s``, shape (min(m, n),), with ``sum_i s_i^2 = m``."""
        p = min(m, n)
        s = torch.as_tensor(self.values(p), dtype=torch.float64)
        if s.shape != (p,) or not s.isfinite().all() or not s.any():
            raise ValueError(f"values: got shape {tuple(s.shape)}; need {p} finite numbers, not all zero")
        return s * (math.sqrt(m) / s.norm())

    def matrix(self, m, n, generator, batch=()):
        p = min(m, n)
        s = self.singular_values(m, n).to(generator.device)
        return (frame(m, p, generator, batch) * s) @ frame(n, p, generator, batch).mT

    def mixing(self, L, A, n, generator):
        m = A.shape[-1]
        s = self.singular_values(m, n).to(A)
        F = gaussian(*A.shape[:-1], len(s), generator=generator, dtype=A.dtype)
        S = gram(F) + wishart(n - len(s), A, generator) if len(s) < n else gram(F)
        LF = right_divide(L, cholesky(S))
        H = LF @ gram(F * s) @ LF.mT
        return right_divide(cholesky(H), cholesky(gram(A)))

    def most_inputs(self, m, n):
        return min(m, n)


@dataclass(frozen=True)
class BlockSparse(Ensemble):
    """``W = P_1 (M o G) P_2``: a block mask of density ``p``, Gaussian entries N(0, 1/(pn)), shuffled rows and columns.

    The ``blocks x blocks`` mask is circulant: each block row sees ``degree`` block columns. All rows then have the same
    density ``p = degree / blocks``, without which condition (iv) fails. Outputs of a block are i.i.d. given the Gram
    matrices of the block columns that it sees.

    Args:
        blocks: block rows, and block columns; both ``m`` and ``n`` are multiples of it.
        degree: block columns that a block row sees.
    """

    blocks: int = 3
    degree: int = 1
    name: str = "block sparse"

    def __post_init__(self):
        if not 1 <= self.degree <= self.blocks:
            raise ValueError(f"degree: got {self.degree}; a row of {self.blocks} blocks sees 1 to {self.blocks}")

    def matrix(self, m, n, generator, batch=()):
        self._check_shape(m, n)
        ones = torch.ones(m // self.blocks, n // self.blocks, dtype=torch.float64, device=generator.device)
        W = gaussian(*batch, m, n, generator=generator) * torch.kron(self._mask().to(ones), ones)
        W *= math.sqrt(self.blocks / (self.degree * n))
        rows, columns = (permutations(size, batch, generator) for size in (m, n))
        W = W.gather(-2, rows[..., :, None].expand(W.shape))
        return W.gather(-1, columns[..., None, :].expand(W.shape))

    def outputs(self, Phi, m, generator, *, shuffled=False, groups: int | None = None):
        """As for every ensemble; ``groups`` leaves the columns of ``Z`` sorted within each of so many equal groups.

        A next layer that only asks which column is in which group needs no more, and dealing costs less than shuffling.
        """
        n, batch = Phi.shape[-1], Phi.shape[:-2]
        self._check_shape(m, n)
        if not shuffled:
            Phi = shuffle(Phi, generator)
        G = block_grams(Phi, self.blocks)
        seen = sum((G.roll(-shift, -3) for shift in range(1, self.degree)), start=G)
        M = cholesky(seen) * math.sqrt(self.blocks / (self.degree * n))
        A = gaussian(*Phi.shape[:-1], m, generator=generator, dtype=Phi.dtype)
        M, own = M.to(A.dtype), A.unflatten(-1, (self.blocks, -1)).transpose(-2, -3)
        if groups is None:
            return shuffle((M @ own).transpose(-2, -3).flatten(-2), generator)
        counts = contingency_table(batch, self.blocks, m // self.blocks, groups, generator)
        return _sorted(M, A, counts)

    def _mask(self) -> Tensor:
        mask = torch.zeros(self.blocks, self.blocks)
        for shift in range(self.degree):
            mask += torch.eye(self.blocks).roll(shift, 1)
        return mask

    def _check_shape(self, m: int, n: int) -> None:
        if m % self.blocks or n % self.blocks:
            raise ValueError(f"m, n: got {m}, {n}; a mask of {self.blocks} blocks needs multiples of {self.blocks}")


def _sorted(M: Tensor, A: Tensor, counts: Tensor) -> Tensor:
    """``M_r a_i`` for the columns ``a_i`` of ``A``, kind by kind within each group; (..., k, m)."""
    groups, rows = counts.shape[-2:]
    place = torch.arange(A.shape[-1] // groups, device=A.device)
    ends = counts.cumsum(-1)
    Z = M[..., 0, :, :] @ A
    for r in range(1, rows):
        later = place >= ends[..., r - 1, None]  # (..., groups, m / groups)
        Z = torch.where(later.flatten(-2)[..., None, :], M[..., r, :, :] @ A, Z)
    return Z


def rank_of(rank: float, m: int) -> int:
    """``r`` from a rank or a share of ``m``; an error if ``m`` rows cannot have it."""
    r = max(1, round(rank * m)) if rank < 1 else int(rank)
    if r > m:
        raise ValueError(f"rank: got {rank}; a matrix with {m} rows has at most rank {m}")
    return r


def _check_rank(rank: float) -> None:
    if not (math.isfinite(rank) and rank > 0 and (rank < 1 or rank == int(rank))):
        raise ValueError(f"rank: got {rank}; give a whole number >= 1, or a share of the rows between 0 and 1")


FAMILIES: dict[str, Ensemble] = {
    family.name: family for family in (Gaussian(), Orthogonal(), LowRank(), GaussianProduct(), BlockSparse())
}
"""The families of the book at their default parameters."""
