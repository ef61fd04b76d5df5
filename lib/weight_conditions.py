"""What the pseudo-iid conditions ask of a weight ensemble: fourth and eighth moments, exact or estimated.

Condition (iv) speaks of products of two pairs of entries in two columns, condition (iii) of ``E |a . W_1|^8``. Both are
taken times the power of ``n`` that makes independent N(0, 1/n) weights give 1, 0, 1 and 105.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lib.ensembles import BlockSparse, Ensemble, Gaussian, GaussianProduct, LowRank, Orthogonal, Spectrum, rank_of


@dataclass(frozen=True)
class FourthMoments:
    """``n^2 E[...]`` for entries in the columns ``j != j'``; tensors hold one value a draw.

    - ``same_row``: ``W_1j^2 W_1j'^2``, and ``crossed``: ``W_1j W_2j W_1j' W_2j'``; condition (iv) asks for the limits
      1 and 0;
    - ``two_rows``: ``W_1j^2 W_2j'^2``, limit 1;
    - ``entry``: ``W_1j^4``, and ``column``: ``W_1j^2 W_2j^2``, on which (iv) puts no bound.
    """

    same_row: float | Tensor
    crossed: float | Tensor
    two_rows: float | Tensor
    entry: float | Tensor
    column: float | Tensor


def invariant_moments(m: int, n: int, square_of_trace: float, trace_of_square: float) -> FourthMoments:
    """Fourth moments of a law of ``W`` that no rotation on either side changes, exact at every size.

    ``E W_{i1 j1} ... W_{i4 j4} = sum_{p, q} 1[i ~ p] 1[j ~ q] c(p, q)`` over the three pairings ``p``, ``q`` of four
    indices, ``c = Wg_m H Wg_n``: the Weingarten matrices of ``O(m)`` and ``O(n)``, and ``H = E (tr W W^T)^2`` on the
    diagonal, ``E tr (W W^T)^2`` off it.

    Args:
        square_of_trace: ``E (tr W W^T)^2``.
        trace_of_square: ``E tr (W W^T)^2``.
    """
    if min(m, n) < 2:
        raise ValueError(f"m, n: got {m}, {n}; two rows and two columns are compared")
    eye, ones = torch.eye(3, dtype=torch.float64), torch.ones(3, 3, dtype=torch.float64)

    def weingarten(d: int) -> Tensor:
        return ((d + 2) * eye - ones) / (d * (d - 1) * (d + 2))

    H = square_of_trace * eye + trace_of_square * (ones - eye)
    c = n**2 * weingarten(m) @ H @ weingarten(n)
    same, other = float(c[0, 0]), float(c[0, 1])
    return FourthMoments(same + 2 * other, other, same, 3 * same + 6 * other, same + 2 * other)


def exact_moments(ensemble: Ensemble, m: int, n: int) -> FourthMoments:
    """Fourth moments of a family of the book in closed form.

    Raises:
        ValueError: a family without one; see :func:`estimated_moments`.
    """
    match ensemble:
        case Gaussian():
            return FourthMoments(1.0, 0.0, 1.0, 3.0, 1.0)
        case Orthogonal():
            p = min(m, n)
            return invariant_moments(m, n, m**2, m**2 / p)
        case LowRank():  # the singular values are those of P, up to scale
            r = rank_of(ensemble.rank, m)
            return invariant_moments(m, n, (m / (r * n)) ** 2 * r * n * (r * n + 2), m**2 * (r + n + 1) / (r * n))
        case GaussianProduct():
            r = rank_of(ensemble.rank, m)
            # Given G_1, the entries of G_1 G_2 are N(0, G_1 G_1^T / n): Wick's formula twice.
            tr2 = m**2 + 2 * m / r  # E (tr G_1 G_1^T)^2
            sq = m * (m + r + 1) / r  # E tr (G_1 G_1^T)^2
            return invariant_moments(m, n, tr2 + 2 * sq / n, tr2 / n + sq * (1 + 1 / n))
        case Spectrum():
            return invariant_moments(m, n, m**2, float(ensemble.singular_values(m, n).pow(4).sum()))
        case BlockSparse():
            p = ensemble.degree / ensemble.blocks
            b, s = p * n, (p * m - 1) / (m - 1)  # entries in a row; chance that a column of one row is in another
            return FourthMoments((b - 1) / (p * (n - 1)), 0.0, (b - s) / (p * (n - 1)), 3 / p, s / p)
    raise ValueError(f"ensemble: no closed form for {ensemble.name}; use estimated_moments")


def estimated_moments(W: Tensor, n: int | None = None) -> FourthMoments:
    """The same from draws of ``W``, shape (draws, m, n): averages over all rows and columns, one value a draw.

    They are unbiased for a law that is exchangeable over rows and over columns.

    Args:
        n: columns of the whole matrix, where ``W`` holds only some of them: two are enough.
    """
    _check_draws(W)
    _, m, columns_drawn = W.shape
    n = columns_drawn if n is None else n
    if n < columns_drawn:
        raise ValueError(f"n: got {n}; the whole matrix has at least the {columns_drawn} columns of W")
    S = W.square()
    entry, rows, columns = S.square().sum((-2, -1)), S.sum(-1), S.sum(-2)
    in_rows, in_columns = rows.square().sum(-1), columns.square().sum(-1)
    gram = W @ W.mT if m <= columns_drawn else W.mT @ W  # of the same norm; the smaller one
    crossed = gram.square().sum((-2, -1)) - in_rows - in_columns + entry
    two_rows = S.sum((-2, -1)).square() - in_rows - in_columns + entry
    row_pairs, column_pairs = m * (m - 1), columns_drawn * (columns_drawn - 1)
    return FourthMoments(
        same_row=n**2 * (in_rows - entry) / (m * column_pairs),
        crossed=n**2 * crossed / (row_pairs * column_pairs),
        two_rows=n**2 * two_rows / (row_pairs * column_pairs),
        entry=n**2 * entry / (m * columns_drawn),
        column=n**2 * (in_columns - entry) / (columns_drawn * row_pairs),
    )


def estimated_second_moments(W: Tensor) -> dict[str, Tensor]:
    """What condition (ii) speaks of, from draws of ``W``, shape (draws, m, n): one value a draw, unbiased as above.

    ``sqrt(n) E W_11`` (mean), ``n E W_11^2 - 1`` (variance), and ``n E`` of ``W_11 W_12`` (same row), of
    ``W_11 W_21`` (same column), of ``W_11 W_22`` (apart). All are 0 if the entries are centred and uncorrelated with
    variance ``1/n``.
    """
    _check_draws(W)
    _, m, n = W.shape
    total, squares = W.sum((-2, -1)), W.square().sum((-2, -1))
    in_rows, in_columns = W.sum(-1).square().sum(-1), W.sum(-2).square().sum(-1)
    return {
        "mean": total / (m * math.sqrt(n)),
        "variance": squares / m - 1,
        "same row": (in_rows - squares) / (m * (n - 1)),
        "same column": (in_columns - squares) / (m * (m - 1)),
        "apart": (total.square() - in_rows - in_columns + squares) / (m * (m - 1) * (n - 1)),
    }


def eighth_moment(ensemble: Ensemble, m: int, n: int) -> tuple[float, float]:
    """``n^4 E |a . W_1|^8 / ||a||^8``: least and largest value over ``a``, which agree but for block sparse weights.

    Condition (iii) asks that it be bounded as ``n`` grows. Independent Gaussian weights give 105 for every ``a``.
    """
    match ensemble:
        case Gaussian():
            value = 105.0
        case Orthogonal():
            value = 105 / _growth(max(m, n))
        case LowRank():
            value = 105 * _growth(rank_of(ensemble.rank, m)) / _growth(m)
        case GaussianProduct():
            value = 105 * _growth(rank_of(ensemble.rank, m))
        case Spectrum():  # E (g^T D g)^4 from the cumulants of a quadratic form of a Gaussian vector
            powers = [float(ensemble.singular_values(m, n).pow(2 * k).sum()) for k in range(1, 5)]
            k1, k2, k3, k4 = (2**k * math.factorial(k) * power for k, power in enumerate(powers))
            fourth = k4 + 4 * k3 * k1 + 3 * k2**2 + 6 * k2 * k1**2 + k1**4
            value = 105 * fourth / (m**4 * _growth(m) * _growth(n))
        case BlockSparse():  # a flat vector, by Jensen's inequality; one entry, by convexity
            p = ensemble.degree / ensemble.blocks
            return 105.0, 105 / p**3
        case _:
            raise ValueError(f"ensemble: no closed form for {ensemble.name}; draw matrices and average")
    return value, value


def estimated_eighth_moment(W: Tensor, a: Tensor) -> Tensor:
    """``n^4 E |a . W_1|^8 / ||a||^8`` for one ``a``, from draws of ``W``, shape (draws, m, n): one value a draw.

    For a law that no rotation from the left changes. ``W a`` then has a uniform direction, whose first entry has an
    eighth moment ``105 / (m(m+2)(m+4)(m+6))``. What is left to average is ``||W a||^8``, with far lighter tails than
    ``|a . W_1|^8``.
    """
    _check_draws(W)
    _, m, n = W.shape
    a = a.to(W)
    squared = (W @ a).square().sum(-1) * (n / (m * float(a.square().sum())))
    return 105 * squared.pow(4) / _growth(m)


class RowMoments(NamedTuple):
    """Joint moments of ``X_j = n W_1j^2``, for a row that no permutation or change of sign of its entries changes."""

    x4: float  # E X_1^4
    x31: float  # E X_1^3 X_2
    x22: float  # E X_1^2 X_2^2
    x211: float  # E X_1^2 X_2 X_3
    x1111: float  # E X_1 X_2 X_3 X_4

    @classmethod
    def independent(cls, fourth: float, sixth: float, eighth: float) -> "RowMoments":
        """Independent entries of variance ``1/n`` with these moments of ``sqrt(n) W_11``."""
        return cls(eighth, sixth, fourth**2, fourth, 1.0)

    @classmethod
    def block_sparse(cls, ensemble: BlockSparse, n: int) -> "RowMoments":
        """``pn`` entries N(0, 1/(pn)) at random places, the others zero."""
        p = ensemble.degree / ensemble.blocks
        inside = [math.prod((p * n - j) / (n - j) for j in range(k)) / p**4 for k in range(1, min(4, n) + 1)]
        one, two, three, four = inside + [0.0] * (4 - len(inside))
        return cls(105 * one, 15 * two, 9 * two, 3 * three, four)


def eighth_moment_along(a: Tensor, row: RowMoments) -> float:
    """``n^4 E |a . W_1|^8 / ||a||^8`` for one vector ``a`` of shape (n,), exact.

    ``sum_k c_k E[X_1^k1 X_2^k2 ...] S_k`` over the partitions ``k`` of 4: ``S_k`` sums ``x_j1^k1 x_j2^k2 ...`` over
    different indices, ``x_j = a_j^2 / ||a||^2``, and ``c_k`` counts the ways to put 8 factors into such groups.
    """
    x = a.double().square()
    if not 0 < float(x.sum()) < math.inf:
        raise ValueError("a: need a finite vector that is not zero")
    p2, p3, p4 = ((x / x.sum()).pow(k).sum().item() for k in (2, 3, 4))  # power sums; the first is 1
    sums = (p4, p3 - p4, p2**2 - p4, p2 - 2 * p3 - p2**2 + 2 * p4, 1 - 6 * p2 + 3 * p2**2 + 8 * p3 - 6 * p4)
    return sum(c * moment * total for c, moment, total in zip((1, 28, 35, 210, 105), row, sums, strict=True))


def _growth(d: int) -> float:
    """``E (chi^2_d)^4 / d^4``."""
    return (1 + 2 / d) * (1 + 4 / d) * (1 + 6 / d)


def _check_draws(W: Tensor) -> None:
    if W.ndim != 3 or min(W.shape[1:]) < 2:
        raise ValueError(f"W: got shape {tuple(W.shape)}; need draws of at least 2 x 2, shape (draws, m, n)")
