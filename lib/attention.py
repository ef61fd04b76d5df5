"""Attention layers at initialisation: tokens, random Markov matrices, key-query attention, and the fix.

Shapes: ``T`` tokens of dimension ``d``; ``gamma = T / d``. Draws take a ``torch.Generator`` and live on its device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Sampler = Callable[[int, int, torch.Generator], Tensor]


@dataclass(frozen=True)
class EntryLaw:
    """Law of the nonnegative entries of ``Z``, scaled to mean 1: ``sigma = std(Z) / mean(Z)``.

    ``draw(rows, columns, generator)`` samples in float64; ``tail(z) = P(Z > z)``; ``skewness`` is
    ``E (Z-1)^3 / sigma^3`` and ``kurtosis`` the excess ``E (Z-1)^4 / sigma^4 - 3``; infinite where the moment is.
    """

    name: str
    draw: Sampler
    tail: Callable[[float], float]
    sigma: float
    skewness: float
    kurtosis: float


def lognormal(sigma: float = 1.0) -> EntryLaw:
    """``Z = exp(N(-s^2/2, s^2))`` with ``s^2 = log(1 + sigma^2)``; ``sigma = 1`` is the paper's synthetic ensemble."""
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma: got {sigma}; it is finite and > 0")
    s2 = math.log1p(sigma**2)

    def draw(m: int, n: int, generator: torch.Generator) -> Tensor:
        return _gaussian(m, n, generator).mul_(math.sqrt(s2)).sub_(s2 / 2).exp_()

    def tail(z: float) -> float:
        return 0.5 * math.erfc((math.log(z) + s2 / 2) / math.sqrt(2 * s2))

    w = 1 + sigma**2
    return EntryLaw("log-normal", draw, tail, sigma, (w + 2) * sigma, w**4 + 2 * w**3 + 3 * w**2 - 6)


def exponential() -> EntryLaw:
    """``Z ~ Exp(1)``: the rows of ``A`` are uniform on the simplex."""
    return EntryLaw(
        "exponential", lambda m, n, g: _empty(m, n, g).exponential_(generator=g), lambda z: math.exp(-z), 1.0, 2.0, 6.0
    )


def uniform() -> EntryLaw:
    """``Z ~ U[0, 2]``, ``sigma = 1/sqrt(3)``."""
    return EntryLaw(
        "uniform",
        lambda m, n, g: _empty(m, n, g).uniform_(0, 2, generator=g),
        lambda z: max(0.0, 1 - z / 2),
        1 / math.sqrt(3),
        0.0,
        -1.2,
    )


def bernoulli() -> EntryLaw:
    """``Z = 2 B(1/2)``: the random walk on a random directed graph, ``sigma = 1``.

    A row of zeros, which has probability ``2^-T``, makes ``A`` undefined; :func:`markov_matrix` then raises.
    """
    return EntryLaw(
        "Bernoulli",
        lambda m, n, g: _empty(m, n, g).bernoulli_(0.5, generator=g).mul_(2),
        lambda z: 0.5 if z < 2 else 0.0,
        1.0,
        0.0,
        -2.0,
    )


def pareto(alpha: float) -> EntryLaw:
    """``P(Z > z) ~ z^-alpha``, ``alpha > 1``: the variance is infinite for ``alpha <= 2``, and the gap is gone."""
    if not (math.isfinite(alpha) and alpha > 1):
        raise ValueError(f"alpha: got {alpha}; the mean of Z is finite only for alpha > 1")
    scale = (alpha - 1) / alpha

    def draw(m: int, n: int, generator: torch.Generator) -> Tensor:
        return _empty(m, n, generator).exponential_(generator=generator).div_(alpha).exp_().mul_(scale)

    sigma = 1 / math.sqrt(alpha * (alpha - 2)) if alpha > 2 else math.inf
    skewness = 2 * (1 + alpha) / (alpha - 3) * math.sqrt(1 - 2 / alpha) if alpha > 3 else math.inf
    kurtosis = (
        6 * (alpha**3 + alpha**2 - 6 * alpha - 2) / (alpha * (alpha - 3) * (alpha - 4)) if alpha > 4 else math.inf
    )
    return EntryLaw("Pareto", draw, lambda z: min(1.0, (scale / z) ** alpha), sigma, skewness, kurtosis)


