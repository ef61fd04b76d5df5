"""Attention blocks with skips through depth: the measured collapse, and what theory predicts for it.

Isometric tokens, values of unit variance, and ``A = 1 1^T / T + B`` with ``B 1 = 0`` and i.i.d. entries of standard
deviation ``sigma / T`` in ``B``. A block acts on what tokens share, a random walk of one vector, and on what tells them
apart, a free convolution. LayerNorm is a common factor for tokens of equal norm, hence absent to leading order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from lib.attention_blocks import Tokens, Variant, Weights, block
from lib.laws import TW1_MEAN
from lib.spectra import covariance_stable_rank_excess

_SMALLEST = 1e-4  # a curve starts where its second-order series is exact to 1e-8, far left of every edge
_NODES = 600


def excess_by_layer(X: Tensor, weights: Sequence[Weights], variant: Variant, scale: float = 1.0) -> Tensor:
    """``sr(Sigma_l) - 1`` for l = 1, 2, ..., shape (layers,); 0 once all tokens agree to rounding.

    Args:
        X: tokens, shape (T, d).
        weights: of each layer.
        variant: the block.
        scale: multiplies the tokens after every block; 2 for the public code's ``skip``, 1 for the paper's.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale: got {scale}; it is finite and > 0")
    norm = float(X.norm()) / math.sqrt(len(X))
    tokens, excess = Tokens(X / norm, math.log(norm)), X.new_zeros(len(weights))
    # Equal tokens stay equal through any block. What is left of their differences is rounding, not signal.
    rounding = (len(X) * torch.finfo(X.dtype).eps) ** 4
    for l, layer in enumerate(weights):
        tokens = block(tokens, layer, variant)
        tokens = tokens._replace(s=tokens.s + math.log(scale))
        value = covariance_stable_rank_excess(tokens.Y)
        if value < rounding:
            break
        excess[l] = value
    return excess


def bulk_moments(l: int, gamma: float, skip: float, branch: float) -> tuple[float, float]:
    """First two moments of the squared singular values of ``Y_l = a Y_{l-1} + c G_l Y_{l-1} W_l``, ``Y_0 Y_0^T = I``.

    ``m_1' = (a^2 + c^2) m_1`` and ``m_2' = a^4 m_2 + c^4 (m_2 + (1 + gamma) m_1^2) + 2 (1 + gamma) a^2 c^2 m_1^2``, for
    ``G_l`` of (T, T) and ``W_l`` of (d, d), Gaussian entries of variance ``1/T`` and ``1/d``: skip and branch are free,
    and each factor adds its ratio to ``m_2 / m_1^2``.

    Args:
        l: number of layers, at least 0.
        gamma: ``T / d``, at least 0.
        skip, branch: the weights ``a`` and ``c``.
    """
    _check_depth(l)
    a2, c2 = skip**2, branch**2
    m1, m2 = 1.0, 1.0
    for _ in range(l):
        m2 = (a2**2 + c2**2) * m2 + (1 + gamma) * (c2**2 + 2 * a2 * c2) * m1**2
        m1 *= a2 + c2
    return m1, m2


def plain_excess(T: int, l: int, gamma: float, sigma: float, skip: bool = True) -> float:
    """``sr(Sigma_l) - 1 = T^{1-2l} m_2`` for ``X + A X W`` without the fix; ``m_2`` of ``a^2 = gamma``, ``c = sigma``.

    Both terms are of order ``1/sqrt(T)`` off the direction ``1``: the branch because of the gap, the skip because the
    values outweigh it by ``sqrt(d)``. Without a skip, ``a = 0`` and ``m_2 = sigma^{4l} (1 + l (1 + gamma))``.
    """
    return T ** (1 - 2 * l) * bulk_moments(l, gamma, math.sqrt(gamma) * skip, sigma)[1]


def upscaled_top(l: int, gamma: float) -> float:
    """Largest squared singular value of ``X_l`` for ``X + A X W / sqrt(d)`` without the fix, as T grows.

    The mean token obeys ``r_l = (I + W_l^T / sqrt(d)) r_{l-1}``, so ``T |r_l|^2 -> rho = 2^l``, and all else stays
    isometric. The share ``gamma`` of what the walk adds lies in the span of the tokens' differences and mixes with
    them: ``mu_l`` is the largest eigenvalue of ``[[rho, v], [v, 1]]``, ``v^2 = gamma (rho - 1)``.
    """
    _check_depth(l)
    rho = 2.0**l
    return (rho + 1 + math.sqrt((rho - 1) ** 2 + 4 * gamma * (rho - 1))) / 2


def upscaled_excess(T: int, l: int, gamma: float, sigma: float) -> float:
    """``sr(Sigma_l) - 1 = T m_2 / mu_l^2`` without the fix, ``mu_l`` of :func:`upscaled_top`, ``m_2`` of the bulk."""
    return T * bulk_moments(l, gamma, 1.0, sigma / math.sqrt(T))[1] / upscaled_top(l, gamma) ** 2


def cyclic_points(T: int) -> float:
    """``sum_k T! / ((T-k)! T^k)``: mean number of points on cycles of a uniform random map of T points to themselves.

    About ``sqrt(pi T / 2) - 1/3``. They are the nonzero eigenvalues, all of modulus 1, of the map's 0/1 matrix.

    Source: Harris (1960); Flajolet & Odlyzko (1990).
    """
    if int(T) != T or T < 1:
        raise ValueError(f"T: got {T}; a size is an integer >= 1")
    return float(np.cumprod(1 - np.arange(T) / T).sum())


