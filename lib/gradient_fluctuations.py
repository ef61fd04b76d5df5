"""How much the norm of a gradient differs from one wide random network to the next: theory to order ``1/n``.

A gradient ``delta^(L)`` at the last pre-activation goes back as ``delta^(l) = phi'(z^(l)) o (W^(l+1)^T delta^(l+1))``.
In the limit a layer multiplies ``|delta|^2`` by ``sigma_w^2 E phi'^2``, whatever the pseudo-iid ensemble. What is left
at finite width does know the ensemble, through one number: how much ``|W u|^2`` fluctuates.
"""

import math
from dataclasses import dataclass
from itertools import islice

import torch

from lib.ensembles import Ensemble, Gaussian, GaussianProduct, LowRank, Orthogonal, Spectrum
from lib.gaussian_moments import Activation
from lib.gaussian_quadrature import gaussian_rule
from lib.nngp import check_scales
from lib.weight_conditions import exact_moments
from lib.width_corrections import corrections


@dataclass(frozen=True)
class GradientLaw:
    """Law of the ratio ``R = |delta^(l)|^2 / |delta^(L)|^2`` over networks, all of width ``n``.

    ``E R = gain (1 + mean / n)`` and ``Var log R = variance / n``, to first order in ``1/n``.
    """

    gain: float
    mean: float
    variance: float

    def log_mean(self, n: int) -> float:
        """``E log R = log gain + (mean - variance / 2) / n``."""
        return math.log(self.gain) + (self.mean - self.variance / 2) / n


def gradient_laws(
    phi: Activation, ensemble: Ensemble, n: int, layers: int, K: float, *, sigma_w: float, sigma_b: float = 0.0
) -> list[GradientLaw]:
    """The laws for ``l = 1, ..., L - 1``, at one input, for a ``delta^(L)`` that is independent of the network.

    In layer ``l`` write ``g = E phi^2``, ``h = E phi'^2``, ``v = Var phi^2`` at variance ``K``, ``q = K - sigma_b^2``,
    and ``s = n Var |W u|^2`` for a unit vector ``u``: 2 for independent weights, 0 for orthogonal ones, ``2 n / r`` for
    low rank. To first order in ``n^{-1/2}`` the logarithm of a layer's gain moves by ``A / sqrt(n)``, and the next
    ``q`` by ``Q' / sqrt(n)``,

        A  = (h'/h) N + alpha + back,    Q' = sigma_w^2 (g' N + beta),    N = Q + q ahead,

    with independent ``back``, ``ahead`` of variance ``s`` (``ahead`` of the first layer: 2), and with

        Var alpha = 3 (E phi'^4 / h^2 - 1) - 2 q^2 (h'/h)^2,    Var beta = v - 2 q^2 g'^2,
        Cov(alpha, beta) = E[phi^2 phi'^2] / h - g - 2 q^2 g' h'/h.

    The variance is that of ``sum A``. The mean adds, a layer,
    ``m h'/h + C h''/(2h) + (kappa' - 1) (E[phi^2 phi'^2]/(g h) + s/2 - 1)`` to the covariances between the ``A``. Here
    ``m, C`` are those of :func:`lib.width_corrections.corrections`, and ``kappa = n (delta . W phi)^2 / |delta|^2 |W
    phi|^2`` says how a gradient is aligned to what it goes back through: ``kappa^(L) = 1``, and
    ``kappa - 1 = 2 q h'/h + (kappa' - 1) q g'^2 / (g h)`` with ``kappa'`` of the layer above.

    Args:
        phi: the activation.
        ensemble: a family whose law no rotation of rows or columns changes.
        n: width of all layers; the ensemble may depend on it.
        layers: ``L >= 2``.
        K: variance of the first layer, ``sigma_b^2 + sigma_w^2 |x|^2 / N_0``.

    Raises:
        ValueError: block sparse weights, whose blocks are not rotation invariant, or fewer than two layers.
    """
    check_scales(sigma_w, sigma_b)
    if not isinstance(ensemble, Gaussian | Orthogonal | LowRank | GaussianProduct | Spectrum):
        raise ValueError(f"ensemble: got {ensemble.name}; the law must not change under rotations")
    if layers < 2:
        raise ValueError(f"layers: got {layers}; a gradient goes back through at least 2")
    weights, s2 = exact_moments(ensemble, n, n), sigma_w**2
    s = weights.entry + (n - 1) * weights.column - n  # n Var |W e_1|^2
    below = list(islice(corrections(phi, weights, n, K, sigma_w=sigma_w, sigma_b=sigma_b), layers - 1))
    moments = [_moments(phi, c.K, c.K - sigma_b**2) for c in below]

    Q, Qs = [0.0], []  # Var Q^(l), and the variance of N^(l)
    for l, x in enumerate(moments):
        Qs.append(Q[-1] + x.q**2 * (s if l else 2.0))
        Q.append(s2**2 * (x.slope**2 * Qs[-1] + x.beta))

    laws = []
    for first in range(layers - 1):
        total = cross = drift = own = 0.0  # Var sum A, Cov(Q, sum A), and the two parts of the mean
        gain, kappa = 1.0, 1.0
        for l in range(first, layers - 1):
            x, v = moments[l], Qs[l]
            own += x.pull**2 * v + x.alpha + s
            total += 2 * x.pull * cross + x.pull**2 * v + x.alpha + s
            cross = s2 * (x.slope * (cross + x.pull * v) + x.both)
            gain *= s2 * x.h
        for l in reversed(range(first, layers - 1)):
            x, c = moments[l], below[l]
            drift += x.pull * c.m + x.bend * c.C / 2 + (kappa - 1) * (x.shared + s / 2 - 1)
            kappa = 1 + 2 * x.q * x.pull + (kappa - 1) * x.turn
        laws.append(GradientLaw(gain, drift + (total - own) / 2, total))
    return laws


@dataclass(frozen=True)
class _Layer:
    """Gaussian moments of one layer: ``slope = g'``, ``pull = h'/h``, ``bend = h''/h``, and the (co)variances."""

    q: float
    h: float
    slope: float
    pull: float
    bend: float
    alpha: float
    beta: float
    both: float
    shared: float
    turn: float


def _moments(phi: Activation, K: float, q: float) -> _Layer:
    z, w = gaussian_rule(torch.tensor([K], dtype=torch.float64), phi.kinks, phi.strip)
    u = math.sqrt(K) * z
    f, d = phi.phi(u).square(), phi.derivative(u).square()
    mean = lambda x: float((w * x).sum())  # noqa: E731
    # Derivatives of a Gaussian expectation by its variance are Hermite moments, kinks or not.
    first, second = (z.square() - 1) / (2 * K), (z**4 - 6 * z.square() + 3) / (4 * K**2)
    g, h, slope, both = mean(f), mean(d), mean(f * first), mean(f * d)
    pull, bend = mean(d * first) / h, mean(d * second) / h
    alpha = 3 * (mean(d * d) / h**2 - 1) - 2 * (q * pull) ** 2
    beta = mean(f * f) - g**2 - 2 * (q * slope) ** 2
    covariance = both / h - g - 2 * q**2 * slope * pull
    return _Layer(q, h, slope, pull, bend, alpha, beta, covariance, both / (g * h), q * slope**2 / (g * h))
