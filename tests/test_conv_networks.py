"""lib.conv_networks: implicit convolutions against explicit ones, and an isometry."""

import math

import pytest
import torch
from scipy import stats

from lib import conv_networks
from lib.conv_networks import channel_covariance, conv_preactivations, isometry_scale, patch_gram
from lib.ensembles import BlockSparse, Gaussian, LowRank, Orthogonal

FAMILY_WISE = 1e-3
NETWORKS = 4000
CASES = {  # channels such that no layer falls back to the explicit one: 2 x 3 x 3 patches
    "i.i.d.": (Gaussian(), [4, 3, 2]),
    "orthogonal rows": (Orthogonal(), [5, 7, 3]),
    "orthogonal columns": (Orthogonal(), [3, 30, 3]),
    "low rank": (LowRank(20), [4, 25, 22]),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(k=2):
    return torch.randn(k, 1, 3, 3, dtype=torch.float64, generator=generator(5))


@pytest.mark.parametrize(("ensemble", "channels"), CASES.values(), ids=CASES)
def test_implicit_convolutions_have_the_law_of_explicit_ones(ensemble, channels):
    options = {"sigma_w": 1.5, "sigma_b": 0.2, "networks": NETWORKS, "explicit": False}
    *_, ours = conv_preactivations(ensemble, images(), channels, torch.tanh, generator(1), **options)
    *_, full = conv_preactivations(
        ensemble, images(), channels, torch.tanh, generator(2), **options | {"explicit": True}
    )
    statistics = (
        lambda z: z[:, 0, 0, 0, 0],
        lambda z: z[:, 0, 0, 0, 0] * z[:, 1, 0, 2, 1],
        lambda z: z[:, 0, 0, 0, 0] * z[:, 0, 0, 1, 1],
        lambda z: z[:, 0, 0, 0, 0].square() * z[:, 0, 1, 1, 2].square(),
        lambda z: z[:, 0].square().sum((-3, -2, -1)),
    )
    level = FAMILY_WISE / (len(CASES) * len(statistics))
    for f in statistics:
        assert stats.ks_2samp(f(ours).numpy(), f(full).numpy()).pvalue > level


@pytest.mark.parametrize("side", [1, 3, 5])
def test_the_gram_matrix_of_patches_is_that_of_the_unfolded_image(side):
    Phi = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64, generator=generator())
    padded = torch.nn.functional.pad(Phi.flatten(0, 1), (side // 2,) * 4, mode="circular")
    patches = torch.nn.functional.unfold(padded, side).mT.reshape(2, 3 * 30, -1)
    torch.testing.assert_close(patch_gram(Phi, side), patches @ patches.mT)


def test_covariance_of_channels_by_hand():
    z = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64, generator=generator())
    C = channel_covariance(z).reshape(2, 3, 5, 6, 3, 5, 6)
    assert C[1, 0, 2, 3, 2, 4, 5] == pytest.approx(float(z[1, 0, :, 2, 3] @ z[1, 2, :, 4, 5]) / 4)


@pytest.mark.parametrize(("channels", "convolves"), [(17, True), (18, False)])  # there are 2 x 3 x 3 patches
def test_a_layer_takes_the_cheaper_way(monkeypatch, channels, convolves):
    calls = []
    for way in (conv_networks._convolve, conv_networks._mix):
        monkeypatch.setattr(conv_networks, way.__name__, lambda *a, way=way: calls.append(way.__name__) or way(*a))
    list(conv_preactivations(Gaussian(), images(), [channels] * 2, torch.tanh, generator(), sigma_w=1.0))
    assert calls == ["_convolve", "_convolve" if convolves else "_mix"]  # 9 entries of a first patch are always too few


@pytest.mark.parametrize("explicit", [True, False])
def test_orthogonal_columns_make_an_isometry(explicit):
    c_in, c_out = 2, 20
    options = {"sigma_w": isometry_scale(c_in, c_out), "networks": 3, "explicit": explicit}
    first, second = conv_preactivations(Orthogonal(), images(), [c_in, c_out], lambda z: z, generator(), **options)
    flat = [z.flatten(2) for z in (first, second)]
    torch.testing.assert_close(flat[1] @ flat[1].mT, flat[0] @ flat[0].mT)


def test_bad_input_is_named():
    options = {"sigma_w": 1.0}
    with pytest.raises(ValueError, match="images: got"):
        conv_preactivations(Gaussian(), images()[0], [2], torch.tanh, generator(), **options)
    with pytest.raises(ValueError, match="side: got 2"):
        conv_preactivations(Gaussian(), images(), [2], torch.tanh, generator(), side=2, **options)
    with pytest.raises(ValueError, match="side: got 5"):
        conv_preactivations(Gaussian(), images(), [2], torch.tanh, generator(), side=5, **options)
    with pytest.raises(ValueError, match="images: 18 of 18 values are not finite"):
        conv_preactivations(Gaussian(), images() * math.nan, [2], torch.tanh, generator(), **options)
    with pytest.raises(ValueError, match="sigma_w: got -1"):
        conv_preactivations(Gaussian(), images(), [2], torch.tanh, generator(), sigma_w=-1)
    with pytest.raises(ValueError, match="networks: got 0"):
        conv_preactivations(Gaussian(), images(), [2], torch.tanh, generator(), networks=0, **options)
    with pytest.raises(ValueError, match="channels: got"):
        conv_preactivations(Gaussian(), images(), [], torch.tanh, generator(), **options)
    with pytest.raises(ValueError, match="depends on more than the Gram matrix"):
        conv_preactivations(BlockSparse(), images(), [3], torch.tanh, generator(), **options)
    with pytest.raises(ValueError, match="c_out: got 8"):
        isometry_scale(1, 8)
