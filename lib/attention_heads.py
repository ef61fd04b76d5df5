"""Several heads with an output projection: a sampler of their token covariance, and its limit by free probability.

``X_l = [A_1 X W_1, ..., A_h X W_h] W_O`` with ``X = X_{l-1}``, ``W_k`` of shape (d, d/h), ``W_O`` of shape (d, d), all
entries i.i.d. N(0, 1/d), and one attention matrix a head.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import optimize
from torch import Tensor

from lib.attention import EntryLaw, remove_gap
from lib.laws import TW1_MEAN


def head_factors(
    attention: Callable[[], Tensor], T: int, d: int, h: int, layers: int, generator: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Token factors after each layer of ``h`` heads, with the fix in every head and without it, from the same draws.

    As in :func:`lib.attention.token_factors`, ``A 1 = 1`` gives ``X_l = X_l^perp + 1 r_l^T`` exactly: a head keeps the
    direction of ones, and so does their concatenation.

    Args:
        attention: draws one (T, T) attention matrix with rows that sum to 1; called ``h`` times a layer.
        T, d: tokens, which are isometric, and their dimension.
        h: number of heads, a divisor of ``d``.
        layers: number of layers, >= 1.

    Returns:
        ``(Y, r)`` for each layer, shapes (T, d) and (d,): ``Y Y^T`` is distributed as ``Sigma_l^perp``, and
        ``(Y + 1 r^T)(Y + 1 r^T)^T`` as ``Sigma_l``, jointly over layers.
    """
    for name, value in (("T", T), ("d", d), ("h", h), ("layers", layers)):
        if int(value) != value or value < 1:
            raise ValueError(f"{name}: got {value}; it is an integer >= 1")
    if d % h:
        raise ValueError(f"h: got {h}; the number of heads divides d = {d}")

    def weights(rows: int) -> Tensor:
        return torch.randn(rows, d, dtype=torch.float64, device=generator.device, generator=generator) / math.sqrt(d)

    values = weights(T)  # X_0 W = O N / sqrt(d) for X_0 with orthonormal rows
    r = values.new_zeros(d)
    factors = []
    for l in range(layers):
        if l:
            W = weights(d)
            values, r = Y @ W, r @ W  # noqa: F821
        heads = [remove_gap(attention()) @ block for block in values.chunk(h, -1)]
        W_O = weights(d)
        Y, r = torch.cat(heads, -1) @ W_O, (r + values.mean(0)) @ W_O
        factors.append((Y, r))
    return factors


