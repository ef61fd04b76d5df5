"""Training attention to apply an entrywise map: the paper's task, its reference losses, and one training run.

From ``n`` isometric inputs ``X`` of shape (T, d), a network of the blocks of :mod:`lib.attention_blocks` learns
``f(X)`` entry by entry: mean squared error, Adam, one step an epoch on all inputs, as the public code does. At depth 1
or 2 nothing overflows, so that tokens travel as they are. LayerNorm has a gain and a bias that are trained; they are
the only parameters that break the symmetry ``F(-X) = -F(X)``.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, mse_loss

from lib.attention import isometric_tokens, remove_gap
from lib.attention_blocks import Variant

Map = Callable[[Tensor], Tensor]

MAPS: dict[str, Map] = {
    "Heaviside": lambda x: (x > 0).to(x.dtype),
    "identity": lambda x: x,
    "square": torch.square,
    "expanded sigmoid": lambda x: torch.sigmoid(20 * (x + 1 / 2)),
}
"""The entrywise maps of the paper."""


class ReferenceLosses(NamedTuple):
    """Mean squared errors that need no training; see :func:`reference_losses`."""

    zero: float
    constant: float
    odd: float
    line: float


class Layer(NamedTuple):
    """Parameters of one block; a network without LayerNorm leaves ``gain`` and ``bias`` alone."""

    Q: Tensor  # (d, d), W_Q
    K: Tensor  # (d, d), W_K
    V: Tensor  # (d, d), W_V
    gain: Tensor  # (d,)
    bias: Tensor  # (d,)


class Task(NamedTuple):
    """Inputs with their targets ``Y = f(X)``, and fresh ones that no step sees."""

    X: Tensor  # (n, T, d)
    Y: Tensor
    X_fresh: Tensor  # (n_fresh, T, d)
    Y_fresh: Tensor


class Fit(NamedTuple):
    """Training loss before every step and after the last one, and the loss on fresh inputs after it."""

    losses: Tensor  # (epochs + 1,)
    fresh: float


def reference_losses(f: Map, d: int) -> ReferenceLosses:
    """Least ``E (f(x) - g(x))^2`` for an entry ``x`` of an isometric input, over four classes of ``g``.

    ``zero``: ``g = 0``. ``constant``: ``Var f(x)``. ``odd``: any odd ``g``, ``E f_even^2`` with ``f_even(x) = (f(x) +
    f(-x)) / 2``; a network ``F(-X) = -F(X)`` cannot do better on fresh inputs, whatever else it reads in ``X``, since
    ``X`` and ``-X`` are equal in law. ``line``: ``g(x) = a + c x``, ``Var f(x) - d (E x f(x))^2``.

    ``x`` has density proportional to ``(1 - x^2)^{(d-3)/2}``: the uniform law on the sphere, and close to N(0, 1/d).
    """
    if int(d) != d or d < 3:
        raise ValueError(f"d: got {d}; the density of an entry is smooth for integers d >= 3")
    end = min(1.0, 14 / math.sqrt(d))  # what lies beyond has probability 1e-43
    nodes, weights = np.polynomial.legendre.leggauss(400)
    x = torch.from_numpy(end * (nodes + 1) / 2)  # |x|: the sign is a fair coin, and f may jump at 0
    p = torch.from_numpy(weights) * ((d - 3) / 2 * torch.log1p(-x.square())).exp()
    p /= p.sum()
    even, odd = (f(x) + f(-x)) / 2, (f(x) - f(-x)) / 2
    even_square = float(p @ even.square())
    zero = even_square + float(p @ odd.square())
    constant = zero - float(p @ even) ** 2
    return ReferenceLosses(zero, constant, even_square, constant - d * float(p @ (x * odd)) ** 2)


def shared_output_loss(Y: Tensor) -> float:
    """Least loss when all tokens of an input get the same output: the variance of ``Y`` within columns.

    That is what uniform attention without a skip can do. For ``Y`` of independent columns its mean is
    ``(1 - 1/T) Var f``.
    """
    return float((Y - Y.mean(-2, keepdim=True)).square().mean())


def entrywise_task(f: Map, T: int, d: int, inputs: int, fresh: int, generator: torch.Generator) -> Task:
    """``inputs + fresh`` independent isometric inputs and their images under ``f``, float64."""
    for name, value in (("inputs", inputs), ("fresh", fresh)):
        if int(value) != value or value < 1:
            raise ValueError(f"{name}: got {value}; a number of inputs is an integer >= 1")
    X = torch.stack([isometric_tokens(T, d, generator) for _ in range(inputs + fresh)])
    return Task(X[:inputs], f(X[:inputs]), X[inputs:], f(X[inputs:]))


def initial_layers(d: int, depth: int, b: float, generator: torch.Generator) -> list[Layer]:
    """``W_V`` of i.i.d. N(0, 1) entries, ``W_Q, W_K`` of N(0, b), gain 1 and bias 0; float64.

    ``b = 1`` is the paper's scale, ``b = 1/d`` Xavier's; both scale the same draws.
    """
    if int(depth) != depth or depth < 1:
        raise ValueError(f"depth: got {depth}; a depth is an integer >= 1")
    if not (math.isfinite(b) and b >= 0):
        raise ValueError(f"b: got {b}; a variance is finite and >= 0")
    layers = []
    for _ in range(depth):
        Q, K, V = torch.randn(3, d, d, dtype=torch.float64, device=generator.device, generator=generator)
        layers.append(Layer(math.sqrt(b) * Q, math.sqrt(b) * K, V, torch.ones_like(V[0]), torch.zeros_like(V[0])))
    return layers


def network(X: Tensor, layers: list[Layer], variant: Variant) -> Tensor:
    """``X_l = LN(X_{l-1} + c A(X_{l-1}) X_{l-1} W_V)`` for each layer, as the variant says; (..., T, d)."""
    d = X.shape[-1]
    for Q, K, V, gain, bias in layers:
        # One (d, d) product in place of the queries and the keys of all tokens.
        A = torch.softmax(X @ (Q @ K.mT / math.sqrt(d)) @ X.mT, -1)
        branch = (remove_gap(A) if variant.fix else A) @ (X @ V)
        if variant.skip == "plain":
            branch = X + branch
        elif variant.skip == "upscaled":
            branch = X + branch / math.sqrt(d)
        X = layer_norm(branch, (d,), gain, bias) if variant.norm else branch
    return X


def train(
    task: Task, layers: list[Layer], variant: Variant, rate: float, epochs: int, *, frozen_keys: bool = False
) -> Fit:
    """Minimise ``mean (F(X) - Y)^2`` by ``epochs`` steps of Adam, each on all inputs; ``layers`` stay as they are.

    Precision and device are those of the task; the layers are converted.

    Args:
        rate: learning rate; the other constants are Adam's defaults.
        frozen_keys: leave ``W_Q`` and ``W_K`` at their initial values.
    """
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate: got {rate}; a learning rate is finite and > 0")
    if int(epochs) != epochs or epochs < 1:
        raise ValueError(f"epochs: got {epochs}; need an integer >= 1")
    layers = [Layer(*(p.detach().to(task.X, copy=True) for p in layer)) for layer in layers]
    names = Layer._fields[2 if frozen_keys else 0 : None if variant.norm else 3]
    parameters = [getattr(layer, name).requires_grad_() for layer in layers for name in names]
    optimiser = torch.optim.Adam(parameters, lr=rate)
    losses = []
    for _ in range(epochs):
        loss = mse_loss(network(task.X, layers, variant), task.Y)
        losses.append(loss.detach())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        losses.append(mse_loss(network(task.X, layers, variant), task.Y))
        fresh = mse_loss(network(task.X_fresh, layers, variant), task.Y_fresh)
    return Fit(torch.stack(losses).double().cpu(), float(fresh))


def train_pair(
    task: Task, layers: list[Layer], variant: Variant, rates: tuple[float, float], epochs: int
) -> dict[str, Tensor]:
    """The same task and the same initial weights without the fix and with it, each at its own learning rate.

    Returns:
        ``losses`` of shape (2, epochs + 1) and ``fresh`` of shape (2,); first without the fix.
    """
    fits = [
        train(task, layers, replace(variant, fix=fix), rate, epochs)
        for fix, rate in zip((False, True), rates, strict=True)
    ]
    return {"losses": torch.stack([fit.losses for fit in fits]), "fresh": torch.tensor([fit.fresh for fit in fits])}


def moved(task: Task, device: str, precision: str) -> Task:
    """The task on that device, ``"auto"`` for a GPU where there is one, in ``"float32"`` or ``"float64"``.

    Draws are made on the CPU and moved, so that every device sees the same numbers.
    """
    if precision not in ("float32", "float64"):
        raise ValueError(f"precision: got {precision!r}; use 'float32' or 'float64'")
    target = torch.empty(0, dtype=getattr(torch, precision), device=resolved(device))
    return Task(*(t.to(target) for t in task))


def resolved(device: str) -> str:
    """``"cuda"`` or ``"cpu"`` for ``"auto"``, any other name as it is."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
