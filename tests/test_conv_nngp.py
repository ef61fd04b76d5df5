"""lib.conv_nngp: against loops over pixels, the fully connected kernel, random networks, and numbers by hand."""

import math

import pytest
import torch
from sklearn.datasets import load_digits

from lib.activations import ACTIVATIONS, ERF, RELU
from lib.claims import estimate
from lib.conv_networks import channel_covariance, conv_preactivations
from lib.conv_nngp import (
    conv_nngp,
    intersection_nngp,
    patch_membership,
    second_layer_kurtosis,
    square_covariance,
)
from lib.ensembles import Gaussian, GaussianProduct, LowRank, Orthogonal
from lib.gaussian_moments import Activation
from lib.nngp import nngp
from lib.weight_conditions import exact_moments

SCALES = {"sigma_w": math.sqrt(2), "sigma_b": math.sqrt(0.1)}
LAWS = {law.name: law for law in (Gaussian(), Orthogonal(), LowRank(), GaussianProduct())}
LINEAR = Activation("linear", lambda u: u, torch.ones_like)
each_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
both = pytest.mark.parametrize("recursion", [conv_nngp, intersection_nngp])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(k=2, c=2, H=3, W=4, seed=3):
    return torch.randn(k, c, H, W, dtype=torch.float64, generator=generator(seed))


def relative(A, B):
    return float((A - B).norm() / B.norm())


def same_pixel(K, k, pixels):
    return K.reshape(k, pixels, k, pixels).diagonal(dim1=1, dim2=3)


def by_loops(X, layers, sigma_w, sigma_b, shared):
    """erf, 3 x 3: one entry after the other, from the definitions."""
    k, c, H, W = X.shape
    pixels = [(x, i, j) for x in range(k) for i in range(H) for j in range(W)]
    offsets = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]

    def move(p, d):
        return p[0], (p[1] + d[0]) % H, (p[2] + d[1]) % W

    K = {}
    F = {(p, r): float(X[p[0], :, p[1], p[2]] @ X[r[0], :, r[1], r[2]]) / c for p in pixels for r in pixels}
    for _ in range(layers):
        for p, r in K:
            F[p, r] = 2 / math.pi * math.asin(2 * K[p, r] / math.sqrt((1 + 2 * K[p, p]) * (1 + 2 * K[r, r])))
        K = {}
        for p in pixels:
            for r in pixels:
                if shared:
                    common = {move((0, *p[1:]), d) for d in offsets} & {move((0, *r[1:]), d) for d in offsets}
                    terms = [F[(p[0], *n[1:]), (r[0], *n[1:])] for n in common]
                else:
                    terms = [F[move(p, d), move(r, d)] for d in offsets]
                K[p, r] = sigma_b**2 + sigma_w**2 / 9 * sum(terms)
    return torch.tensor([[K[p, r] for r in pixels] for p in pixels], dtype=torch.float64)


@pytest.mark.parametrize("layers", [1, 3])
@both
def test_the_recursion_entry_by_entry(recursion, layers):
    X = images()
    *_, K = recursion(X, layers, ERF, **SCALES)
    torch.testing.assert_close(K, by_loops(X, layers, **SCALES, shared=recursion is intersection_nngp))


def test_images_of_one_colour_are_the_fully_connected_network():
    X = torch.randn(3, 4, dtype=torch.float64, generator=generator())
    flat = X[:, :, None, None].expand(3, 4, 5, 5)
    for K, expected in zip(conv_nngp(flat, 4, RELU, **SCALES), nngp(X, 4, RELU, **SCALES), strict=True):
        torch.testing.assert_close(K.reshape(3, 25, 3, 25), expected[:, None, :, None].expand(3, 25, 3, 25))


def test_a_filter_of_one_pixel_is_the_fully_connected_network_at_every_pixel():
    X = images()
    pixels = X.movedim(1, -1).flatten(0, -2)
    for K, expected in zip(conv_nngp(X, 3, RELU, **SCALES, side=1), nngp(pixels, 3, RELU, **SCALES), strict=True):
        torch.testing.assert_close(K, expected)