@dataclass(frozen=True)
class HeadsLaw:
    """Limit of the eigenvalues of ``(T / sigma^2)^l Sigma_l^perp`` for ``h`` heads, attention random Markov matrices.

    An average of ``h`` free copies of a law with S-transform ``S`` has the S-transform ``S(z / h)``. So a layer takes
    ``S_{l-1}(z)`` to ``S_{l-1}(z/h) / [(1 + z/h)(1 + gamma z)^2]``: attention matrices average over heads, the values
    ``[W_1, ..., W_h]`` and ``W_O`` do not. Hence

        S_l(z) = prod_{j=1}^{l} 1 / [(1 + z / h^j) (1 + gamma z / h^{j-1})^2],    chi(z) = z S_l(z) / (1 + z).

    Args:
        h: number of heads; ``math.inf`` is allowed.
        gamma: ``T / d``.
        l: number of layers.
    """

    h: float
    gamma: float
    l: int = 1

    def __post_init__(self):
        if not self.h >= 1:
            raise ValueError(f"h: got {self.h}; the number of heads is >= 1")
        if not (math.isfinite(self.gamma) and self.gamma > 0):
            raise ValueError(f"gamma: got {self.gamma}; the ratio T/d is finite and > 0")
        if int(self.l) != self.l or self.l < 1:
            raise ValueError(f"l: got {self.l}; the number of layers is an integer >= 1")

    @property
    def _ratios(self) -> list[float]:
        """Aspect ratios ``c`` of the factors ``1 / (1 + c z)`` of ``S_l``."""
        steps = [self.h ** -float(j) for j in range(self.l + 1)]
        return steps[1:] + 2 * [self.gamma * s for s in steps[:-1]]

    @property
    def second_moment(self) -> float:
        """``m_2 = 1 + sum_j (h^{-j} + 2 gamma h^{1-j})``: the limit of ``T^{2l-1} (sr(Sigma_l) - 1) / sigma^{4l}``.

        At ``l = 1``: ``1 + 1/h + 2 gamma``.
        """
        return 1 + sum(self._ratios)

    def second_moment_shift(self, T: int, law: EntryLaw) -> float:
        """Relative distance of ``T^{2l-1} sum_{i>=2} s_i(X_l)^4 / sigma^{4l}`` from its limit, to order 1/T.

        As in :func:`lib.attention_theory.width_collapse_shift`, absolute values add up: per layer the variance of an
        entry, its kurtosis averaged over heads, the top singular value, and ``2 (1 + gamma)`` for the direction that
        is taken out on either side of the bulk.
        """
        s2 = law.sigma**2
        entry = 2 * abs(1 + 2 * law.skewness * law.sigma - 3 * s2)
        tail = abs(law.kurtosis) / (self.h * self.second_moment)
        return self.l * (entry + tail + 2 * s2 + 2 * (1 + self.gamma)) / T

    def chi(self, z: float) -> float:
        """``z S_l(z) / (1 + z)``, the inverse of the moment series."""
        return z / ((1 + z) * math.prod(1 + c * z for c in self._ratios))

    @property
    def z_star(self) -> float:
        """Where ``chi`` is largest: the root of ``1/z = 1/(1+z) + sum_c c / (1 + c z)``, at most ``1/max c``."""
        end = 1 / max(self._ratios)  # there 1/z = 2c/(1 + cz), so the right side is larger
        return float(
            optimize.brentq(
                lambda z: 1 / z - 1 / (1 + z) - sum(c / (1 + c * z) for c in self._ratios), 1e-12, end, xtol=1e-15
            )
        )

    @property
    def edge(self) -> float:
        """Right edge ``1 / chi(z*)``."""
        return 1 / self.chi(self.z_star)

    def edge_at(self, T: int) -> float:
        """Mean of the largest eigenvalue: ``edge + (C T)^{-2/3} E[TW_1]``; see :class:`~lib.laws.FreePower`."""
        z = self.z_star
        bend = -1 / z**2 + 1 / (1 + z) ** 2 + sum((c / (1 + c * z)) ** 2 for c in self._ratios)
        C = math.sqrt(-2 / (self.edge * bend)) / self.edge
        return self.edge + (C * T) ** (-2 / 3) * TW1_MEAN

    @property
    def fixed_rank(self) -> float:
        """``m_2 chi(z*)^2``: the limit of ``sr(Sigma_l) / T`` with the fix in every head."""
        return self.second_moment / self.edge**2

    def fixed_rank_at(self, T: int, kurtosis: float = 0.0) -> float:
        """``sr(Sigma_l) / T`` with the fix at finite ``T``: edge fluctuations, and the excess kurtosis of ``Z``.

        ``kappa_4`` changes ``1 + z / h^j`` by the factor ``1 + kappa_4 z / (h^j T)``; see
        :func:`lib.attention_theory.fixed_rank_at`.
        """
        k = kurtosis / T * sum(self.h ** -float(j) for j in range(1, self.l + 1))
        return (self.second_moment + k) / (self.edge_at(T) + self.edge * k * self.z_star) ** 2


def key_query_heads_constant(h: float, gamma: float, b: float) -> float:
    """``1 + 1/h + 2 gamma + gamma b^4 / sigma^4``: the limit of ``T (sr(Sigma_1) - 1) / sigma^4`` for softmax heads.

    With ``d_qk = d/h`` and isometric tokens the fourth moment of the bulk of a head exceeds that of independent
    entries by ``h gamma b^4``, ``sigma^2 = e^{b^2} - 1``. An average over heads divides it by ``h``.
    """
    if not (math.isfinite(b) and b > 0):
        raise ValueError(f"b: got {b}; the variance of an entry of W_Q, W_K is finite and > 0")
    return HeadsLaw(h, gamma).second_moment + gamma * (b**2 / math.expm1(b**2)) ** 2
