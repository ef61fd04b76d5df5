"""Weights that are drawn where they are looked at: queries chosen after earlier answers, and exact back-propagation.

After the queries ``phi_1, ..., phi_j`` a network knows ``W Q`` for an orthonormal basis ``Q`` of their span, and of
``W`` nothing else. The next answer is drawn from its law given the past. So recurrent networks with tied weights, and
gradients, cost ``O((m + n) j)`` a query.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lib.ensembles import Ensemble, Gaussian, LowRank, Orthogonal, rank_of
from lib.nngp import check_scales
from lib.random_matrices import gaussian


class LazyWeights:
    """Independent matrices ``W`` of shape (m, n), one a network, known only through the answers they gave.

    - :meth:`forward` gives ``W phi``, as often as you like;
    - :meth:`backward` gives ``W^T delta``, once, after all forward queries.

    Args:
        ensemble: :class:`~lib.ensembles.Gaussian`, :class:`~lib.ensembles.Orthogonal` with ``m = n``, or
            :class:`~lib.ensembles.LowRank`.
        m: rows.
        n: columns.
        networks: how many matrices.
        generator: draws the answers; float64, on its device.
    """

    def __init__(self, ensemble: Ensemble, m: int, n: int, networks: int, generator: torch.Generator):
        if not isinstance(ensemble, Gaussian | Orthogonal | LowRank):
            raise ValueError(f"ensemble: {ensemble.name} has no lazy sampler; use Gaussian, Orthogonal or LowRank")
        if isinstance(ensemble, Orthogonal) and m != n:
            raise ValueError(f"m, n: got {m}, {n}; lazy orthogonal weights are square")
        self.ensemble, self.m, self.n, self.generator = ensemble, m, n, generator
        self.rank = rank_of(ensemble.rank, m) if isinstance(ensemble, LowRank) else m
        empty = {"dtype": torch.float64, "device": generator.device}
        self._Q = torch.zeros(networks, 0, n, **empty)  # orthonormal queries, as rows
        self._Y = torch.zeros(networks, 0, m, **empty)  # what W makes of them
        self._B = torch.zeros(networks, 0, m, **empty)  # orthonormal basis of their span
        self._closed = False

    def forward(self, phi: Tensor) -> Tensor:
        """``W phi``; shape (networks, n) -> (networks, m)."""
        if self._closed:
            raise RuntimeError("forward: the weights have been asked backward; ask all forward queries first")
        if len(self._Q[0]) == min(self.n, self.rank):
            raise ValueError(f"phi: {min(self.n, self.rank)} queries were answered, which is all that are independent")
        c, q, rho = _split(phi.double(), self._Q)
        y = self._new_answer()
        answer = (c @ self._Y)[:, 0] + rho[:, None] * y
        self._Q, self._Y = torch.cat([self._Q, q[:, None]], 1), torch.cat([self._Y, y[:, None]], 1)
        self._B = torch.cat([self._B, _split(y, self._B)[1][:, None]], 1)
        return answer

    def backward(self, delta: Tensor) -> Tensor:
        """``W^T delta`` given all answers so far; shape (networks, m) -> (networks, n)."""
        if self._closed:
            raise RuntimeError("backward: can be asked once, since its answer is not kept")
        self._closed = True
        delta = delta.double()
        known = (delta[:, None] @ self._Y.mT @ self._Q)[:, 0]
        noise = _split(gaussian(len(delta), self.n, generator=self.generator), self._Q, normalise=False)[1]
        b, _, rho = _split(delta, self._B)
        match self.ensemble:
            case Gaussian():
                scale = delta.norm(dim=-1) / math.sqrt(self.n)
            case Orthogonal():  # a unit vector: lengths are kept
                scale = rho / noise.norm(dim=-1)
            case LowRank():  # the part of delta in the range of C: all of B, and a share of the rest
                share = self._beta((self.rank - self._Y.shape[1]) / 2, (self.m - self.rank) / 2)
                seen = b.square().sum((-2, -1)) + rho.square() * share
                scale = (self.m / (self.rank * self.n) * seen).sqrt()
        return known + scale[:, None] * noise

    def _new_answer(self) -> Tensor:
        """``W q`` for a unit vector ``q`` orthogonal to all earlier queries."""
        networks, j, m = self._Y.shape
        fresh = gaussian(networks, m, generator=self.generator)
        match self.ensemble:
            case Gaussian():
                return fresh / math.sqrt(self.n)
            case Orthogonal():
                return _split(fresh, self._B)[1]
        # P q is Gaussian in R^r; C maps it to its part in the span of earlier answers, and to a new direction.
        old = gaussian(networks, 1, j, generator=self.generator) @ self._B
        freedom = torch.full((networks,), (self.rank - j) / 2, dtype=torch.float64, device=fresh.device)
        chi = torch._standard_gamma(freedom, generator=self.generator).mul_(2).sqrt_()
        new = chi[:, None] * _split(fresh, self._B)[1]
        return math.sqrt(m / (self.rank * self.n)) * (old[:, 0] + new)

    def _beta(self, a: float, b: float) -> Tensor:
        """Beta(a, b), one a network; the point mass where a parameter is zero."""
        shape = (len(self._Y),)
        if a == 0 or b == 0:
            return torch.full(shape, float(b == 0), dtype=torch.float64, device=self._Y.device)
        x, y = (
            torch._standard_gamma(torch.full(shape, p, dtype=torch.float64), generator=self.generator) for p in (a, b)
        )
        return x / (x + y)


def gradient_norms(
    ensemble: Ensemble,
    n: int,
    layers: int,
    networks: int,
    phi: Callable[[Tensor], Tensor],
    derivative: Callable[[Tensor], Tensor],
    K: float,
    generator: torch.Generator,
    *,
    sigma_w: float,
    sigma_b: float = 0.0,
    explicit: bool = False,
) -> Tensor:
    """``log |delta^(l)|^2`` for ``l = 1, ..., L``, ``|delta^(L)| = 1``, of independent networks of width ``n``.

    Forward ``z^(l) = sigma_w W^(l) phi(z^(l-1)) + sigma_b b``, back ``delta^(l) = phi'(z^(l)) o (sigma_w W^(l+1)^T
    delta^(l+1))``, with the same ``W``. The law is exact, at ``O(n)`` a layer and network.

    Args:
        ensemble: law of ``W^(l)``, ``l >= 2``; see :class:`LazyWeights`. The first layer is Gaussian.
        phi, derivative: the activation, elementwise.
        K: variance of a pre-activation of the first layer, bias included.
        explicit: draw the matrices and multiply, as an oracle.

    Returns:
        Shape (networks, layers), float64.
    """
    check_scales(sigma_w, sigma_b)
    if not (math.isfinite(K) and K > 0):
        raise ValueError(f"K: got {K}; the variance of the first layer is finite and > 0")
    draw = lambda: gaussian(networks, n, generator=generator)  # noqa: E731
    z = [math.sqrt(K) * draw()]
    weights: list[LazyWeights | _Matrices] = []
    for _ in range(layers - 1):
        W = (_Matrices if explicit else LazyWeights)(ensemble, n, n, networks, generator)
        z.append(sigma_w * W.forward(phi(z[-1])))
        if sigma_b:
            z[-1] += sigma_b * draw()
        weights.append(W)
    delta = torch.nn.functional.normalize(draw(), dim=-1)
    norms = [delta.norm(dim=-1)]
    for W, here in zip(reversed(weights), reversed(z[:-1]), strict=True):
        delta = derivative(here) * (sigma_w * W.backward(delta))
        norms.append(delta.norm(dim=-1))
    return 2 * torch.stack(norms[::-1], -1).log()


class _Matrices:
    """What :class:`LazyWeights` avoids."""

    def __init__(self, ensemble: Ensemble, m: int, n: int, networks: int, generator: torch.Generator):
        self._W = ensemble.matrix(m, n, generator, (networks,))

    def forward(self, phi: Tensor) -> Tensor:
        return (self._W @ phi[..., None])[..., 0]

    def backward(self, delta: Tensor) -> Tensor:
        return (self._W.mT @ delta[..., None])[..., 0]


def _split(x: Tensor, basis: Tensor, *, normalise: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients of ``x`` (b, n) in the rows of ``basis`` (b, j, n), the unit vector of the rest, and its norm."""
    c = x[:, None] @ basis.mT  # (b, 1, j)
    rest = x - (c @ basis)[:, 0]
    again = rest[:, None] @ basis.mT  # once loses orthogonality, twice is enough
    c, rest = c + again, rest - (again @ basis)[:, 0]
    norm = rest.norm(dim=-1)
    return c, rest / norm.clamp(min=1e-300)[:, None] if normalise else rest, norm
