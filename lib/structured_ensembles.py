"""Structured weight ensembles: Kronecker products, butterflies, signed Hadamard transforms, pruned matrices.

They cost fewer random numbers and, but for pruning, fewer operations than independent weights. None of them is
exchangeable as it is: :class:`Shuffled` makes any ensemble so. The fourth moments of the shuffled ensembles are known
in closed form, because the five sums that they are made of (:class:`Sums`) are.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.ensembles import FAMILIES, Ensemble
from lib.random_matrices import gaussian, shuffle
from lib.weight_conditions import FourthMoments, exact_moments


@dataclass(frozen=True)
class Shuffled(Ensemble):
    """``P_1 W P_2``: the rows and the columns of ``W``, each in a uniformly random order.

    Makes any ensemble exchangeable, condition (i), and leaves averages over rows and columns as they are.
    """

    of: Ensemble

    @property
    def name(self) -> str:
        return self.of.name

    def matrix(self, m, n, generator, batch=()):
        W = self.of.matrix(m, n, generator, batch)
        return shuffle(shuffle(W, generator).mT.contiguous(), generator).mT

    def outputs(self, Phi, m, generator, *, shuffled=False):
        if not shuffled:
            Phi = shuffle(Phi, generator)
        return shuffle(self.of.outputs(Phi, m, generator), generator)


@dataclass(frozen=True)
class Kronecker(Ensemble):
    """``W = A (x) B`` with independent ``A`` of shape (m_1, n_1) and ``B`` of shape (m_2, n_2).

    ``W`` acts on a vector cut into ``n_1`` pieces of ``n_2`` as ``A X B^T``: ``O(n^{3/2})`` operations.

    Args:
        size: ``m_2 = n_2``; by default the shapes of ``A`` and ``B`` are as nearly equal as the divisors of
            ``m`` and ``n`` allow.
        first, second: the ensembles of ``A`` and of ``B``.
    """

    size: int | None = None
    first: Ensemble = FAMILIES["i.i.d."]
    second: Ensemble = FAMILIES["i.i.d."]
    name: str = "Kronecker"

    def matrix(self, m, n, generator, batch=()):
        (m1, n1), (m2, n2) = self.shapes(m, n)
        A, B = self.first.matrix(m1, n1, generator, batch), self.second.matrix(m2, n2, generator, batch)
        return (A[..., :, None, :, None] * B[..., None, :, None, :]).reshape(*batch, m, n)

    def outputs(self, Phi, m, generator, *, shuffled=False):
        (m1, n1), (m2, n2) = self.shapes(m, Phi.shape[-1])
        A = self.first.matrix(m1, n1, generator, Phi.shape[:-2]).to(Phi.dtype)
        B = self.second.matrix(m2, n2, generator, Phi.shape[:-2]).to(Phi.dtype)
        X = Phi.unflatten(-1, (n1, n2))
        return (A[..., None, :, :] @ X @ B[..., None, :, :].mT).flatten(-2)

    def shapes(self, m: int, n: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """``(m_1, n_1), (m_2, n_2)``."""
        m2, n2 = (_half(d) if self.size is None else self.size for d in (m, n))
        if m % m2 or n % n2:
            raise ValueError(f"m, n: got {m}, {n}; a factor of size {self.size} needs multiples of it")
        return (m // m2, n // n2), (m2, n2)


def _half(n: int) -> int:
    """The largest divisor of ``n`` that is at most ``sqrt(n)``."""
    return next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)


class Transform(Ensemble):
    """An ensemble defined by :meth:`outputs`: its matrix is what it makes of the unit vectors."""

    def matrix(self, m, n, generator, batch=()):
        eye = torch.eye(n, dtype=torch.float64, device=generator.device).expand(*batch, n, n)
        return self.outputs(eye, m, generator).mT


@dataclass(frozen=True)
class Butterfly(Transform):
    """``W = B_1 B_2 ... B_L``, ``n = 2^L``: factor ``s`` mixes the pairs of indices that differ in their bit ``s``.

    Each pair has a random 2 x 2 block of its own, ``n L / 2`` of them: rotations by a uniform angle, which make ``W``
    orthogonal, or independent N(0, 1/2) entries. ``O(n log n)`` operations.
    """

    gaussian: bool = False

    @property
    def name(self) -> str:
        return "butterfly, Gaussian" if self.gaussian else "butterfly, rotations"

    def outputs(self, Phi, m, generator, *, shuffled=False):
        *batch, k, n = Phi.shape
        _check_power_of_two(m, n)
        Z = Phi
        for level in range(n.bit_length() - 1):
            B = self._blocks((*batch, n // 2), generator).to(Phi.dtype)
            Z = Z.reshape(*batch, k, n >> (level + 1), 2, 1 << level)
            B = B.reshape(*batch, 1, n >> (level + 1), 1 << level, 2, 2)
            a, b = Z.unbind(-2)
            Z = torch.stack([B[..., i, 0] * a + B[..., i, 1] * b for i in range(2)], -2)
        return Z.reshape(Phi.shape)

    def _blocks(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if self.gaussian:
            return gaussian(*shape, 2, 2, generator=generator) / math.sqrt(2)
        t = 2 * math.pi * torch.rand(shape, dtype=torch.float64, device=generator.device, generator=generator)
        c, s = t.cos(), t.sin()
        return torch.stack([c, -s, s, c], -1).unflatten(-1, (2, 2))


@dataclass(frozen=True)
class SignedHadamard(Transform):
    """``W = H D_k ... H D_1``: Walsh-Hadamard transforms, orthogonal, and diagonals of independent random signs.

    ``k n`` random bits and ``O(k n log n)`` operations. ``n`` is a power of 2.

    Source: Yu et al. (2016) for three rounds, as random features.

    Args:
        rounds: ``k``.
    """

    rounds: int = 1
    name: str = "signed Hadamard"

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError(f"rounds: got {self.rounds}; need an integer >= 1")

    def outputs(self, Phi, m, generator, *, shuffled=False):
        *batch, _, n = Phi.shape
        _check_power_of_two(m, n)
        Z = Phi
        for _ in range(self.rounds):
            signs = torch.randint(2, (*batch, 1, n), generator=generator, device=generator.device)
            Z = hadamard(Z * (2 * signs - 1)) / math.sqrt(n)
        return Z


def hadamard(X: Tensor) -> Tensor:
    """Walsh-Hadamard transform of the last axis, entries +-1; ``n`` a power of 2, ``O(n log n)``."""
    shape, n = X.shape, X.shape[-1]
    for level in range(n.bit_length() - 1):
        a, b = X.reshape(*shape[:-1], -1, 2, 1 << level).unbind(-2)
        X = torch.stack([a + b, a - b], -2)
    return X.reshape(shape)


@dataclass(frozen=True)
class Pruned(Ensemble):
    """Independent Gaussian entries of which only those with ``|G_ij| > t`` are kept, rescaled to variance ``1/n``.

    Args:
        density: ``p = P(|G| > t)``, the share that is kept.
    """

    density: float = 0.1
    name: str = "pruned"

    def __post_init__(self):
        if not 0 < self.density <= 1:
            raise ValueError(f"density: got {self.density}; a share of the entries is > 0 and at most 1")

    def matrix(self, m, n, generator, batch=()):
        G = gaussian(*batch, m, n, generator=generator)
        return G * (G.abs() > self.threshold) / math.sqrt(n * self.kept(2))

    @property
    def threshold(self) -> float:
        """``t``."""
        return float(-torch.special.ndtri(torch.tensor(self.density / 2, dtype=torch.float64)))

    def kept(self, power: int) -> float:
        """``e_k = E[G^k; |G| > t]`` for even ``k``, by parts: ``e_k = 2 t^{k-1} phi(t) + (k - 1) e_{k-2}``."""
        if power == 0:
            return self.density
        t = self.threshold
        normal = math.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
        return 2 * t ** (power - 1) * normal + (power - 1) * self.kept(power - 2)


@dataclass(frozen=True)
class Sums:
    """Expectations of the five sums that fourth moments consist of; those of ``A (x) B`` are products.

    ``entries``: ``sum W_ij^4``; ``rows``: ``sum_i (sum_j W_ij^2)^2``; ``columns``: the same for columns;
    ``gram``: ``||W W^T||_F^2``; ``total``: ``||W||_F^4``.
    """

    entries: float
    rows: float
    columns: float
    gram: float
    total: float

    @classmethod
    def of(cls, moments: FourthMoments, m: int, n: int) -> "Sums":
        entries = m / n * moments.entry
        rows = m * (n - 1) / n * moments.same_row + entries
        columns = m * (m - 1) / n * moments.column + entries
        pairs = m * (m - 1) * (n - 1) / n
        twice = rows + columns - entries  # what the last two share with them
        return cls(entries, rows, columns, pairs * moments.crossed + twice, pairs * moments.two_rows + twice)

    def moments(self, m: int, n: int) -> FourthMoments:
        """The inverse of :meth:`of`."""
        pairs = m * (m - 1) * (n - 1) / n
        twice = self.rows + self.columns - self.entries
        return FourthMoments(
            same_row=(self.rows - self.entries) * n / (m * (n - 1)),
            crossed=(self.gram - twice) / pairs,
            two_rows=(self.total - twice) / pairs,
            entry=self.entries * n / m,
            column=(self.columns - self.entries) * n / (m * (m - 1)),
        )


def orthogonal_moments(n: int, entry: float) -> FourthMoments:
    """Fourth moments of *every* shuffled ensemble of orthogonal ``n x n`` matrices, by ``entry = n^2 E W_11^4``.

    ``same_row = (n - entry)/(n - 1)``, ``crossed = -(n - entry)/(n - 1)^2``: condition (iv) holds iff ``entry = o(n)``.
    """
    return Sums(entry, n, n, n, n**2).moments(n, n)


def structured_moments(ensemble: Ensemble, m: int, n: int) -> FourthMoments:
    """Fourth moments in closed form of the ensembles here, shuffled, and of the families of the book.

    Raises:
        ValueError: an ensemble without one.
    """
    match ensemble:
        case Shuffled():
            return structured_moments(ensemble.of, m, n)
        case Kronecker():
            shapes = ensemble.shapes(m, n)
            A, B = (
                Sums.of(_moments_of_factor(e, *shape), *shape)
                for e, shape in zip((ensemble.first, ensemble.second), shapes, strict=True)
            )
            products = (a * b for a, b in zip(dataclasses.astuple(A), dataclasses.astuple(B), strict=True))
            return Sums(*products).moments(m, n)
        case Butterfly(gaussian=False):  # n^2 E W^4 = (4 E cos^4)^L = (3/2)^L
            _check_power_of_two(m, n)
            return orthogonal_moments(n, 1.5 ** (n.bit_length() - 1))
        case Butterfly():
            _check_power_of_two(m, n)
            return _gaussian_butterfly(n).moments(n, n)
        case SignedHadamard():  # given the other rounds, an entry is a sum of n random signs times +-v_k/sqrt(n)
            _check_power_of_two(m, n)
            entry = 1.0
            for _ in range(ensemble.rounds - 1):
                entry = 3 - 2 * entry / n
            return orthogonal_moments(n, entry)
        case Pruned():
            return FourthMoments(1.0, 0.0, 1.0, ensemble.kept(4) / ensemble.kept(2) ** 2, 1.0)
    return exact_moments(ensemble, m, n)


def _moments_of_factor(ensemble: Ensemble, m: int, n: int) -> FourthMoments:
    if min(m, n) < 2:
        raise ValueError(f"m, n: a Kronecker factor of shape {(m, n)}; two rows and two columns are compared")
    return structured_moments(ensemble, m, n)


def _gaussian_butterfly(n: int) -> Sums:
    """By recursion: ``W = [[D_1 A, D_2 B], [D_3 A, D_4 B]]`` with N(0, 1/2) diagonals and independent ``A``, ``B``."""
    s = Sums(1.0, 1.0, 1.0, 1.0, 1.0)
    for level in range(n.bit_length() - 1):
        half = 1 << level
        s = Sums(
            entries=3 * s.entries,
            rows=3 * s.rows + half,
            columns=2 * (s.columns + s.entries),
            gram=2 * s.gram + 2 * s.rows + half,
            total=2 * (s.total + half**2 + s.rows),
        )
    return s


def _check_power_of_two(m: int, n: int) -> None:
    if m != n or n < 2 or n & (n - 1):
        raise ValueError(f"m, n: got {m}, {n}; need m = n, a power of 2")
