"""Attention blocks at initialisation in the paper's variants: the fix, skips and LayerNorm, at any depth and scale.

One block is ``X_l = LN(X_{l-1} + c A_l X_{l-1} W_l)``, where the skip and ``LN`` may be absent and ``A_l`` may be fixed
or ``A_l(X_{l-1})``, with or without the fix. Values of unit variance multiply ``X`` by ``sqrt(d)`` a layer, and the fix
cubes small tokens, so tokens travel as ``X = e^s Y`` and no depth overflows or underflows.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lib.attention import EntryLaw, markov_matrix, remove_gap

SKIPS = ("none", "plain", "upscaled")


@dataclass(frozen=True)
class Variant:
    """What surrounds the attention of a block.

    Args:
        fix: ``A - 1 1^T / T`` in place of ``A``.
        skip: ``"none"``; ``"plain"``, ``X + A X W``; or ``"upscaled"``, ``X + A X W / sqrt(d)``, where the skip weighs
            ``sqrt(d)`` times more.
        norm: LayerNorm of every token after the skip, without parameters and with ``eps = 0``.
    """

    fix: bool = False
    skip: str = "none"
    norm: bool = False

    def __post_init__(self):
        if self.skip not in SKIPS:
            raise ValueError(f"skip: got {self.skip!r}; use one of {', '.join(SKIPS)}")

    def __str__(self) -> str:
        skip = {"none": "", "plain": " + skip", "upscaled": " + upscaled skip"}[self.skip]
        return "A" + skip + (" + LN" if self.norm else "")


VARIANTS = tuple(Variant(skip=skip, norm=norm) for skip in SKIPS for norm in (False, True))
"""The six variants of the paper, without the fix."""


class Weights(NamedTuple):
    """Weights of one layer: the values, and either a fixed attention matrix or the logits' bilinear form."""

    V: Tensor  # (d, d), W_l
    A: Tensor | None = None  # (T, T), rows sum to one
    QK: Tensor | None = None  # (d, d), W_Q W_K^T / sqrt(d_qk): the logits are X QK X^T


class Tokens(NamedTuple):
    """Tokens ``X = e^s Y``; the rows of ``Y`` have unit mean square norm. ``s`` is a constant to autograd."""

    Y: Tensor  # (T, d)
    s: float = 0.0

    @property
    def X(self) -> Tensor:
        """``e^s Y``, which overflows where the scale does."""
        return math.exp(self.s) * self.Y


def markov_weights(T: int, d: int, layers: int, law: EntryLaw, generator: torch.Generator) -> list[Weights]:
    """``W_l`` of i.i.d. N(0, 1) entries and independent random Markov matrices ``A_l``."""
    return [Weights(_gaussian(d, generator), A=markov_matrix(T, law, generator)) for _ in range(_positive(layers))]


def key_query_weights(d: int, layers: int, b: float, generator: torch.Generator) -> list[Weights]:
    """``W_l`` of i.i.d. N(0, 1) entries; ``W_Q, W_K`` of shape (d, d) with i.i.d. N(0, b) entries."""
    if not (math.isfinite(b) and b >= 0):
        raise ValueError(f"b: got {b}; a variance is finite and >= 0")
    weights = []
    for _ in range(_positive(layers)):
        V, Q, K = (_gaussian(d, generator) for _ in range(3))
        weights.append(Weights(V, QK=b / math.sqrt(d) * (Q @ K.mT)))
    return weights


def identity_weights(T: int, d: int, layers: int, generator: torch.Generator) -> list[Weights]:
    """``W_l`` of i.i.d. N(0, 1) entries and ``A_l = I``: no token looks at another."""
    identity = torch.eye(T, dtype=torch.float64, device=generator.device)
    return [Weights(_gaussian(d, generator), A=identity) for _ in range(_positive(layers))]


def attention_map(tokens: Tokens, weights: Weights, fix: bool = False) -> Tensor:
    """``A`` or ``A_perp`` of that layer at ``X = e^s Y``, shape (T, T), of no use where ``A_perp`` underflows."""
    A, s = _attention(tokens, weights, fix)
    return math.exp(s) * A


def block(tokens: Tokens, weights: Weights, variant: Variant) -> Tokens:
    """``X_l`` from ``X_{l-1}``; differentiable in ``Y`` and in the weights."""
    Y, s = tokens
    A, a = _attention(tokens, weights, variant.fix)
    # A_perp 1 = 0: what the tokens share would only cancel.
    seen = Y - Y.mean(-2, keepdim=True) if variant.fix else Y
    branch, s_branch = A @ (seen @ weights.V), s + a
    if variant.skip != "none":
        if variant.skip == "upscaled":
            s_branch -= math.log(Y.shape[-1]) / 2
        top = max(s, s_branch)
        branch, s_branch = math.exp(s - top) * Y + math.exp(s_branch - top) * branch, top
    if variant.norm:
        centred = branch - branch.mean(-1, keepdim=True)
        branch, s_branch = centred / centred.square().mean(-1, keepdim=True).sqrt(), 0.0
    return _normalised(branch, s_branch)


def run(X: Tensor, weights: Iterable[Weights], variant: Variant) -> Iterator[Tokens]:
    """``X_1, X_2, ...``, one for each layer's weights, from the tokens ``X`` of shape (T, d)."""
    if X.ndim != 2 or not X.is_floating_point():
        raise ValueError(f"X: got {X.dtype} of shape {tuple(X.shape)}; need floating-point tokens of shape (T, d)")
    tokens = _normalised(X, 0.0)
    for layer in weights:
        tokens = block(tokens, layer, variant)
        yield tokens


def _attention(tokens: Tokens, weights: Weights, fix: bool) -> tuple[Tensor, float]:
    """``A`` and a log-scale beside it, which is 0 but for the fix on tokens so small that ``A_perp`` is tiny."""
    if weights.A is not None:
        return (remove_gap(weights.A) if fix else weights.A), 0.0
    Y, s = tokens
    # The softmax ignores what all keys share; left in, it would drown their differences once the tokens have collapsed.
    M = Y @ weights.QK @ (Y - Y.mean(-2, keepdim=True)).mT
    if not fix:
        return torch.softmax(math.exp(2 * s) * M, -1), 0.0
    if s >= 0:
        return remove_gap(torch.softmax(math.exp(2 * s) * M, -1)), 0.0
    # Logits eps M with eps < 1: A_perp = eps (phi - mean phi) / sum exp(eps M), with phi = expm1(eps M) / eps -> M.
    eps = math.exp(2 * s)
    phi = torch.expm1(eps * M) / eps if eps > 1e-290 else M
    total = M.shape[-1] + eps * phi.sum(-1, keepdim=True)
    return (phi - phi.mean(-1, keepdim=True)) / total, 2 * s


def _normalised(Y: Tensor, s: float) -> Tokens:
    scale = float(Y.detach().norm()) / math.sqrt(Y.shape[-2])
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"X: tokens of norm {scale:.3g} have no scale; a layer made them zero or not finite")
    return Tokens(Y / scale, s + math.log(scale))


def _gaussian(d: int, generator: torch.Generator) -> Tensor:
    return torch.randn(d, d, dtype=torch.float64, device=generator.device, generator=generator)


def _positive(layers: int) -> int:
    if int(layers) != layers or layers < 1:
        raise ValueError(f"layers: got {layers}; a depth is an integer >= 1")
    return layers
