"""The kernel of an infinitely wide fully connected network, layer by layer."""

import math
from collections.abc import Iterator

from torch import Tensor

from lib.gaussian_moments import Activation, mirror


def nngp(X: Tensor, layers: int, activation: Activation, sigma_w: float, sigma_b: float) -> Iterator[Tensor]:
    """``K^(1), ..., K^(layers)``: the covariances of the pre-activations ``z^(l)`` in the limit of infinite width.

    ``K^(1) = sigma_b^2 + sigma_w^2 X X^T / N_0``, ``K^(l) = sigma_b^2 + sigma_w^2 F(K^(l-1))`` with
    ``F(K)_{ab} = E[phi(u_a) phi(u_b)]``, ``u ~ N(0, K)``. The output behind ``h`` hidden layers has ``K^(h+1)``.

    Args:
        X: inputs, shape (N, N_0); computed in float64 on their device.
        layers: how many kernels, >= 1.
        activation: ``phi``; ``activation.kernel`` says how exact.
        sigma_w: standard deviation of the weights times the square root of the fan-in, > 0.
        sigma_b: standard deviation of the biases, >= 0.

    Yields:
        Kernels of shape (N, N), float64, one when asked for.

    Raises:
        ValueError: at once, if an argument is out of range.

    Source: Neal (1996); Lee et al. (2018); Matthews et al. (2018).
    """
    if not isinstance(X, Tensor) or X.ndim != 2 or X.numel() == 0 or not X.isfinite().all():
        given = f"shape {tuple(X.shape)}" if isinstance(X, Tensor) else type(X).__name__
        raise ValueError(f"X: got {given}; need finite inputs of shape (N, N_0)")
    if layers < 1:
        raise ValueError(f"layers: got {layers}; need at least 1")
    check_scales(sigma_w, sigma_b)
    return _kernels(X.double(), layers, activation, sigma_w, sigma_b)


def check_scales(sigma_w: float, sigma_b: float) -> None:
    """Refuses standard deviations that are not finite, ``sigma_w <= 0`` and ``sigma_b < 0``."""
    if not (math.isfinite(sigma_w) and sigma_w > 0):
        raise ValueError(f"sigma_w: got {sigma_w}; it is finite and > 0")
    if not (math.isfinite(sigma_b) and sigma_b >= 0):
        raise ValueError(f"sigma_b: got {sigma_b}; it is finite and >= 0")


def _kernels(X: Tensor, layers: int, activation: Activation, sigma_w: float, sigma_b: float) -> Iterator[Tensor]:
    K = sigma_b**2 + sigma_w**2 / X.shape[1] * (X @ X.T)
    K = mirror(K, K.diagonal())  # BLAS may round the two triangles differently
    yield K
    for _ in range(layers - 1):
        K = sigma_b**2 + sigma_w**2 * activation.kernel(K)
        yield K
