"""Attention with score functions other than softmax, and attention at zero temperature, on isometric tokens and others.

A score function ``f`` turns the logits ``S``, shape (T, T), into attention in one of two ways: ``f(S) / T``, or each
row of ``f(S)`` divided by its sum. Logits have mean 0 and variance ``b^2``; ``b`` is an inverse temperature.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.attention import isometric_logits, value_factor


@dataclass(frozen=True)
class Score:
    """A score function: ``attend(S)`` is ``f(S) / T``, or for ``by_rows`` each row of ``f(S)`` divided by its sum.

    Args:
        name: for legends.
        f: acts entrywise; may jump or bend at 0, and is smooth elsewhere.
        by_rows: rows of the attention matrix sum to one.
        unit: queries and keys are scaled to length ``sqrt(d)`` first, as in cosine attention.
    """

    name: str
    f: Callable[[Tensor], Tensor]
    by_rows: bool = False
    unit: bool = False

    def attend(self, S: Tensor) -> Tensor:
        """The attention matrix of the logits ``S``, shape (..., T, T).

        Raises:
            ValueError: a row of scores without a positive sum, which cannot be normalised.
        """
        if not self.by_rows:
            return self.f(S) / S.shape[-1]
        if self.f is torch.exp:
            return torch.softmax(S, -1)  # the same ratio, which cannot overflow
        scores = self.f(S)
        totals = scores.sum(-1, keepdim=True)
        if not (totals > 0).all():
            raise ValueError(f"S: {self.name} has a row whose scores do not sum to a positive number")
        return scores / totals

    def matrix(self, T: int, d: int, b: float, generator: torch.Generator) -> Tensor:
        """Attention of ``T`` isometric tokens with keys of dimension ``d`` at initialisation, shape (T, T)."""
        return self.attend(isometric_logits(T, d, b, generator, unit=self.unit))


def linear(S: Tensor) -> Tensor:
    """``f(x) = x``: attention without a nonlinearity."""
    return S


SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Score("softmax", torch.exp, by_rows=True),
        Score("ReLU, rows sum to 1", torch.relu, by_rows=True),
        Score("ReLU / T", torch.relu),
        Score("sigmoid / T", torch.sigmoid),
        Score("tanh / T", torch.tanh),
        Score("linear / T", linear),
        Score("cosine / T", linear, unit=True),
    )
}
"""The score functions of the book. Cosine attention is ``b sqrt(d) cos(q_i, k_j) / T``; only its scale depends on b."""


def direction_logits(T: int, d: int, b: float, generator: torch.Generator, d_qk: int | None = None) -> Tensor:
    """Logits ``X W_Q W_K^T X^T / sqrt(d_qk)`` in law, (T, T), for tokens of independent directions.

    The rows of ``X``, shape (T, d), are standard Gaussian and scaled to length 1; ``W_Q, W_K`` have i.i.d. N(0, b)
    entries. With ``X = Y O``, ``O`` of orthonormal rows, this is ``Y S Y^T``, ``S`` the logits of isometric tokens, and
    ``Y`` takes ``min(T, d)`` columns: no ``T x d`` or ``d x d`` matrix is formed for ``d > T``.

    Args:
        d_qk: columns of ``W_Q`` and ``W_K``; ``d`` unless given.
    """
    Y = value_factor(T, d, generator)
    Y /= Y.norm(dim=-1, keepdim=True)
    S = isometric_logits(Y.shape[-1], d if d_qk is None else d_qk, b, generator)
    return Y @ S @ Y.mT


def hard_attention(S: Tensor) -> Tensor:
    """Softmax at ``b = inf``: row ``i`` is 1 at its largest logit, 0 elsewhere; shape (..., T, T)."""
    return torch.zeros_like(S).scatter_(-1, S.argmax(-1, keepdim=True), 1.0)


def hard_attention_values(S: Tensor, k: int = 2) -> Tensor:
    """``k`` largest singular values of :func:`hard_attention` without a factorisation, shape (k,).

    Its columns have disjoint supports, so ``A^T A`` is diagonal: the singular values are the square roots of how many
    rows each column wins.
    """
    T = S.shape[-1]
    if S.ndim != 2 or not 1 <= k <= T:
        raise ValueError(f"S, k: got shape {tuple(S.shape)} and k = {k}; need one (T, T) matrix and 1 <= k <= T")
    wins = torch.bincount(S.argmax(-1), minlength=T)
    return wins.double().topk(k).values.sqrt()