LAWS: dict[str, Callable[[], EntryLaw]] = {
    "log-normal": lognormal,
    "exponential": exponential,
    "uniform": uniform,
    "Bernoulli": bernoulli,
}
"""The laws of the book with all moments finite; each call takes no argument."""


def markov_matrix(T: int, law: EntryLaw, generator: torch.Generator) -> Tensor:
    """Random Markov matrix ``A = D^{-1} Z``, ``D = diag(Z 1)``, shape (T, T): rows are nonnegative and sum to 1.

    Source: Bordenave, Caputo & Chafai (2012).
    """
    _check_size("T", T)
    Z = law.draw(T, T, generator)
    totals = Z.sum(-1, keepdim=True)
    if not (totals > 0).all():
        raise ValueError(f"law: {law.name} drew a row of zeros at T = {T}, which cannot be normalised; take T larger")
    return Z / totals


def isometric_tokens(T: int, d: int, generator: torch.Generator) -> Tensor:
    """Haar-distributed ``X`` of shape (T, d) with ``X X^T = I_T``; needs ``T <= d``.

    The QR factor of a Gaussian matrix is Haar only once the signs of R's diagonal are moved into Q.
    """
    _check_size("T", T)
    if d < T:
        raise ValueError(f"d: got {d}; {T} orthonormal tokens need d >= {T}")
    Q, R = torch.linalg.qr(_gaussian(d, T, generator))
    return (Q * R.diagonal().sign()).mT.contiguous()


def key_query_attention(X: Tensor, b: float, generator: torch.Generator, d_qk: int | None = None) -> Tensor:
    """``A(X) = softmax(X W_Q W_K^T X^T / sqrt(d_qk))``, row-wise, with ``W_Q, W_K`` of i.i.d. N(0, b) entries.

    With ``X X^T = I`` each logit has mean 0 and variance ``b^2``.

    Args:
        X: tokens, shape (T, d).
        b: the variance of an entry of ``W_Q`` and of ``W_K``; 1 in the paper.
        d_qk: columns of ``W_Q`` and ``W_K``; ``d`` unless given.

    Returns:
        Row-stochastic (T, T).
    """
    _check_variance(b)
    d = X.shape[-1]
    d_qk = d if d_qk is None else d_qk
    _check_size("d_qk", d_qk)
    Q = X @ _gaussian(d, d_qk, generator)
    K = X @ _gaussian(d, d_qk, generator)
    return torch.softmax(b / math.sqrt(d_qk) * (Q @ K.mT), -1)


def isometric_logits(T: int, d: int, b: float, generator: torch.Generator, *, unit: bool = False) -> Tensor:
    """``b Q K^T / sqrt(d)`` in law, ``Q, K`` of shape (T, d) standard Gaussian: logits of isometric tokens, (T, T).

    With ``unit`` the rows of ``Q`` and ``K`` are scaled to length ``sqrt(d)``, and the logits are ``b sqrt(d) cos``.
    Given ``Q``, only ``Q Q^T / d = B B^T`` matters to the law of ``Q K^T``, so no ``T x d`` matrix is formed for
    ``d > T``: ``N`` with ``B N`` in place of ``Q K^T / sqrt(d)`` holds the part of the keys in the span of the queries,
    and what lies outside adds a chi-square variable of ``d - T`` degrees of freedom to their squared length.

    Raises:
        ValueError: a size that is not an integer >= 1, or ``b`` negative or not finite.
    """
    _check_variance(b)
    B = value_factor(T, d, generator)
    N = _gaussian(B.shape[-1], T, generator)
    if unit:
        lengths = N.square().sum(0)
        if d > T:
            freedom = torch.full_like(lengths, (d - T) / 2)
            lengths += 2 * torch._standard_gamma(freedom, generator=generator)
        B, N = B / B.norm(dim=-1, keepdim=True), N * (d / lengths).sqrt()
    return b * (B @ N)


def isometric_attention(T: int, d: int, b: float, generator: torch.Generator) -> Tensor:
    """Equal in law to ``key_query_attention(isometric_tokens(T, d), b)``, in ``O(T^3)`` operations however large ``d``.

    For ``X X^T = I`` the logits are those of :func:`isometric_logits`.
    """
    return torch.softmax(isometric_logits(T, d, b, generator), -1)


