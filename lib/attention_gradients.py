"""Gradients through attention layers, ``||dX_L / dW_l||_F``: a closed form, an estimator, what theory says of both.

For fixed attention without skip and LayerNorm ``X_L = (A_L ... A_l X_{l-1}) W_l (W_{l+1} ... W_L)``: the Jacobian is a
Kronecker product, and its norm a product of two norms. For every other block the Jacobian is applied to directions and
never formed: memory is ``O(T d)`` a direction, where the Jacobian itself has ``T d^3`` entries.

Norms come as logarithms, since unit-variance values multiply them by ``sqrt(d)`` a layer. Entry ``L - l`` of a result
belongs to ``dX_L / dW_l``.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from scipy import integrate
from torch import Tensor

from lib.attention import EntryLaw, remove_gap
from lib.attention_blocks import Tokens, Variant, Weights, attention_map, block, run

_ENTRIES = 2**19  # of all directions that are pushed at once: they then stay in the cache


class GradientNorms(NamedTuple):
    """``log ||dX_L / dW_l||_F`` for ``L = l, l + 1, ...``, and the standard error of each."""

    log_norm: Tensor
    stderr: Tensor


def kronecker_log_norms(X: Tensor, weights: Sequence[Weights], fix: bool = False, l: int = 1) -> Tensor:
    """``||dX_L / dW_l||_F = ||A_L ... A_l X_{l-1}||_F ||W_{l+1} ... W_L||_F``, in logarithms, exact.

    For fixed attention without skip and LayerNorm, from two cumulative products that are rescaled as they grow.

    Args:
        X: the input ``X_0``, shape (T, d).
        weights: one for each layer, with fixed attention matrices.
        fix: ``A - 1 1^T / T`` in place of ``A``.
        l: the layer whose values are varied.

    Returns:
        Shape (layers - l + 1,).
    """
    _check(X, weights, l)
    if any(layer.A is None for layer in weights):
        raise ValueError("weights: attention depends on the tokens; the closed form needs fixed A, else estimate")
    left, log_norm = [Tokens(X), *run(X, weights[: l - 1], Variant(fix=fix))][-1]
    right, found = torch.eye(X.shape[1]).to(X), []
    for layer in weights[l - 1 :]:
        if found:
            right = right @ layer.V
        # A_perp 1 = 0: what the tokens share would only cancel.
        left = remove_gap(layer.A) @ (left - left.mean(0)) if fix else layer.A @ left
        norms = left.norm(), right.norm()
        found.append(log_norm + norms[0].log() + norms[1].log())
        left, right, log_norm = left / norms[0], right / norms[1], found[-1]
    return torch.stack(found)


def exact_log_norms(X: Tensor, weights: Sequence[Weights], variant: Variant, l: int = 1) -> Tensor:
    """``log ||dX_L / dW_l||_F`` for any block: ``J`` applied to all ``d^2`` directions.

    One forward sweep serves every ``L`` from ``l`` on. For ``d`` up to some 50: it costs as much as ``d^2`` probes of
    :func:`estimate_log_norms`.

    Returns:
        Shape (layers - l + 1,).
    """
    _check(X, weights, l)
    layers = _Layers(X, weights, variant, l)
    d = X.shape[1]
    step = layers.chunk
    basis = (torch.eye(d * d).to(X)[i : i + step] for i in range(0, d * d, step))
    return layers.scale + sum(squares.sum(0) for squares in map(layers.squares, basis)).log() / 2


def estimate_log_norms(
    X: Tensor,
    weights: Sequence[Weights],
    variant: Variant,
    l: int = 1,
    *,
    generator: torch.Generator,
    probes: int = 16,
    sketch: int = 2,
) -> GradientNorms:
    """Unbiased estimate of ``||J||_F^2``, ``J = dX_L / dW_l``, for all ``L`` from ``l`` on and any block.

    For a Gaussian direction ``g``, ``E ||J g||^2 = ||J||_F^2`` with variance ``2 ||J^T J||_F^2``. The transposed
    estimate ``||J^T u||^2`` has the same variance; pushing ``g`` forward serves every ``L`` in one sweep, and pulling
    ``u`` back does not. Where few singular values dominate, as when a softmax is about to change its mind, that
    variance is of the order of the value. So a sketch ``J^T u`` first finds those directions ``Q``, and

        ``||J||_F^2 = ||J Q||_F^2 + E ||J (I - Q Q^T) g||^2``

    is exact on them (compare Hutch++: Meyer, Musco, Musco & Woodruff 2021).

    Args:
        probes: number of Gaussian directions, at least 2; fixed beforehand, as stopping at a wanted error is biased.
        sketch: directions of the sketch for each ``L``; 0 for none.

    Returns:
        Log-norms, shape (layers - l + 1,), and their standard errors from the spread over the probes.
    """
    _check(X, weights, l)
    if int(probes) != probes or probes < 2:
        raise ValueError(f"probes: got {probes}; a standard error needs an integer >= 2")
    if int(sketch) != sketch or sketch < 0:
        raise ValueError(f"sketch: got {sketch}; need an integer >= 0")
    layers = _Layers(X, weights, variant, l)
    Q = layers.sketch(sketch, generator)  # (d^2, q)
    g = _gaussian(X, generator, probes, Q.shape[0])
    g -= (g @ Q) @ Q.mT
    squares = torch.cat([layers.squares(part) for part in torch.cat([Q.mT, g]).split(layers.chunk)])
    on_sketch, beyond = squares[: Q.shape[1]].sum(0), squares[Q.shape[1] :]
    total = on_sketch + beyond.mean(0)
    return GradientNorms(layers.scale + total.log() / 2, beyond.std(0) / (2 * math.sqrt(probes) * total))


def frozen(X: Tensor, weights: Sequence[Weights], variant: Variant) -> list[Weights]:
    """The same layers with each ``A_l(X_{l-1})`` kept as a fixed matrix: their gradient leaves out the softmax's."""
    inputs = [Tokens(X), *run(X, weights[:-1], variant)]
    return [Weights(layer.V, A=attention_map(x, layer)) for layer, x in zip(weights, inputs, strict=True)]


