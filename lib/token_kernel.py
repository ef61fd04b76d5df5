"""Tokens of a Transformer at initialisation, as theory sees them: their cosines layer by layer, and the gap of ``A``.

With random weights the covariance of two tokens follows a recursion over the layers that holds no free parameter (the
kernel of the network, in the limit of large ``d``). It starts from which tokens of the text are equal, and it gives the
common direction of all tokens, the stable rank, and through the logits the second singular value of an attention map.
Letters: ``T`` tokens of dimension ``d``, ``d_h`` the dimension of a head, ``s`` the standard deviation of a weight.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import optimize
from torch import Tensor
from torch.nn.functional import gelu

from lib.causal_spectrum import cesaro_matrix
from lib.laws import TW1_MEAN


@dataclass(frozen=True)
class Architecture:
    """A Transformer with GELU and absolute positions, as its published configuration has it.

    ``family``: ``"bert"`` and ``"roberta"`` apply layer norm after each block. ``"gpt2"`` applies it before, has a
    causal mask and no token types, and draws the last matrix of a block with ``s / sqrt(2 layers)``. ``eps`` is that
    of layer norm.
    """

    name: str
    family: str
    d: int
    layers: int
    heads: int
    d_inner: int
    eps: float = 1e-12
    s: float = 0.02

    def __post_init__(self):
        if self.family not in ("bert", "roberta", "gpt2"):
            raise ValueError(f"family: got {self.family!r}; use 'bert', 'roberta' or 'gpt2'")
        if self.heads < 1 or self.d % self.heads:
            raise ValueError(f"heads: got {self.heads} for d = {self.d}; it must divide d")

    @property
    def causal(self) -> bool:
        """Whether a token attends only to those before it and to itself."""
        return self.family == "gpt2"

    @property
    def d_h(self) -> int:
        """Dimension of a head, ``d / heads``."""
        return self.d // self.heads

    @property
    def b(self) -> float:
        """``d s^2``: the standard deviation of a logit between two tokens that are normalised to length ``sqrt(d)``."""
        return self.d * self.s**2


ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture("RoBERTa", "roberta", d=768, layers=12, heads=12, d_inner=3072, eps=1e-5),
        Architecture("TinyBERT", "bert", d=312, layers=4, heads=12, d_inner=1200),
        Architecture("GPT-2", "gpt2", d=768, layers=12, heads=12, d_inner=3072, eps=1e-5),
        Architecture("MiniLM", "bert", d=384, layers=6, heads=12, d_inner=1536),
    )
}
"""roberta-base, TinyBERT_General_4L_312D, gpt2 and all-MiniLM-L6-v2, by the names the book uses."""


def uniform_attention(T: int, causal: bool) -> Tensor:
    """``U``, attention with equal logits: ``1 1^T / T``, or ``U_ij = 1/i`` for ``j <= i`` (Cesàro's matrix); (T, T)."""
    C = cesaro_matrix(T)
    return C if causal else torch.ones_like(C) / T


def token_cosines(ids: Tensor, architecture: Architecture, *, fix: bool = False) -> list[Tensor]:
    """``G_0, ..., G_L``: the cosines of the tokens that each layer reads, in the limit of large ``d``; each (T, T).

    Token ``i`` enters as the sum of independent vectors of one length: of its word, its position and, in BERT, its
    token type, which all tokens share. So ``G_0 = ([w_i = w_j] + [i = j] + 1) / 3``, without the 1 ``/ 2`` in GPT-2.
    A block adds its own covariance, then layer norm divides by the diagonal:

    - attention: ``(d s^2)^2 (U G U^T + b^2 G o F)``, where ``A = U + noise`` to first order in the logits and
      ``F = U G^2 U^T - (U G)^2 U^T - U (G U^T)^2 + (U G U^T)^2``, squares of entries. The fix deletes the first term;
    - MLP: ``d_inner s^2 E[gelu(u) gelu(v)]``, ``u, v`` Gaussian of variance ``d s^2`` and correlation ``G_ij``.

    Args:
        ids: tokens of the text, shape (T,).
        fix: attention less the mean of the values over the keys allowed.

    Source: the recursion is that of Neal (1996) and Noci et al. (2022); ``F`` and its use here are this book's.
    """
    if ids.ndim != 1 or ids.dtype != torch.int64:
        raise ValueError(f"ids: got {ids.dtype} of shape {tuple(ids.shape)}; need the int64 tokens of one text, (T,)")
    a, T = architecture, len(ids)
    U, same = uniform_attention(T, a.causal), (ids[:, None] == ids).double()
    out = a.s**2 / (2 * a.layers) if a.causal else a.s**2  # variance in the last matrix of a block
    R = a.s**2 * (same + torch.eye(T, dtype=torch.float64) + (0 if a.causal else 1))

    def attention(G: Tensor) -> Tensor:
        rows = U @ G
        mean, squares = rows @ U.T, rows.square() @ U.T
        noise = U @ G.square() @ U.T - squares - squares.T + mean.square()
        return a.d * a.s**2 * a.d * out * (a.b**2 * G * noise + (0 if fix else mean))

    def mlp(G: Tensor) -> Tensor:
        scale = G.diagonal().mean()
        return a.d_inner * out * _gelu_kernel(_normalise(G), float(a.d * a.s**2 * scale))

    def step(R: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        return R + block(_normalise(R, a.eps)) if a.causal else _normalise(R + block(R), a.eps)

    R = R if a.causal else _normalise(R, a.eps)
    cosines = [_normalise(R)]
    for _ in range(a.layers):
        R = step(step(R, attention), mlp)
        cosines.append(_normalise(R))
    return cosines


def common_share(X: Tensor) -> Tensor:
    """``c(X) = ||X^T 1||^2 / (T ||X||_F^2)``: the share of the tokens' common direction; (..., T, d) -> (...).

    For tokens of one length it is their mean cosine, ``1^T G 1 / T^2``.
    """
    return X.sum(-2).square().sum(-1) / (X.shape[-2] * X.square().sum((-2, -1)))


def without_types(ids: Tensor, architecture: Architecture) -> Tensor:
    """``G_0`` less what all tokens share by their type: ``([w_i = w_j] + [i = j]) / 2``, (T, T)."""
    return token_cosines(ids, replace(architecture, family="gpt2", layers=1))[0]


def stable_rank_excess(G: Tensor, d: int) -> float:
    """``sr(X X^T) - 1 = (sum_{i>=2} g_i^2 + (sum_{i>=2} g_i)^2 / d) / g_1^2`` over the spectrum ``g`` of ``G``.

    The ``d`` columns of ``X`` are taken as independent N(0, G), whose sample covariance spreads by the second term. The
    relative error is of order ``1/d`` at the input, and grows with depth, since each layer adds a spread of its own.
    """
    g = torch.linalg.eigvalsh(G)
    rest = g[:-1]
    return float((rest.square().sum() + rest.sum().square() / d) / g[-1].square())


def top_singular_value(G: Tensor, architecture: Architecture) -> float:
    """``s_1(A)^2 = 1 + b^2 c (1 - c)`` for weak logits without a mask: what all queries share changes whole columns."""
    c = float(G.mean())
    return math.sqrt(1 + architecture.b**2 * c * (1 - c))


def second_singular_value(G: Tensor, architecture: Architecture) -> float:
    """``E s_2(A)`` for weak logits without a mask: ``(b sqrt(d_h) / T) min_u sqrt(m (1 + m)) (1 + m d_h / d) / u``.

    ``m(u) = (1/d_h) sum_i g_i u / (1 - g_i u)`` over the spectrum of ``P G P``, ``P = I - 1 1^T / T``. To first order
    in the logits ``S``, ``A - U`` is ``P S P / T`` and a change of whole columns, which leaves ``U`` of rank one.
    ``P S P = P X W_Q W_K^T X^T P / sqrt(d_h)`` has rank ``d_h``. Its squared singular values are the eigenvalues of
    ``(W_Q^T B W_Q) (W_K^T B W_K) / d_h``, ``B = X^T P X``: a free product, whose S-transform follows from the spectrum
    of ``P G P``. The formula is the root of its edge; the mean of the largest of ``d_h`` is lower, by Tracy and Widom.
    """
    a, T = architecture, len(G)
    rows = G - G.mean(0)
    g = torch.linalg.eigvalsh(rows - rows.mean(1, keepdim=True)).clamp(min=0).numpy()
    ratio = a.d_h / a.d

    def log_edge(u: float) -> float:
        m = float((g * u / (1 - g * u)).sum()) / a.d_h
        return math.log(m * (1 + m)) + 2 * math.log1p(ratio * m) - 2 * math.log(u)

    end = 1 / g[-1]
    u = optimize.minimize_scalar(
        log_edge, bounds=(1e-9 * end, (1 - 1e-9) * end), method="bounded", options={"xatol": 1e-10 * end}
    ).x
    edge = math.exp(log_edge(u))
    m, m1, m2 = ((f / a.d_h).sum() for f in (g * u / (1 - g * u), g / (1 - g * u) ** 2, 2 * g**2 / (1 - g * u) ** 3))
    slope = 1 / m + 1 / (1 + m) + 2 * ratio / (1 + ratio * m)
    bend = -1 / m**2 - 1 / (1 + m) ** 2 - 2 * (ratio / (1 + ratio * m)) ** 2
    # x''(w) at the edge, w = (1 + m) / x the Cauchy transform; the density there is sqrt(2 (edge - x) / x'') / pi.
    curvature = edge * (slope * m2 + bend * m1**2 + 2 / u**2) / (m1 / edge) ** 2
    largest = edge + TW1_MEAN * (a.d_h * math.sqrt(2 / curvature)) ** (-2 / 3)
    return a.b * math.sqrt(a.d_h * largest) / T


def second_singular_limit(c: float, architecture: Architecture) -> float:
    """``b (1 - c) / sqrt(d_h) min_m sqrt(1 + 1/m) (1 + m d_h / d)``: the edge of ``s_2(A)`` as ``T -> infinity``.

    For a text of common share ``c`` in which no word repeats: a head of fixed size does not open its gap further.
    """
    a, ratio = architecture, architecture.d_h / architecture.d
    m = (math.sqrt(ratio**2 + 8 * ratio) - ratio) / (4 * ratio)
    return a.b * (1 - c) / math.sqrt(a.d_h) * math.sqrt(1 + 1 / m) * (1 + ratio * m)


def _normalise(R: Tensor, eps: float = 0.0) -> Tensor:
    """Layer norm as the covariance sees it: ``R_ij / sqrt((R_ii + eps) (R_jj + eps))``."""
    scale = (R.diagonal() + eps).rsqrt()
    return scale[:, None] * R * scale


def _gelu_kernel(C: Tensor, variance: float, terms: int = 16) -> Tensor:
    """``E[gelu(u) gelu(v)] = sum_k a_k^2 C^k`` entrywise, ``u, v`` Gaussian of that variance and correlation ``C``.

    ``a_k = E[gelu(sqrt(variance) x) h_k(x)]`` for the normalised Hermite polynomials (Mehler's formula). The series
    stops at ``terms``, where its coefficients are below 1e-9 of the first for variances up to 1.
    """
    x, w = np.polynomial.hermite_e.hermegauss(100)
    values = gelu(math.sqrt(variance) * torch.from_numpy(x)).numpy() * w / math.sqrt(2 * math.pi)
    total, power = torch.zeros_like(C), torch.ones_like(C)
    h, previous = np.ones_like(x), np.zeros_like(x)
    for k in range(terms):
        total = total + float(values @ h) ** 2 * power
        h, previous = (x * h - math.sqrt(k) * previous) / math.sqrt(k + 1), h
        power = power * C
    return total
