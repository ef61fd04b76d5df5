"""lib.nngp: by hand, against finite networks, and on the digits."""

import math

import pytest
import torch

from lib.activations import ACTIVATIONS, ERF, RELU, TANH
from lib.nngp import nngp

each = pytest.mark.parametrize("phi", ACTIVATIONS.values(), ids=lambda phi: phi.name)


def inputs(N, N_0, seed=0):
    return torch.randn(N, N_0, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_relu_by_hand():
    # Orthogonal inputs of squared norm N_0: K^(1) = 2 I; F has diagonal 1 and 2 / (2 pi) beside it; times 2, plus 0.
    X = math.sqrt(2) * torch.eye(2, dtype=torch.float64)
    first, second = nngp(X, 2, RELU, math.sqrt(2), 0.0)
    assert torch.allclose(first, 2 * torch.eye(2, dtype=torch.float64))
    assert torch.allclose(second, torch.tensor([[2.0, 2 / math.pi], [2 / math.pi, 2.0]], dtype=torch.float64))


def test_relu_keeps_lengths_at_the_critical_point():
    X = inputs(5, 3)
    first, *_, last = nngp(X, 30, RELU, math.sqrt(2), 0.0)
    assert torch.allclose(first.diagonal(), last.diagonal())
    assert torch.allclose(first.diagonal(), 2 * X.square().mean(1))


def test_reference_limits_of_tanh():
    # Inputs of norm 1 in R^9, sigma_w = 2, no bias: K^(1) = 4/9.
    X = torch.zeros(1, 9)
    X[0, 4] = 1
    K = [float(K) for K in nngp(X, 7, TANH, 2.0, 0.0)]
    assert [K[0], K[4], K[6]] == pytest.approx([4 / 9, 2.049452, 2.113375], abs=5e-7)


def test_erf_map_written_out():
    X = inputs(6, 4)
    K = 0.3 + 1.5 * X @ X.T / 4
    for got in nngp(X, 4, ERF, math.sqrt(1.5), math.sqrt(0.3)):
        assert torch.allclose(got, K, rtol=1e-13)
        d = (1 + 2 * K.diagonal()).sqrt()
        K = 0.3 + 1.5 * 2 / math.pi * torch.asin(2 * K / (d[:, None] * d))


@each
def test_finite_networks_have_this_covariance(phi):
    X, n, nets, layers, g = inputs(3, 5), 128, 150, 3, torch.Generator().manual_seed(1)
    sigma_w, sigma_b = 1.3, 0.4
    z, sizes = X.T.expand(nets, 5, 3), (5, n, n, n)
    means = []
    for l in range(layers):
        W = sigma_w / math.sqrt(sizes[l]) * torch.randn(nets, n, sizes[l], dtype=torch.float64, generator=g)
        z = W @ (phi.phi(z) if l else z) + sigma_b * torch.randn(nets, n, 1, dtype=torch.float64, generator=g)
        means.append(z.mT @ z / n)  # (nets, 3, 3)
    for K, empirical in zip(nngp(X, layers, phi, sigma_w, sigma_b), means, strict=True):
        error = empirical.std(0) / math.sqrt(nets)
        assert ((empirical.mean(0) - K).abs() < 4.5 * error + K.abs().max() / n).all()  # width: order 1 / n


@each
def test_kernels_are_covariances(phi):
    X = inputs(12, 3, seed=5)
    X = torch.cat([X, X[:2], -X[:1], torch.zeros(1, 3, dtype=torch.float64)])  # repeated, opposite, zero
    for K in nngp(X, 4, phi, 1.5, 0.0):
        assert K.dtype == torch.float64
        assert torch.equal(K, K.T)
        assert torch.linalg.eigvalsh(K)[0] > -1e-10
        assert torch.allclose(K[0], K[12], rtol=0, atol=1e-11)


def test_layers_come_one_at_a_time():
    kernels = nngp(inputs(3, 2), 1000, ERF, 1.0, 0.1)
    next(kernels)
    assert next(kernels).shape == (3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": torch.ones(3)}, "X: got shape"),
        ({"X": torch.full((2, 2), math.nan)}, "X: got shape"),
        ({"layers": 0}, "layers: got 0"),
        ({"sigma_w": 0.0}, "sigma_w: got 0.0"),
        ({"sigma_b": -1.0}, "sigma_b: got -1.0"),
    ],
)
def test_bad_arguments_are_refused_at_once(change, message):
    arguments = {"X": torch.ones(2, 3), "layers": 2, "activation": ERF, "sigma_w": 1.0, "sigma_b": 0.0} | change
    with pytest.raises(ValueError, match=message):
        nngp(**arguments)
