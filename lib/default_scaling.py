"""Attention with queries and keys of the default (Xavier) scale: how far from uniform it is.

``W_Q, W_K`` of i.i.d. N(0, 1/d) entries on isometric tokens give logits ``M = Q K^T / d^{3/2}``, ``Q, K`` of shape
(T, d) standard Gaussian: of size ``1/d``. To first order ``A = 1 1^T / T + (M - row means) / T``.
"""

import math

from lib.laws import FreePower


def xavier_gap(gamma: float) -> float:
    """``gamma sqrt(edge)``: the limit of ``T^{3/2} s_2(A)``, with the edge of ``FreePower(1, gamma)``.

    The squared singular values of ``Q K^T / sqrt(d T)`` are those of a ``T x T`` Gaussian factor times one of ratio
    ``gamma = T/d``, each of mean 1: ``FreePower(1, gamma)``. At ``gamma = 1`` the edge is 27/4, the Fuss-Catalan law of
    order 2, and the limit is ``sqrt(27/4) = 2.598``.
    """
    return _check(gamma) * math.sqrt(FreePower(1, gamma).edge)


def xavier_gap_at(T: int, gamma: float) -> float:
    """Mean of ``T^{3/2} s_2(A)`` at finite ``T``, up to terms of order 1/T: the edge at its Tracy-Widom mean.

    Row means and the direction of ``s_1`` take one dimension from the keys and one from the queries, hence ``T - 1``.
    """
    if int(T) != T or T < 3:
        raise ValueError(f"T: got {T}; need an integer >= 3")
    n = T - 1
    return _check(gamma) * math.sqrt(n / T * FreePower(1, gamma * n / T).edge_at(n))


def independent_gap(gamma: float) -> float:
    """``2 gamma``: the same limit if the logits were independent, a quarter circle."""
    return 2 * _check(gamma)


def _check(gamma: float) -> float:
    if not (math.isfinite(gamma) and gamma > 0):
        raise ValueError(f"gamma: got {gamma}; the ratio T/d is finite and > 0")
    return gamma