@pytest.mark.parametrize("phi", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_the_two_recursions_agree_at_one_pixel_and_not_at_two(phi):
    X = images(H=5, W=5)
    for K, wrong in zip(conv_nngp(X, 4, phi, **SCALES), intersection_nngp(X, 4, phi, **SCALES), strict=True):
        torch.testing.assert_close(same_pixel(K, 2, 25), same_pixel(wrong, 2, 25), rtol=1e-12, atol=1e-12)
        assert relative(wrong, K) > 0.1
        assert torch.equal(K, K.T)
        assert torch.linalg.eigvalsh(K)[0] > -1e-10


@each_law
def test_the_second_layer_has_this_covariance_at_any_number_of_channels(law):
    """Condition (ii) is enough there: given layer 1, and layer 1 is Gaussian."""
    X = images(H=4)
    *_, z = conv_preactivations(law, X, [4, 6], ERF.phi, generator(2), networks=6000, **SCALES)
    C = channel_covariance(z)
    shift, shared = (list(f(X, 2, ERF, **SCALES))[1] for f in (conv_nngp, intersection_nngp))
    assert relative(C.mean(0), shift) < 0.06
    direction = shift - shared
    place = ((C - shared) * direction).sum((-2, -1)) / direction.square().sum()
    measured = estimate(place)  # 0 at the intersection formula, 1 at the shift formula
    assert abs(measured.value - 1) < measured.half_width()
    assert measured.half_width() < 0.2


@pytest.mark.parametrize("phi", [ERF, RELU], ids=lambda phi: phi.name)
def test_wide_networks_on_digits(phi):
    digits = torch.from_numpy(load_digits().images[[3, 7]])[:, None] / 16
    *_, K = conv_nngp(digits, 3, phi, **SCALES)
    errors = {}
    for c in (16, 256):
        *_, z = conv_preactivations(Gaussian(), digits, [c] * 3, phi.phi, generator(), networks=60, **SCALES)
        errors[c] = sum(relative(C, K) for C in channel_covariance(z)) / 60
    assert errors[256] < 0.25
    assert 3 < errors[16] / errors[256] < 5.5  # 4 for 1 / sqrt(c)


def test_the_intersection_formula_belongs_to_weights_of_pixels():
    """``z_mu = sum_{nu in [[mu]]} W_nu phi_nu``: one matrix a pixel, the same for all patches that contain it."""
    X, c, member = images(), 250, patch_membership(3, 4, 3)
    g, P = generator(1), 12
    phi = X.flatten(2).movedim(1, -1)  # (k, P, c_0)
    for _ in range(3):
        W = torch.randn(P, c, phi.shape[-1], dtype=torch.float64, generator=g) / math.sqrt(9 * phi.shape[-1])
        z = torch.einsum("mn,ncd,xnd->xmc", member, SCALES["sigma_w"] * W, phi)
        z = z + SCALES["sigma_b"] * torch.randn(c, dtype=torch.float64, generator=g)
        phi = ERF.phi(z)
    z = z.flatten(0, 1)
    shift, shared = (list(f(X, 3, ERF, **SCALES))[-1] for f in (conv_nngp, intersection_nngp))
    assert relative(z @ z.T / c, shared) < 0.25
    assert relative(z @ z.T / c, shift) > 0.4


def test_membership_by_hand():
    member = patch_membership(4, 5, 3)
    assert torch.equal(member, member.T)
    assert (member.sum(0) == 9).all()
    assert member[0].reshape(4, 5).nonzero().tolist() == [[i, j] for i in (0, 1, 3) for j in (0, 1, 4)]
    assert torch.equal(patch_membership(3, 3, 3), torch.ones(9, 9, dtype=torch.float64))


def test_covariance_of_squares_by_hand():
    K = torch.tensor([[2.0, 1.2], [1.2, 1.5]], dtype=torch.float64)
    torch.testing.assert_close(square_covariance(LINEAR, K), 2 * K.square())
    torch.testing.assert_close(square_covariance(RELU, K).diagonal(), 1.25 * K.diagonal().square())


def test_kurtosis_of_the_second_layer_by_hand():
    # One pixel, linear, no bias: z is a product of two Gaussian layers, E q^2 / (E q)^2 = 1 + 2/c.
    X = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    got = second_layer_kurtosis(X, 4, 1.0, LINEAR, 1.3, 0.0, side=1)
    torch.testing.assert_close(got, torch.tensor([3 * 2 / 4], dtype=torch.float64))
    # An image of one colour: all pixels are equal, so that a patch is no average.
    flat = X.expand(1, 1, 3, 3)
    f = 1 + 2 / 5
    expected = 3 * (f * (1 + 2 / 4) - 1)
    torch.testing.assert_close(second_layer_kurtosis(flat, 4, f, LINEAR, 1.3), torch.full((9,), expected).double())


@each_law
def test_kurtosis_of_the_second_layer_against_networks(law):
    X, c, m = images(k=1), 2, 4
    *_, z = conv_preactivations(law, X, [c, m], ERF.phi, generator(4), networks=25_000, **SCALES)
    *_, K = conv_nngp(X, 2, ERF, **SCALES)
    fourth = z[:, 0].flatten(2).pow(4).mean(1) / K.diagonal().square()  # (networks, pixels)
    measured = estimate(fourth.mean(1) - 3)
    exact = second_layer_kurtosis(X, c, exact_moments(law, m, 9 * c).same_row, ERF, **SCALES)
    assert abs(measured.value - float(exact.mean())) < measured.half_width()
    assert measured.half_width() < 0.5


def test_layers_come_one_at_a_time():
    kernels = conv_nngp(images(), 1000, ERF, **SCALES)
    next(kernels)
    assert next(kernels).shape == (24, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": images()[0]}, "images: got torch.float64 of shape"),
        ({"images": torch.full((1, 1, 3, 3), math.nan)}, "images: 9 of 9 values"),
        ({"layers": 0}, "layers: got 0"),
        ({"sigma_w": 0.0}, "sigma_w: got 0.0"),
        ({"sigma_b": -1.0}, "sigma_b: got -1.0"),
        ({"side": 2}, "side: got 2"),
        ({"side": 5}, "side: got 5; a filter is odd and at most as large as the images, 3 x 4"),
    ],
)
@both
def test_bad_arguments_are_refused_at_once(recursion, change, message):
    arguments = {"images": images(), "layers": 2, "activation": ERF} | SCALES | change
    with pytest.raises(ValueError, match=message):
        recursion(**arguments)


def test_a_layer_without_channels_is_refused():
    with pytest.raises(ValueError, match="channels: got 0"):
        second_layer_kurtosis(images(), 0, 1.0, ERF, 1.0)
