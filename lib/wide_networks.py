"""Random fully connected networks of any width and depth, thousands at a time, at given inputs.

``z^(1) = sigma_w W^(1) x + sigma_b b`` with Gaussian ``W^(1)``, and ``z^(l) = sigma_w W^(l) phi(z^(l-1)) + sigma_b b``
with ``W^(l)`` from a pseudo-iid ensemble for ``l >= 2``. A layer is drawn through the law of ``W Phi`` alone
(:mod:`lib.ensembles`), so a network of width ``n`` costs ``O(n k^2)`` a layer for ``k`` inputs.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lib.ensembles import BlockSparse, Ensemble, Gaussian
from lib.nngp import check_scales
from lib.random_matrices import gaussian


def preactivations(
    ensemble: Ensemble | Sequence[Ensemble],
    X: Tensor,
    widths: Sequence[int],
    phi: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    *,
    sigma_w: float,
    sigma_b: float = 0.0,
    networks: int = 1,
    explicit: bool = False,
    shuffled: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Iterator[Tensor]:
    """``z^(1), ..., z^(L)`` of independent networks, one layer at a time, each of shape (networks, k, N_l).

    Args:
        ensemble: law of ``W^(l)``, ``l >= 2``, of variance ``1/n``; one for all, or a list for ``W^(2), ..., W^(L)``.
        X: inputs, shape (k, N_0).
        widths: ``N_1, ..., N_L``.
        phi: activation, elementwise.
        generator: on the device where the networks are to live.
        sigma_w: standard deviation of a weight times ``sqrt(n)``, > 0.
        sigma_b: standard deviation of a bias.
        networks: how many.
        explicit: draw the matrices and multiply, as an oracle.
        shuffled: neurons in random order. ``False`` leaves those of block sparse layers sorted, which is faster and
            changes no law that is symmetric in the neurons; who reads a single one then reads a random one.
        dtype: of the pre-activations.

    Raises:
        ValueError: an input, width or scale that makes no network, before anything is drawn.
    """
    if X.ndim != 2 or not X.is_floating_point() or not X.isfinite().all():
        raise ValueError(f"X: got {X.dtype} of shape {tuple(X.shape)}; need k finite inputs as rows, shape (k, N_0)")
    check_sizes("widths", "N", widths, networks)
    check_scales(sigma_w, sigma_b)
    ensembles = each_layer(ensemble, len(widths))
    return _layers(ensembles, X, widths, phi, generator, sigma_w, sigma_b, networks, explicit, shuffled, dtype)


def check_sizes(name: str, letter: str, sizes: Sequence[int], networks: int) -> None:
    """Refuses no layers, and sizes of layers or a number of networks that are not positive integers."""
    if not sizes or any(int(n) != n or n < 1 for n in sizes):
        raise ValueError(f"{name}: got {list(sizes)}; need {letter}_1, ..., {letter}_L, each an integer >= 1")
    if int(networks) != networks or networks < 1:
        raise ValueError(f"networks: got {networks}; need an integer >= 1")


def each_layer(ensemble: Ensemble | Sequence[Ensemble], L: int) -> tuple[Ensemble, ...]:
    """The ensembles of ``W^(2), ..., W^(L)``."""
    if isinstance(ensemble, Ensemble):
        return (ensemble,) * (L - 1)
    if len(ensemble) != L - 1:
        raise ValueError(f"ensemble: got {len(ensemble)} of them; {L} layers need {L - 1}, for W^(2) to W^({L})")
    return tuple(ensemble)


def _layers(ensembles, X, widths, phi, generator, sigma_w, sigma_b, networks, explicit, shuffled, dtype):
    laws = (Gaussian(), *ensembles)  # the first layer: only one of its dimensions grows
    Z = None
    for l, (m, law) in enumerate(zip(widths, laws, strict=True)):
        Phi = phi(Z) if Z is not None else X.to(generator.device, dtype).expand(networks, *X.shape)
        draw = functools.partial(Ensemble.outputs, law) if explicit else law.outputs
        if isinstance(law, BlockSparse) and not (shuffled or explicit):
            following = laws[l + 1] if l + 1 < len(laws) else None
            draw = functools.partial(draw, groups=following.blocks if isinstance(following, BlockSparse) else 1)
        Z = sigma_w * draw(Phi, m, generator, shuffled=l > 0)
        if sigma_b:
            Z = Z + sigma_b * gaussian(networks, 1, m, generator=generator, dtype=dtype)
        yield Z
