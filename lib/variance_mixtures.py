"""Where a network converges when condition (iv) fails: to Gaussians whose variance is random, a new one each layer.

Given the layers before, an output is N(0, V). Condition (iv) makes ``V`` a constant as the width grows. Without it the
law of ``V`` has a limit of its own, carried here as atoms with weights: a quadrature, exact up to its number of nodes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

NODES = 48  # kept of a law that grows with every sum


@dataclass(frozen=True)
class VarianceLaw:
    """The law of ``V >= 0`` in ``z ~ N(0, V)``.

    Args:
        values: atoms, shape (N,), float64.
        weights: their probabilities, shape (N,).
    """

    values: Tensor
    weights: Tensor

    def __post_init__(self):
        v, w = self.values, self.weights
        if v.ndim != 1 or v.shape != w.shape or v.dtype != torch.float64:
            raise ValueError(f"values, weights: got {tuple(v.shape)} {v.dtype}, {tuple(w.shape)}; need (N,) float64")
        if not bool((v >= 0).all() and (w >= 0).all() and abs(float(w.sum()) - 1) < 1e-9):
            raise ValueError(
                f"weights: sum {float(w.sum()):.6g}, least value {float(v.min()):.3g}; need a law on V >= 0"
            )

    def mean(self) -> float:
        """``E V``, the variance of ``z``."""
        return float(self.values @ self.weights)

    def excess_kurtosis(self) -> float:
        """Of ``z``: ``3 (E V^2 / (E V)^2 - 1)``."""
        return 3 * (float(self.values.square() @ self.weights) / self.mean() ** 2 - 1)

    def through(self, f: Callable[[Tensor], Tensor]) -> "VarianceLaw":
        """Law of ``f(V)``."""
        return VarianceLaw(f(self.values), self.weights)

    def scaled(self, c: float) -> "VarianceLaw":
        """Law of ``c V``."""
        return VarianceLaw(c * self.values, self.weights)

    def times(self, other: "VarianceLaw") -> "VarianceLaw":
        """Law of ``V V'`` for independent ``V'``."""
        return VarianceLaw(torch.outer(self.values, other.values).flatten(), _outer(self, other))

    def mean_of(self, d: int) -> "VarianceLaw":
        """Law of the mean of ``d`` independent copies, by Gauss quadrature of each partial sum."""
        if d < 1:
            raise ValueError(f"d: got {d}; a mean is of at least 1")
        one = total = compressed(self)
        for _ in range(d - 1):
            sums = (total.values[:, None] + one.values).flatten()
            total = compressed(VarianceLaw(sums, _outer(total, one)))
        return total.scaled(1 / d)

    def squares(self, phi: Callable[[Tensor], Tensor]) -> "VarianceLaw":
        """Law of ``phi(z)^2``: a trapezoid sum in ``ln |Z|``, since small ``z`` make small variances of the next layer.

        ``phi`` is smooth on either side of 0.
        """
        y = torch.arange(-36, 2.6, 0.2, dtype=torch.float64)
        w = torch.exp(y - torch.exp(2 * y) / 2)
        z, w = torch.cat([-y.exp(), y.exp()]), torch.cat([w, w]) / (2 * w.sum())
        values = phi(self.values.sqrt()[:, None] * z).square()
        return VarianceLaw(values.flatten(), torch.outer(self.weights, w).flatten())

    def cdf(self, x: Tensor) -> Tensor:
        """``P(z <= x) = E Phi(x / sqrt(V))``, shape of ``x``; an atom at ``V = 0`` is a jump at 0."""
        y = x.reshape(-1, 1) / self.values.clamp_min(1e-300).sqrt()
        return (torch.special.ndtr(y) @ self.weights).reshape(x.shape)

    def kolmogorov(self, K: float) -> float:
        """Kolmogorov-Smirnov distance of ``z`` to N(0, K)."""
        x = math.sqrt(K) * torch.cat([torch.logspace(-5, 0, 200), torch.linspace(1, 8, 200)]).double()
        return float((self.cdf(x) - torch.special.ndtr(x / math.sqrt(K))).abs().max())


def point(K: float) -> VarianceLaw:
    """``V = K``: a Gaussian."""
    return VarianceLaw(torch.tensor([K], dtype=torch.float64), torch.ones(1, dtype=torch.float64))


def uniform(values: tuple[float, ...]) -> VarianceLaw:
    """Each of the values with the same probability."""
    v = torch.tensor(values, dtype=torch.float64)
    return VarianceLaw(v, torch.full_like(v, 1 / len(v)))


def chi_square(r: int) -> VarianceLaw:
    """``chi^2_r / r``, by the trapezoid rule in its logarithm: the square length of ``r`` Gaussians over its mean."""
    if r < 1:
        raise ValueError(f"r: got {r}; degrees of freedom are at least 1")
    root = math.sqrt(r)
    y = torch.arange(-75 / r - 13 / root, math.log(8 + 80 / r), 0.35 / root, dtype=torch.float64)
    w = torch.exp(r / 2 * (y - y.exp() + 1))
    return VarianceLaw(y.exp(), w / w.sum())


def binomial(n: int, p: float) -> VarianceLaw:
    """``Bin(n, p) / (n p)``: the density of a row of ``n`` coins over its mean."""
    k = torch.arange(n + 1, dtype=torch.float64)
    w = torch.exp(torch.distributions.Binomial(n, torch.tensor(p, dtype=torch.float64)).log_prob(k))
    return VarianceLaw(k / (n * p), w / w.sum())


def compressed(law: VarianceLaw, nodes: int = NODES) -> VarianceLaw:
    """The Gauss quadrature of a law: as many moments as ``2 nodes - 1`` are kept, by Lanczos' recursion."""
    if len(law.values) <= nodes:
        return law
    v, q = law.values, law.weights.sqrt()
    basis, diagonal, off = [q / q.norm()], [], []
    for _ in range(nodes):
        u = v * basis[-1]
        diagonal.append(float(u @ basis[-1]))
        Q = torch.stack(basis)
        for _ in range(2):  # once is not enough in floating point
            u = u - Q.T @ (Q @ u)
        off.append(float(u.norm()))
        if off[-1] < 1e-13 * float(v.max()):
            break
        basis.append(u / off[-1])
    values, vectors = eigh_tridiagonal(diagonal, off[: len(diagonal) - 1])
    weights = torch.from_numpy(vectors[0]).square()
    return VarianceLaw(torch.from_numpy(values).clamp_min(0), weights / weights.sum())


def _outer(a: VarianceLaw, b: VarianceLaw) -> Tensor:
    return torch.outer(a.weights, b.weights).flatten()