def published_log_norm(X: Tensor, weights: Sequence[Weights], variant: Variant, l: int = 1) -> float:
    """``log(||J||_F ||J . A_l X_{l-1}||_F)``, which the public code of the paper plots for the last layer.

    ``J = dX_L / dX_l`` of shape (T, d, T, d) is taken at ``X_0`` in place of ``X_l``, and its last axis, the features,
    is contracted with the first of ``A_l X_{l-1}``, the tokens: that needs ``T = d``. For fixed attention without skip
    and LayerNorm ``J`` is a Kronecker product; else it is formed, for small ``T``.
    """
    _check(X, weights, l)
    T, d = X.shape
    if d != T:
        raise ValueError(f"X: got shape {(T, d)}; the published contraction needs T = d")
    tokens = [Tokens(X), *run(X, weights[: l - 1], variant)][-1]
    AX, above = attention_map(tokens, weights[l - 1], variant.fix) @ tokens.Y, weights[l:]
    if variant == Variant(fix=variant.fix) and all(layer.A is not None for layer in above):
        P = Q = torch.eye(T).to(X)
        for layer in above:
            P, Q = (remove_gap(layer.A) if variant.fix else layer.A) @ P, Q @ layer.V
        return float(tokens.s + 2 * P.norm().log() + Q.norm().log() + (Q.mT @ AX).norm().log())
    J, scale = torch.eye(T * d).to(X).reshape(T, d, T, d), 0.0
    if above:
        *_, last = run(X, above, variant)
        scale = last.s
        J = torch.func.jacrev(lambda X0: list(run(X0, above, variant))[-1].Y)(X)
    return float(2 * scale + tokens.s + J.norm().log() + (J @ AX).norm().log())


def entry_variance(T: int, law: EntryLaw) -> float:
    """``v = T^2 Var(A_11)`` of a random Markov matrix, at every ``T``; ``sigma^2`` as ``T`` grows.

    From ``S^{-2} = int t e^{-t S} dt`` for the row sum ``S``: with ``phi(t) = E e^{-t Z}``,
    ``1 + v = int_0^inf s phi''(s/T) phi(s/T)^{T-1} ds``.
    """

    def laplace(weight: Callable[[float], float]) -> float:
        return integrate.quad(lambda z: weight(z) * law.tail(z), 0, math.inf, limit=200)[0]

    def integrand(s: float) -> float:
        t = s / T
        phi = 1 - t * laplace(lambda z: math.exp(-t * z))
        curvature = laplace(lambda z: (2 - t * z) * z * math.exp(-t * z))  # phi'', by parts
        return s * curvature * phi ** (T - 1)

    return integrate.quad(integrand, 0, math.inf, limit=200)[0] - 1


def expected_log_square(T: int, d: int, L: int, v: float, variant: Variant, sigma_V: float = 1.0) -> float:
    """``log E ||dX_L / dW_l||_F^2`` for independent random Markov matrices and isometric input, exact at every size.

    With ``q = v / T``, ``F_m = E ||A_m ... A_1||_F^2 = 1 + q + ... + q^{m-1} + T q^m`` (with the fix ``T q^m``), and
    the branch times ``c``,

        ``d c^2 sum_{m=0}^{L-1} binom(L-1, m) (c^2 d sigma_V^2)^m F_{m+1}``,

    the same for all ``l``; without a skip only ``m = L - 1`` counts, with ``c = 1``. Rows of ``A`` are independent with
    mean ``1/T`` and covariance ``v (I - 1 1^T / T) / (T (T-1))``, so ``E ||M A||_F^2 = ||M 1||^2 / T + q ||M||_F^2``.
    """
    if variant.norm:
        raise ValueError("variant: LayerNorm has no closed form; see growth_exponent for its power of T")
    q = v / T
    log_c2 = -math.log(d) if variant.skip == "upscaled" else 0.0

    def log_F(m: int) -> float:
        return math.log((0.0 if variant.fix else sum(q**j for j in range(m))) + T * q**m)

    terms = [
        math.log(math.comb(L - 1, m)) + m * (log_c2 + math.log(d) + 2 * math.log(sigma_V)) + log_F(m + 1)
        for m in (range(L) if variant.skip != "none" else [L - 1])
    ]
    return math.log(d) + log_c2 + float(torch.logsumexp(torch.tensor(terms, dtype=torch.float64), 0))