def gaussian_equivalent(T: int, d: int, b: float, generator: torch.Generator) -> Tensor:
    """``[b Q K^T / sqrt(d) + c Z] / sqrt(T)``, ``c^2 = e^{b^2} - 1 - b^2``, with ``Q, K, Z`` standard Gaussian; (T, T).

    Its singular values follow those of ``sqrt(T) (A(X) - 1 1^T / T)`` for key-query attention on isometric tokens. As
    in :func:`isometric_attention`, no ``T x d`` matrix is formed for ``d > T``.
    """
    linear = isometric_logits(T, d, b, generator)
    c = math.sqrt(math.expm1(b**2) - b**2)
    return (linear + c * _gaussian(T, T, generator)) / math.sqrt(T)


def remove_gap(A: Tensor) -> Tensor:
    """The fix: ``A_perp = A - (1/T) 1 1^T``, every entry less ``1/T``, shape (..., T, T)."""
    return A - 1 / A.shape[-1]


def value_factor(T: int, d: int, generator: torch.Generator) -> Tensor:
    """``B`` with ``B B^T`` distributed as ``N N^T / d``, ``N`` of shape (T, d) standard Gaussian; shape (T, min(T, d)).

    A value matrix ``W`` of i.i.d. N(0, 1/d) entries acts on the token covariance as ``X W W^T X^T``, and for
    ``X = R Q`` with orthonormal rows in ``Q`` this is ``R (N N^T / d) R^T`` in law. So a layer costs ``O(T^3)`` however
    large ``d`` is: for ``d >= T`` Bartlett's lower-triangular factor takes the place of ``N``.
    """
    _check_size("T", T)
    _check_size("d", d)
    if d < T:
        return _gaussian(T, d, generator) / math.sqrt(d)
    B = _gaussian(T, T, generator).tril_(-1)
    freedom = d - torch.arange(T, dtype=torch.float64, device=generator.device)
    # chi_k = sqrt(2 Gamma(k/2)); torch's Gamma sampler reads the generator it is given.
    chi = torch._standard_gamma(freedom / 2, generator=generator).mul_(2).sqrt_()
    return (B + chi.diag()) / math.sqrt(d)


def token_factors(attention: list[Tensor], d: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Factors of the token covariance after each layer, with the fix and without it, from the same draws.

    For ``X_l = A_l X_{l-1} W_l`` and ``X_l^perp = (A_l - 1 1^T / T) X_{l-1}^perp W_l``, both from the same isometric
    tokens, ``A_l 1 = 1`` gives ``X_l = X_l^perp + 1 r_l^T`` exactly: what the fix takes away is one direction. With
    ``W_l`` of i.i.d. N(0, 1/d) entries the recursion is ``r_l = W_l^T (r_{l-1} + (X_{l-1}^perp)^T 1 / T)``.

    Args:
        attention: ``A_1, ..., A_l`` without the fix, each (T, T), with rows that sum to 1, independent of the values.
        d: token dimension. A ``T x d`` matrix is formed only for ``d < T``; see :func:`value_factor`.

    Returns:
        ``(Y, r)`` for each layer, ``Y`` of shape (T, min(T, d)), ``r`` of shape (min(T, d),): ``Y Y^T`` is distributed
        as ``Sigma_l^perp`` and ``(Y + 1 r^T)(Y + 1 r^T)^T`` as ``Sigma_l``, jointly over layers.
    """
    if not attention:
        raise ValueError("attention: got no layer; need A_1, ..., A_l with l >= 1")
    T = attention[0].shape[-1]
    B = value_factor(T, d, generator)  # X_0 X_0^T = I
    Y, r = remove_gap(attention[0]) @ B, B.mean(0)
    factors = [(Y, r)]
    for A in attention[1:]:
        B = value_factor(Y.shape[-1], d, generator)
        YB = Y @ B
        Y, r = remove_gap(A) @ YB, r @ B + YB.mean(0)
        factors.append((Y, r))
    return factors


def _gaussian(m: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(m, n, dtype=torch.float64, device=generator.device, generator=generator)


def _empty(m: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.empty(m, n, dtype=torch.float64, device=generator.device)


def _check_size(name: str, value: int) -> None:
    if int(value) != value or value < 1:
        raise ValueError(f"{name}: got {value}; a size is an integer >= 1")


def _check_variance(b: float) -> None:
    if not (math.isfinite(b) and b >= 0):
        raise ValueError(f"b: got {b}; a variance is finite and >= 0")
