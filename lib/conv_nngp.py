"""The kernel of a convolutional network with infinitely many channels, and how far ``c`` channels are from it.

Pixels of ``k`` images are the inputs: a kernel has shape (k H W, k H W), with rows and columns ordered as ``(x, mu)``.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lib.conv_networks import check_images, shift_sum
from lib.gaussian_moments import Activation, mirror
from lib.nngp import check_scales


def conv_nngp(
    images: Tensor, layers: int, activation: Activation, sigma_w: float, sigma_b: float, side: int = 3
) -> Iterator[Tensor]:
    """``K^(1), ..., K^(layers)``: covariances of the pre-activations of one channel as the others grow in number.

    A circular ``side x side`` filter moves both pixels alike. With ``s = side`` and offsets ``delta`` of the filter,

        K^(1)_{mu mu'}(x, x') = sigma_b^2 + sigma_w^2 / (s^2 c_0) sum_delta <x_{mu + delta}, x'_{mu' + delta}>,
        K^(l)_{mu mu'}(x, x') = sigma_b^2 + sigma_w^2 / s^2 sum_delta E[phi(u_{mu + delta}) phi(v_{mu' + delta})],

    ``(u, v) ~ N(0, K^(l-1))`` at the images ``(x, x')``.

    Args:
        images: ``k`` inputs, shape (k, c_0, H, W); computed in float64 on their device.
        layers: how many kernels, >= 1.
        activation: ``phi``; ``activation.kernel`` says how exact.
        sigma_w: standard deviation of a weight times ``s sqrt(c)``, > 0.
        sigma_b: standard deviation of a bias, >= 0.
        side: ``s``, odd.

    Yields:
        Kernels of shape (k H W, k H W), float64, one when asked for.

    Raises:
        ValueError: at once, if an argument is out of range.

    Source: Novak et al. (2019); Garriga-Alonso et al. (2019).
    """
    _check(images, layers, sigma_w, sigma_b, side)
    H, W = images.shape[-2:]
    return _kernels(images, layers, activation, sigma_w, sigma_b, side, lambda G: shift_sum(G, H, W, side))


def intersection_nngp(
    images: Tensor, layers: int, activation: Activation, sigma_w: float, sigma_b: float, side: int = 3
) -> Iterator[Tensor]:
    """The recursion with a sum over the pixels that two patches share. It is *not* the limit of a convolution.

        K^(l)_{mu mu'}(x, x') = sigma_b^2 + sigma_w^2 / s^2 sum_{nu in [[mu]] cap [[mu']]} E[phi(u_nu) phi(v_nu)].

    At ``mu = mu'`` it agrees with :func:`conv_nngp` in every layer. At two pixels it is the limit of another network,
    whose weight belongs to the pixel ``nu`` that it reads. Arguments, yields and errors as there.
    """
    _check(images, layers, sigma_w, sigma_b, side)
    k, _, H, W = images.shape
    member = patch_membership(H, W, side, images.device)

    def shared(G: Tensor) -> Tensor:
        same = G.reshape(k, H * W, k, H * W).diagonal(dim1=1, dim2=3)  # (x, x', nu)
        return torch.einsum("mn,xyn,pn->xmyp", member, same, member).reshape(G.shape)

    return _kernels(images, layers, activation, sigma_w, sigma_b, side, shared)


def patch_membership(H: int, W: int, side: int, device: torch.device | None = None) -> Tensor:
    """1 where the pixel ``nu`` is in the patch around ``mu``; (H W, H W), circular."""
    eye = torch.eye(H * W, dtype=torch.float64, device=device).reshape(-1, H, W)
    for axis in (1, 2):
        eye = sum(eye.roll(shift, axis) for shift in range(-(side // 2), side // 2 + 1))
    return eye.reshape(H * W, H * W)


def _check(images: Tensor, layers: int, sigma_w: float, sigma_b: float, side: int) -> None:
    check_images(images, side)
    if layers < 1:
        raise ValueError(f"layers: got {layers}; need at least 1")
    check_scales(sigma_w, sigma_b)


def _kernels(
    images: Tensor,
    layers: int,
    activation: Activation,
    sigma_w: float,
    sigma_b: float,
    side: int,
    patches: Callable[[Tensor], Tensor],
) -> Iterator[Tensor]:
    pixels = images.double().movedim(1, -1).flatten(0, -2)  # (k H W, c_0)
    F = pixels @ pixels.T / pixels.shape[1]
    F = mirror(F, F.diagonal())  # BLAS may round the two triangles differently
    for l in range(layers):
        K = sigma_b**2 + sigma_w**2 / side**2 * patches(F)
        yield K
        if l < layers - 1:
            F = activation.kernel(K)


def second_layer_kurtosis(
    images: Tensor,
    channels: int,
    same_row: float,
    activation: Activation,
    sigma_w: float,
    sigma_b: float = 0.0,
    side: int = 3,
) -> Tensor:
    """Excess kurtosis of ``z^(2)_mu(x)``, exact with ``c`` channels in layer 1, for filters that no rotation changes.

    Given layer 1, ``q = sigma_w^2 / (s^2 c) sum_{delta, j} phi_j(mu + delta)^2`` is the variance without the bias, and
    ``E[(z - b)^4 | layer 1] = 3 f q^2`` with ``f`` the moment ``same_row`` of the filters. Channels of layer 1 are
    independent Gaussian, so that ``Var q = sigma_w^4 / (s^4 c) sum_{delta, delta'} Cov(phi^2, phi^2)`` takes Gaussian
    integrals at two pixels. With ``K = sigma_b^2 + E q``,

        E z^4 / K^2 - 3 = 3 (f Var q + (f - 1) (E q)^2) / K^2.

    Args:
        images: shape (k, c_0, H, W).
        channels: ``c``.
        same_row: ``f = n^2 E[W_1j^2 W_1j'^2]`` of the filters, flattened to (c', n = s^2 c);
            see :func:`lib.weight_conditions.exact_moments`. Independent ones have 1.
        activation, sigma_w, sigma_b, side: as in :func:`conv_nngp`.

    Returns:
        One number a pixel, shape (k H W,), float64.
    """
    if channels < 1:
        raise ValueError(f"channels: got {channels}; need at least 1")
    (K,) = conv_nngp(images, 1, activation, sigma_w, sigma_b, side)
    (k, _, H, W), scale = images.shape, sigma_w**2 / side**2
    member = patch_membership(H, W, side, images.device)
    g = activation.second_moment(K.diagonal())
    mean = scale * (g.reshape(k, H * W) @ member).flatten()
    squares = square_covariance(activation, K).reshape(k, H * W, k, H * W)
    within = squares.diagonal(dim1=0, dim2=2).movedim(-1, 0)  # the pixels of one image: (k, H W, H W)
    variance = scale**2 / channels * torch.einsum("mn,xnp,mp->xm", member, within, member).flatten()
    return 3 * (same_row * variance + (same_row - 1) * mean.square()) / (sigma_b**2 + mean).square()


def square_covariance(activation: Activation, K: Tensor) -> Tensor:
    """``Cov(phi(u_a)^2, phi(u_b)^2)``, ``u ~ N(0, K)``, by Mehler's series; (N, N) -> (N, N)."""
    phi, derivative = activation.phi, activation.derivative
    square = Activation(
        f"{activation.name} squared",
        lambda u: phi(u).square(),
        lambda u: 2 * phi(u) * derivative(u),
        kinks=activation.kinks,
        strip=activation.strip,
    )
    g = activation.second_moment(K.diagonal())
    return square.kernel(K) - g[:, None] * g