def growth_exponent(variant: Variant, L: int, l: int = 2, key_query: bool = False) -> float:
    """The power of ``T = d`` with which ``||dX_L / dW_l||_F`` grows for unit-variance values, at fixed ``l >= 2``.

    - Without LayerNorm ``L/2``, with the fix ``1/2``, with the upscaled skip 0, from :func:`expected_log_square`.
      Key-query attention agrees while its logits stay of order one; with the fix that asks for ``b^2 < log(1 + T/d)``.
    - With LayerNorm tokens and gradients shrink and grow together: 1 for fixed attention, and 1/2 with the upscaled
      skip, whose branch is too weak to align the tokens.
    - With LayerNorm and key-query attention logits of order ``d`` make the softmax choose one key. Two keys tie in a
      share ``1/d`` of the rows, where the output moves ``d`` times as much as the tokens: ``sqrt(T)`` more a layer.

    The last two are orders of magnitude, not theorems.
    """
    if variant.norm:
        return 1 + (L - l) / 2 if key_query else (0.5 if variant.skip == "upscaled" else 1.0)
    if variant.skip == "upscaled":
        return 0.0
    return 0.5 if variant.fix else L / 2


class _Layers:
    """The layers from ``l`` on as functions of ``W_l``: ``V -> (Y_l, ..., Y_L)``, where ``X = e^s Y``."""

    def __init__(self, X: Tensor, weights: Sequence[Weights], variant: Variant, l: int):
        self.before = [Tokens(X), *run(X, weights[: l - 1], variant)][-1]
        self.weights, self.variant, self.V = weights[l - 1 :], variant, weights[l - 1].V
        self.scale = X.new_tensor([tokens.s for tokens in self.forward(self.V)])
        self.chunk = max(1, _ENTRIES // X.numel())

    def forward(self, V: Tensor) -> list[Tokens]:
        tokens, found = self.before, []
        for i, layer in enumerate(self.weights):
            tokens = block(tokens, layer if i else layer._replace(V=V), self.variant)
            found.append(tokens)
        return found

    def outputs(self, V: Tensor) -> tuple[Tensor, ...]:
        return tuple(tokens.Y for tokens in self.forward(V))

    def squares(self, directions: Tensor) -> Tensor:
        """``||dY_L[g]||^2`` for directions ``g`` of shape (n, d^2); shape (n, number of L)."""

        def push(g: Tensor) -> Tensor:
            _, tangents = torch.func.jvp(self.outputs, (self.V,), (g.reshape(self.V.shape),))
            return torch.stack([dY.square().sum() for dY in tangents])

        return torch.func.vmap(push)(directions)

    def sketch(self, count: int, generator: torch.Generator) -> Tensor:
        """Orthonormal columns that span ``J^T u`` for ``count`` Gaussian ``u`` at every ``L``; shape (d^2, columns)."""
        if not count:
            return self.V.new_empty(self.V.numel(), 0)
        outputs, pull = torch.func.vjp(self.outputs, self.V)
        which = torch.eye(len(outputs)).to(self.V).repeat_interleave(count, 0)
        u = _gaussian(self.V, generator, len(which), *outputs[0].shape)

        def back(one: Tensor, u: Tensor) -> Tensor:
            return pull(tuple(take * u for take in one))[0].flatten()

        found = torch.func.vmap(back, chunk_size=self.chunk)(which, u)
        # J may differ by orders of magnitude between layers, and every layer counts alike.
        return torch.linalg.qr((found / found.norm(dim=1, keepdim=True)).mT)[0]


def _gaussian(like: Tensor, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=like.dtype, device=generator.device, generator=generator).to(like.device)


def _check(X: Tensor, weights: Sequence[Weights], l: int) -> None:
    if X.ndim != 2 or not X.is_floating_point():
        raise ValueError(f"X: got {X.dtype} of shape {tuple(X.shape)}; need floating-point tokens of shape (T, d)")
    if not weights or int(l) != l or not 1 <= l <= len(weights):
        raise ValueError(f"l: got {l} with {len(weights)} layers; need 1 <= l <= layers")
