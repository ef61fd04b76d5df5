"""Random convolutional networks, drawn through the Gram matrix of patches, many at a time.

A circular ``s x s`` convolution of ``c`` channels is ``Z = Phi U^T`` with ``U`` of shape (c', s^2 c) and one row of
``Phi`` a patch: pixel and its neighbours, all channels. An ensemble that knows its inputs through their Gram matrix
(:class:`~lib.ensembles.RightInvariant`) needs only that of the patches, which is a sum of shifts of that of the pixels:

    S[(x, mu), (x', nu)] = sum_delta <phi_{mu + delta}(x), phi_{nu + delta}(x')>.

Weights have variance ``1/(s^2 c)``, so that the same layer is ``sigma_w^2`` times a mean over patches in the limit.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lib.ensembles import Gaussian, RightInvariant, cholesky, gaussian, gram


def conv_preactivations(
    ensemble: RightInvariant,
    images: Tensor,
    channels: Sequence[int],
    phi: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    *,
    sigma_w: float,
    sigma_b: float = 0.0,
    side: int = 3,
    networks: int = 1,
    explicit: bool = False,
) -> Iterator[Tensor]:
    """``z^(1), ..., z^(L)`` of independent networks, each of shape (networks, k, c_l, H, W); float64.

    Args:
        ensemble: law of the filters ``U`` of layers 2 to L, flattened to (c_l, side^2 c_{l-1}).
        images: ``k`` inputs, shape (k, c_0, H, W).
        channels: ``c_1, ..., c_L``.
        phi: activation, elementwise.
        generator: on the device where the networks are to live.
        sigma_w: standard deviation of a weight times ``side sqrt(c)``.
        sigma_b: standard deviation of a bias, one a channel.
        side: ``s``, odd.
        networks: how many.
        explicit: draw the filters and convolve, as an oracle.

    Raises:
        ValueError: images or a filter that make no network, before anything is drawn.
    """
    if images.ndim != 4 or not images.is_floating_point() or not images.isfinite().all():
        raise ValueError(f"images: got {images.dtype}, shape {tuple(images.shape)}; need finite (k, c_0, H, W)")
    if side % 2 != 1 or not 1 <= side <= min(images.shape[-2:]):
        raise ValueError(f"side: got {side}; a filter is odd and at most as large as the image {images.shape[-2:]}")
    if not channels or any(int(c) != c or c < 1 for c in channels):
        raise ValueError(f"channels: got {list(channels)}; need c_1, ..., c_L, each an integer >= 1")
    if not isinstance(ensemble, RightInvariant):
        raise ValueError(f"ensemble: {ensemble.name} depends on more than the Gram matrix of its inputs")
    return _layers(ensemble, images, channels, phi, generator, sigma_w, sigma_b, side, networks, explicit)


def _layers(ensemble, images, channels, phi, generator, sigma_w, sigma_b, side, networks, explicit):
    Phi = images.to(generator.device, torch.float64).expand(networks, *images.shape)
    law: RightInvariant = Gaussian()
    for c in channels:
        Z = sigma_w * (_convolve if explicit else _draw)(law, Phi, c, side, generator)
        if sigma_b:
            Z = Z + sigma_b * gaussian(networks, 1, c, 1, 1, generator=generator)
        yield Z
        Phi, law = phi(Z), ensemble


def patch_gram(Phi: Tensor, side: int) -> Tensor:
    """Gram matrix of all circular ``side x side`` patches; (..., k, c, H, W) -> (..., k H W, k H W)."""
    *batch, k, c, H, W = Phi.shape
    pixels = gram(Phi.movedim(-3, -1).reshape(*batch, k * H * W, c)).reshape(*batch, k, H, W, k, H, W)
    reach = range(-(side // 2), side // 2 + 1)
    for axes in ((-5, -2), (-4, -1)):  # rows, then columns, of both pixels alike
        pixels = sum(pixels.roll((shift, shift), axes) for shift in reach)
    return pixels.reshape(*batch, k * H * W, k * H * W)


def _draw(law: RightInvariant, Phi: Tensor, c_out: int, side: int, generator: torch.Generator) -> Tensor:
    *batch, k, c, H, W = Phi.shape
    n, q = side**2 * c, k * H * W
    if q > law.most_inputs(c_out, n):  # more patches than a patch has entries: the Gram matrix is singular
        return _convolve(law, Phi, c_out, side, generator)
    A = gaussian(*batch, q, c_out, generator=generator)
    Z = law.mixing(cholesky(patch_gram(Phi, side)), A, n, generator) @ A
    return Z.reshape(*batch, k, H, W, c_out).movedim(-1, -3)


def _convolve(law: RightInvariant, Phi: Tensor, c_out: int, side: int, generator: torch.Generator) -> Tensor:
    """The explicit layer: each network's own filters, as a grouped convolution."""
    networks, k, c, H, W = Phi.shape
    U = law.matrix(c_out, side**2 * c, generator, (networks,)).reshape(networks * c_out, c, side, side)
    stacked = Phi.transpose(0, 1).reshape(k, networks * c, H, W)
    padded = torch.nn.functional.pad(stacked, (side // 2,) * 4, mode="circular")
    Z = torch.nn.functional.conv2d(padded, U, groups=networks)
    return Z.reshape(k, networks, c_out, H, W).transpose(0, 1)


def isometry_scale(c_in: int, c_out: int, side: int = 3) -> float:
    """``sqrt(c_in / c_out)``: where filters with orthogonal columns make the convolution an isometry.

    Then ``U^T U = I / s^2``, and every pixel is in ``s^2`` patches. Needs ``c_out >= s^2 c_in``.
    """
    if c_out < side**2 * c_in:
        raise ValueError(f"c_out: got {c_out}; orthonormal columns need c_out >= {side**2 * c_in}")
    return math.sqrt(c_in / c_out)