@dataclass(frozen=True)
class BlockLaw:
    """Law of the squared singular values of ``Y_l = a Y_{l-1} + c G_l Y_{l-1} W_l``, ``Y_0`` orthogonal, ``T = d``.

    That is a block with the fix; ``G_l``, ``W_l`` have independent Gaussian entries of variance ``1/T``. Every ``Y_l``
    is R-diagonal, so its law is a power series ``f_l`` with ``f_l^{-1}(z) = z (1 + z) S_l(z)``, ``S_l`` the
    S-transform. Skip and branch are free, so their series add, and each factor multiplies ``S`` by ``1 / (1 + z)``:

        ``f_l(t) = f_{l-1}(a^2 t) + g_l(t)``,  ``g_l^{-1}(z) = f_{l-1}^{-1}(z) / (c^2 (1 + z)^2)``,

    from ``f_0(t) = (sqrt(1 + 4t) - 1) / 2``. The right edge is the minimum of ``(1 + f_l(t))^2 / t``. For ``a = 0``
    this is :class:`~lib.laws.FreePower` with ``gamma = 1``.

    Args:
        l: number of layers, at least 1.
        skip: ``a``, 1, or 0 where there is no skip; any other weight is a matter of scale.
        branch: ``c > 0``: ``sigma`` under a plain skip with values of unit variance, ``sigma / sqrt(T)`` under an
            upscaled one.

    Source: Haagerup & Larsen (2000) and Nica & Speicher (2006), lecture 15, for R-diagonal elements.
    """

    l: int
    skip: float
    branch: float

    def __post_init__(self):
        _check_depth(self.l, least=1)
        if self.skip not in (0, 1):
            raise ValueError(f"skip: got {self.skip}; the skip weighs 1, or 0 where there is none")
        if not (math.isfinite(self.branch) and self.branch > 0):
            raise ValueError(f"branch: got {self.branch}; the weight of the branch is finite and > 0")

    @property
    def edge(self) -> float:
        """Right edge of the support."""
        return self._edge[0]

    def share(self, T: int) -> float:
        """``sr(Sigma_l) / T = m_2 / edge(T)^2`` with the mean ``edge(T)`` of the largest of ``T`` values.

        As in :meth:`lib.laws.FreePower.edge_at`: ``edge(T) = edge + (C T)^{-2/3} E[TW_1]`` with
        ``C = sqrt(2 / x''(z*)) / edge``, where ``x(z) = (1 + z)^2 / f_l^{-1}(z)`` is smallest at ``z*``.
        """
        edge, curvature = self._edge
        C = math.sqrt(2 / curvature) / edge
        return self._m2 / (edge + (C * T) ** (-2 / 3) * TW1_MEAN) ** 2

    @property
    def limit(self) -> float:
        """``m_2 / edge^2``: :meth:`share` as ``T`` grows at fixed ``a`` and ``c``."""
        return self._m2 / self.edge**2

    @property
    def _m2(self) -> float:
        return bulk_moments(self.l, 1.0, self.skip, self.branch)[1]

    @cached_property
    def _curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Points ``(t, f_l(t))``, both increasing, from small ones to where ``f_l`` turns singular."""
        # The law of Y_0: one point. It has no edge of its own, so the recursion starts with its curve alone.
        z = np.geomspace(_SMALLEST, 1 / _SMALLEST, 4 * _NODES)
        t = z * (1 + z)
        for l in range(1, self.l + 1):
            new = t / (self.branch * (1 + z)) ** 2
            rising = slice(int(new.argmax()) + 1)  # g_l ends where its inverse stops rising
            new, branch = new[rising], z[rising]
            if self.skip:
                inside = new <= t[-1]
                new, branch = new[inside], branch[inside]
                branch = branch + np.exp(CubicSpline(np.log(t), np.log(z))(np.log(new)))
            t, z = self._extended(l, new, branch)
        return t, z

    def _extended(self, l: int, t: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The curve continued to small ``z`` by ``f = m_1 t + (m_2 - 2 m_1^2) t^2``, solved for ``t``."""
        if z[0] < 2 * _SMALLEST:
            return t, z
        m1, m2 = bulk_moments(l, 1.0, self.skip, self.branch)
        low = np.geomspace(_SMALLEST, z[0], _NODES, endpoint=False)
        series = 2 * low / (m1 + np.sqrt(m1**2 + 4 * (m2 - 2 * m1**2) * low))
        return np.concatenate([series, t]), np.concatenate([low, z])

    @cached_property
    def _edge(self) -> tuple[float, float]:
        """Minimum of ``x(z)``, and its second derivative there."""
        t, z = self._curve
        x = (1 + z) ** 2 / t
        best = int(x.argmin())
        near = slice(max(0, best - 20), best + 21)
        curve = CubicSpline(np.log(z[near]), np.log(x[near]))
        stationary = curve.derivative().roots(extrapolate=False)
        u = stationary[curve(stationary).argmin()]
        edge = math.exp(curve(u))
        return edge, edge * float(curve(u, 2)) / math.exp(2 * u)  # d^2/dz^2 from logarithms, at a stationary point


def _check_depth(l: int, least: int = 0) -> None:
    if int(l) != l or l < least:
        raise ValueError(f"l: got {l}; the number of layers is an integer >= {least}")
