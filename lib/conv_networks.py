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

from lib.ensembles import Gaussian, RightInvariant
from lib.nngp import check_scales
from lib.random_matrices import cholesky, gaussian, gram
from lib.wide_networks import check_sizes


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
    explicit: bool | None = None,
) -> Iterator[Tensor]:
    """``z^(1), ..., z^(L)`` of independent networks, each of shape (networks, k, c_l, H, W); float64.

    Args:
        ensemble: law of the filters ``U`` of layers 2 to L, flattened to (c_l, side^2 c_{l-1}).
        images: ``k`` inputs, shape (k, c_0, H, W).
        channels: ``c_1, ..., c_L``.
        phi: activation, elementwise.
        generator: on the device where the networks are to live.
        sigma_w: standard deviation of a weight times ``side sqrt(c)``, > 0.
        sigma_b: standard deviation of a bias, one a channel.
        side: ``s``, odd.
        networks: how many.
        explicit: draw the filters and convolve (True), or go through Gram matrices wherever they are regular (False).
            The law is the same. By default a layer takes the cheaper way.

    Raises:
        ValueError: images or a filter that make no network, before anything is drawn.
    """
    check_images(images, side)
    check_scales(sigma_w, sigma_b)
    check_sizes("channels", "c", channels, networks)
    if not isinstance(ensemble, RightInvariant):
        raise ValueError(f"ensemble: {ensemble.name} depends on more than the Gram matrix of its inputs")
    return _layers(ensemble, images, channels, phi, generator, sigma_w, sigma_b, side, networks, explicit)


def check_images(images: Tensor, side: int) -> None:
    """Refuses what is no stack of images of shape (k, c_0, H, W), and a filter that is even or larger than they are."""
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or not images.numel():
        given = (
            f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise ValueError(f"images: got {given}; need real numbers of shape (k, c_0, H, W)")
    if not images.isfinite().all():
        raise ValueError(f"images: {int((~images.isfinite()).sum())} of {images.numel()} values are not finite")
    if side % 2 != 1 or not 1 <= side <= min(images.shape[-2:]):
        size = " x ".join(map(str, images.shape[-2:]))
        raise ValueError(f"side: got {side}; a filter is odd and at most as large as the images, {size}")


def _layers(ensemble, images, channels, phi, generator, sigma_w, sigma_b, side, networks, explicit):
    Z = None
    for c in channels:
        Phi = phi(Z) if Z is not None else images.to(generator.device, torch.float64).expand(networks, *images.shape)
        law = ensemble if Z is not None else Gaussian()
        draw = _convolve if _convolves(law, Phi, c, side, explicit) else _mix
        Z = sigma_w * draw(law, Phi, c, side, generator)
        if sigma_b:
            Z = Z + sigma_b * gaussian(networks, 1, c, 1, 1, generator=generator)
        yield Z


def channel_covariance(z: Tensor) -> Tensor:
    """``(1/c) sum_i z_i z_i^T`` over the channels; (..., k, c, H, W) -> (..., k H W, k H W), ordered as (x, mu)."""
    *batch, k, c, H, W = z.shape
    return gram(z.movedim(-3, -1).reshape(*batch, k * H * W, c)) / c


def patch_gram(Phi: Tensor, side: int) -> Tensor:
    """Gram matrix of all circular ``side x side`` patches; (..., k, c, H, W) -> (..., k H W, k H W)."""
    c, H, W = Phi.shape[-3:]
    return shift_sum(c * channel_covariance(Phi), H, W, side)


def shift_sum(G: Tensor, H: int, W: int, side: int) -> Tensor:
    """``sum_delta G[(x, mu + delta), (x', mu' + delta)]`` over the offsets of a circular filter.

    Both pixels move alike, along one axis after the other: ``2 side`` shifts in place of ``side^2``. Shape (..., k H W,
    k H W) -> the same.
    """
    k = G.shape[-1] // (H * W)
    pixels = G.reshape(*G.shape[:-2], k, H, W, k, H, W)
    reach = range(-(side // 2), side // 2 + 1)
    for axes in ((-5, -2), (-4, -1)):
        pixels = sum(pixels.roll((shift, shift), axes) for shift in reach)
    return pixels.reshape(G.shape)


def _convolves(law: RightInvariant, Phi: Tensor, c_out: int, side: int, explicit: bool | None) -> bool:
    """Whether a layer draws its filters; it must where the Gram matrix of the patches is singular."""
    *_, k, c, H, W = Phi.shape
    n, q = side**2 * c, k * H * W
    if q > law.most_inputs(c_out, n):
        return True
    # Filters cost O(n c_out (q + c_out)), Gram matrices O(q^2 (q + c_out)): measured, the two meet around c_out = q.
    return c_out < q if explicit is None else explicit


def _mix(law: RightInvariant, Phi: Tensor, c_out: int, side: int, generator: torch.Generator) -> Tensor:
    """The implicit layer: the patches through their Gram matrix."""
    *batch, k, c, H, W = Phi.shape
    A = gaussian(*batch, k * H * W, c_out, generator=generator)
    Z = law.mixing(cholesky(patch_gram(Phi, side)), A, side**2 * c, generator) @ A
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
