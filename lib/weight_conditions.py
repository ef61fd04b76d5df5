"""What the pseudo-iid conditions ask of a weight ensemble: fourth and eighth moments, exact or estimated.

Condition (iv) speaks of products of two pairs of entries in two columns, condition (iii) of ``E |a . W_1|^8``. Both are
taken times the power of ``n`` that makes independent N(0, 1/n) weights give 1, 0, 1 and 105.
"""

from dataclasses import dataclass

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
            return invariant_moments(m, n, m**2 + 2 * m / n, m * (m + n + 1) / n)
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


def estimated_moments(W: Tensor) -> FourthMoments:
    """The same from draws of ``W``, shape (draws, m, n): averages over all rows and columns, one value a draw.

    They are unbiased for a law that is exchangeable over rows and over columns.
    """
    if W.ndim != 3 or min(W.shape[1:]) < 2:
        raise ValueError(f"W: got shape {tuple(W.shape)}; need draws of at least 2 x 2, shape (draws, m, n)")
    _, m, n = W.shape
    S = W.square()
    entry, rows, columns = S.square().sum((-2, -1)), S.sum(-1), S.sum(-2)
    in_rows, in_columns = rows.square().sum(-1), columns.square().sum(-1)
    gram = W @ W.mT
    crossed = gram.square().sum((-2, -1)) - in_rows - in_columns + entry
    two_rows = S.sum((-2, -1)).square() - in_rows - in_columns + entry
    row_pairs, column_pairs = m * (m - 1), n * (n - 1)
    return FourthMoments(
        same_row=n**2 * (in_rows - entry) / (m * column_pairs),
        crossed=n**2 * crossed / (row_pairs * column_pairs),
        two_rows=n**2 * two_rows / (row_pairs * column_pairs),
        entry=n**2 * entry / (m * n),
        column=n**2 * (in_columns - entry) / (n * row_pairs),
    )


def eighth_moment(ensemble: Ensemble, m: int, n: int) -> tuple[float, float]:
    """``n^4 E |a . W_1|^8 / ||a||^8``: least and largest value over ``a``, which agree but for block sparse weights.

    Condition (iii) asks that it be bounded as ``n`` grows. Independent Gaussian weights give 105 for every ``a``.
    """

    def grows(d: int) -> float:
        return (1 + 2 / d) * (1 + 4 / d) * (1 + 6 / d)

    match ensemble:
        case Gaussian():
            value = 105.0
        case Orthogonal():
            value = 105 / grows(max(m, n))
        case LowRank():
            value = 105 * grows(rank_of(ensemble.rank, m)) / grows(m)
        case GaussianProduct():
            value = 105 * grows(rank_of(ensemble.rank, m))
        case BlockSparse():  # a flat vector, by Jensen's inequality; one entry, by convexity
            p = ensemble.degree / ensemble.blocks
            return 105.0, 105 / p**3
        case _:
            raise ValueError(f"ensemble: no closed form for {ensemble.name}; draw matrices and average")
    return value, value
