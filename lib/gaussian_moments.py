"""Gaussian moments of an activation, ``E phi(u)^2`` and ``E phi(u) phi(v)``: all that a wide network's limit needs."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.gaussian_quadrature import gaussian_rule, hermite_coefficients, mehler

MAX_DEGREE = 4096  # of the Mehler series
SERIES_ACCURACY = 1e-13  # the neglected terms, relative to E phi^2
BLOCK = 1 << 16  # pairs at a time: what the cache of a core holds


@dataclass(frozen=True)
class Activation:
    """``phi`` with the moments of ``phi(u)``, ``u ~ N(0, K)``, and of ``phi(u) phi(v)``, ``(u, v)`` jointly Gaussian.

    Moments of one variable are quadratures, exact to about 1e-14 of their size. Moments of two are the Mehler series
    ``sum_k a_k(q1) a_k(q2) rho^k``, ``a_k(q) = E[phi(sqrt(q) Z) h_k(Z)]``, cut at the first degree ``d`` where the
    rest, at most ``|rho|^d (E phi^2 - sum_{k<d} a_k^2)``, is below 1e-13 ``E phi^2``: for tanh at ``rho = 1`` about
    ``d = 90 q``, at ``rho = 0.9`` never 200. A kink of ``phi`` leaves a rest of order ``|rho|^d d^{-3/2}``, a jump of
    ``phi''`` one of ``|rho|^d d^{-5/2}``; a RuntimeWarning says when more than 1e-9 is left at ``d = 4096``, which
    takes ``|rho| > 0.996``. :class:`~lib.activations.PiecewiseLinear` has no such rest.

    Args:
        name: what figures call it.
        phi: elementwise on float64 tensors; continuous, growing no faster than a polynomial.
        derivative: ``phi'``, at a kink either value.
        kinks: the points of the real line where ``phi`` is not analytic.
        strip: apart from kinks, ``phi`` is analytic for ``|Im u| < strip`` (tanh pi/2, sigmoid and softplus pi).

    Raises:
        ValueError: the quadrature does not converge (a kink without a name, too wide a strip), or ``derivative`` is not
            the derivative of ``phi``.

    Source: Mehler (1866); Daniely, Frostig & Singer (2016) for its use as the dual of an activation.
    """

    name: str
    phi: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    kinks: tuple[float, ...] = ()
    strip: float = 1.0

    def __post_init__(self):
        K = torch.tensor([0.3, 3.0], dtype=torch.float64)
        grids = (gaussian_rule(K, self.kinks, strip) for strip in (self.strip, self.strip / 1.7))
        coarse, fine = ((self.phi(K.sqrt()[:, None] * z).square() * w).sum(-1) for z, w in grids)
        if not torch.allclose(coarse, fine, rtol=1e-9, atol=1e-12):
            raise ValueError(
                f"phi: two grids give {coarse.tolist()} and {fine.tolist()} for E phi(u)^2 of {self.name} at "
                f"K = 0.3, 3; name all its kinks (got {self.kinks}), or a strip smaller than {self.strip:g}"
            )
        stein, slope = self._expect(lambda u: u * self.phi(u), K) / K, self._expect(self.derivative, K)
        if not torch.allclose(stein, slope, rtol=1e-8, atol=1e-10):
            raise ValueError(
                f"derivative: E[u phi(u)] / K = {stein.tolist()} and E phi'(u) = {slope.tolist()} differ for "
                f"{self.name} at K = 0.3, 3; phi is to be continuous, and derivative its derivative"
            )

    def second_moment(self, K: Tensor | float) -> Tensor:
        """``g(K) = E phi(u)^2``, ``u ~ N(0, K)``; any shape -> the same, as for the moments that follow."""
        return self._expect(lambda u: self.phi(u).square(), check_variance("K", K))

    def second_moment_slope(self, K: Tensor | float) -> Tensor:
        """``g'(K) = E[u phi(u) phi'(u)] / K``, ``K > 0``."""
        K = check_variance("K", K, positive=True)
        return self._expect(lambda u: u * self.phi(u) * self.derivative(u), K) / K

    def second_moment_curvature(self, K: Tensor | float) -> Tensor:
        """``g''(K) = E[(u^3 - 3 K u) phi(u) phi'(u)] / (2 K^3)``, ``K > 0``; absolute error about 1e-15 / K."""
        K = check_variance("K", K, positive=True)
        first, third = (self._expect(lambda u, p=p: u**p * self.phi(u) * self.derivative(u), K) for p in (1, 3))
        return (third / K - 3 * first) / (2 * K.square())

    def derivative_moment(self, K: Tensor | float) -> Tensor:
        """``E phi'(u)^2``."""
        return self._expect(lambda u: self.derivative(u).square(), check_variance("K", K))

    def fourth_moment(self, K: Tensor | float) -> Tensor:
        """``E phi(u)^4``."""
        return self._expect(lambda u: self.phi(u) ** 4, check_variance("K", K))

    def square_variance(self, K: Tensor | float) -> Tensor:
        """``v(K) = Var phi(u)^2 = E phi(u)^4 - g(K)^2``."""
        K = check_variance("K", K)
        g = self.second_moment(K).reshape(-1, 1)
        return self._expect(lambda u: (self.phi(u).square() - g).square(), K)

    def cross(self, q1: Tensor | float, q2: Tensor | float, c: Tensor | float) -> Tensor:
        """``F(q1, q2, c) = E[phi(u) phi(v)]``, ``(u, v) ~ N(0, [[q1, c], [c, q2]])``, broadcast over the arguments.

        Raises:
            ValueError: a variance is negative, or ``|c| > sqrt(q1 q2)``.
        """
        return self._series(self.phi, *check_covariance(q1, q2, c))

    def cross_derivative(self, q1: Tensor | float, q2: Tensor | float, c: Tensor | float) -> Tensor:
        """``dF/dc = E[phi'(u) phi'(v)]``, broadcast over the arguments.

        Where ``phi'`` jumps, this has a square-root singularity at ``|rho| = 1`` and its series a rest of ``d^{-1/2}``.
        """
        return self._series(self.derivative, *check_covariance(q1, q2, c))

    def kernel(self, K: Tensor) -> Tensor:
        """``F(K)_{ab} = E[phi(u_a) phi(u_b)]``, ``u ~ N(0, K)``: all pairs of (N, N), symmetric to the last bit."""
        q, rho = check_kernel(K)
        a = self._coefficients(self.phi, q, rho)
        F = torch.empty_like(rho)
        rows = max(1, BLOCK // len(q))
        for i in range(0, len(q), rows):
            F[i : i + rows, i:] = mehler(a[:, i : i + rows, None], a[:, None, i:], rho[i : i + rows, i:])
        return mirror(F, self.second_moment(q))

    def _expect(self, f: Callable[[Tensor], Tensor], K: Tensor) -> Tensor:
        z, w = gaussian_rule(K.reshape(-1), self.kinks, self.strip)
        return (f(K.reshape(-1, 1).sqrt() * z) * w).sum(-1).reshape(K.shape)

    def _series(self, f: Callable[[Tensor], Tensor], q1: Tensor, q2: Tensor, rho: Tensor) -> Tensor:
        a = self._coefficients(f, torch.cat([q1.reshape(-1), q2.reshape(-1)]), rho)
        a, b = a.split([q1.numel(), q2.numel()], dim=1)
        return mehler(a.reshape(-1, *q1.shape), b.reshape(-1, *q2.shape), rho)

    def _coefficients(self, f: Callable[[Tensor], Tensor], q: Tensor, rho: Tensor) -> Tensor:
        """Hermite coefficients of ``f`` at the variances ``q``, as many as the correlations ``rho`` need; (d, Q)."""
        rho = float(rho.abs().max())
        total = self._expect(lambda u: f(u).square(), q)
        degree = 64
        while True:
            a = hermite_coefficients(f, q, degree, self.kinks, self.strip)
            rest = (total - a.square().cumsum(0)).clamp_min(0)  # after the terms 0..k
            rest = rest.amax(1) / total.max().clamp_min(1e-300) * rho ** torch.arange(1, degree + 1, device=q.device)
            if float(rest[-1]) <= SERIES_ACCURACY:
                return a[: 1 + int((rest > SERIES_ACCURACY).sum())]
            if degree == MAX_DEGREE:
                break
            degree *= 2
        if float(rest[-1]) > 1e-9:
            warnings.warn(
                f"{self.name}: the Mehler series leaves up to {float(rest[-1]):.1e} of E f(u)^2 at |rho| = {rho:.6g} "
                f"and variance {float(q.max()):.3g}, after {degree} terms",
                RuntimeWarning,
                stacklevel=4,
            )
        return a


def check_variance(name: str, K: Tensor | float, positive: bool = False) -> Tensor:
    """``K`` as a float64 tensor, refused where it is no variance."""
    K = torch.as_tensor(K, dtype=torch.float64)
    if K.numel() == 0 or not bool((K.isfinite() & ((K > 0) if positive else (K >= 0))).all()):
        given = f"{float(K)}" if K.ndim == 0 else f"values from {K.min():.3g}" if K.numel() else "nothing"
        raise ValueError(f"{name}: got {given}; a variance is finite and {'> 0' if positive else '>= 0'} here")
    return K


def check_covariance(q1, q2, c) -> tuple[Tensor, Tensor, Tensor]:
    """``q1, q2, rho = c / sqrt(q1 q2)``, with ``rho`` = 0 where a variance is 0; refused where ``|rho| > 1``."""
    q1, q2, c = check_variance("q1", q1), check_variance("q2", q2), torch.as_tensor(c, dtype=torch.float64)
    s = q1.sqrt() * q2.sqrt()
    rho = torch.where(s > 0, c / s, c * 0)
    outside = ~((c.abs() <= s * (1 + 1e-9)) & c.isfinite())  # rounding may leave |rho| a little above 1
    if outside.any():
        raise ValueError(f"c: {int(outside.sum())} of {outside.numel()} covariances are not within +-sqrt(q1 q2)")
    return q1, q2, rho.clamp(-1, 1)


def check_kernel(K: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonal of a covariance matrix, and its correlations with 0 on the diagonal; (N, N) -> (N,), (N, N)."""
    if not isinstance(K, Tensor) or K.ndim != 2 or K.shape[0] != K.shape[1]:
        given = f"shape {tuple(K.shape)}" if isinstance(K, Tensor) else type(K).__name__
        raise ValueError(f"K: got {given}; need a tensor of shape (N, N)")
    q = K.diagonal()
    return q, check_covariance(q[:, None], q[None, :], K)[2].clone().fill_diagonal_(0)


def mirror(F: Tensor, diagonal: Tensor) -> Tensor:
    """The symmetric matrix with the upper triangle of ``F`` and this diagonal."""
    F = F.triu(1)
    return (F + F.T).diagonal_scatter(diagonal)
