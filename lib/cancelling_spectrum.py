"""Singular values for which the first correction to the Gaussian limit vanishes, layer by layer."""

import math

import torch
from torch import Tensor

from lib.ensembles import Spectrum
from lib.gaussian_moments import Activation


def two_point(delta: float) -> Spectrum:
    """Half of the squared singular values ``1 + delta``, half ``1 - delta``; their fourth moment is ``1 + delta^2``.

    Args:
        delta: 0 (orthogonal) to 1 (half of the directions are lost). Widths are even.
    """
    if not 0 <= delta <= 1:
        raise ValueError(f"delta: got {delta}; squared singular values 1 +- delta need 0 <= delta <= 1")

    def values(p: int) -> Tensor:
        if p % 2:
            raise ValueError(f"widths: got {p}; two values in equal shares need an even one")
        signs = torch.ones(p, dtype=torch.float64)
        signs[p // 2 :] = -1
        return (1 + delta * signs).sqrt()

    return Spectrum(values, name=f"two-point spectrum, delta = {delta:.4g}")


def cancelling_deltas(
    phi: Activation, K: float, layers: int, *, sigma_w: float, sigma_b: float = 0.0
) -> tuple[float, ...]:
    """``delta_2, ..., delta_layers``: with :func:`two_point` weights ``C`` and ``m`` vanish in every layer.

    ``C' = sigma_w^4 v + tau q^2`` where ``C = 0``, and a spectrum has ``tau = 2 (m_4 - 2)``, ``m_4 = 1 + delta^2``. So
    ``delta^2 = 1 - v / (2 g^2) = (3 - E phi^4 / (E phi^2)^2) / 2``.

    Args:
        K: variance of the first layer.
        layers: ``L >= 2``.

    Raises:
        ValueError: the kurtosis of ``phi(u)``, ``u ~ N(0, K)``, is above 3 in some layer: no spectrum does it.
    """
    deltas = []
    for l in range(2, layers + 1):
        g = float(phi.second_moment(K))
        kurtosis = float(phi.fourth_moment(K)) / g**2
        if kurtosis > 3 + 1e-12:
            raise ValueError(
                f"phi: E phi^4 / (E phi^2)^2 = {kurtosis:.3g} for {phi.name} before layer {l}; a spectrum cancels the "
                "correction only up to 3"
            )
        deltas.append(math.sqrt(max(3 - kurtosis, 0.0) / 2))
        K = sigma_b**2 + sigma_w**2 * g
    return tuple(deltas)
