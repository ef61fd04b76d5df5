"""lib.cancelling_spectrum: the first correction vanishes in theory, and the kurtosis of two layers is exact."""

import math

import pytest
import torch

from lib.activations import HARD_TANH, RELU, TANH
from lib.cancelling_spectrum import cancelling_deltas, two_point
from lib.conditional_law import last_layer
from lib.weight_conditions import exact_moments


def test_reference_values_for_tanh():
    expected = (0.9207, 0.8977, 0.8904, 0.8880, 0.8872, 0.8870)
    assert cancelling_deltas(TANH, 4.0, 7, sigma_w=2.0) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("phi", [TANH, HARD_TANH], ids=["tanh", "hard-tanh"])
def test_one_layer_adds_nothing(phi):
    """``s4 v + tau q^2 = 0`` for the exact fourth moments of the weights, at a large width."""
    n, K, sigma_w, sigma_b = 10**5, 2.0, 1.7, 0.3
    for delta in cancelling_deltas(phi, K, 4, sigma_w=sigma_w, sigma_b=sigma_b):
        weights = exact_moments(two_point(delta), n, n)
        g, v = float(phi.second_moment(K)), float(phi.square_variance(K))
        q, added = sigma_w**2 * g, sigma_w**4 * v
        assert n * (weights.same_row - 1) * q**2 == pytest.approx(-added, rel=1e-3)
        assert (n * (weights.two_rows - 1) + 2 * n * weights.crossed) * q**2 == pytest.approx(-added, rel=1e-3)
        K = sigma_b**2 + q


def test_the_spectrum_is_what_it_says():
    s = two_point(0.6).singular_values(10, 10).square()
    assert s.tolist() == pytest.approx([1.6] * 5 + [0.4] * 5)
    assert float(s.square().mean()) == pytest.approx(1 + 0.6**2)
    torch.testing.assert_close(two_point(0.0).singular_values(4, 4), torch.ones(4, dtype=torch.float64))


def test_two_layers_have_the_exact_kurtosis():
    """``3 [E w^2 n/(n+2) (1 + v / (n g^2)) - 1]``, ``E w^2 = 1 + 2 delta^2 / (n + 2)``: of order ``1/n^2``."""
    n, sigma_w = 12, 2.0
    (delta,) = cancelling_deltas(TANH, sigma_w**2, 2, sigma_w=sigma_w)
    values = last_layer(
        two_point(delta), TANH, n, 2, torch.Generator().manual_seed(1), sigma_w=sigma_w, networks=40_000
    ).excess_kurtosis()
    v, g = float(TANH.square_variance(4.0)), float(TANH.second_moment(4.0))
    exact = 3 * ((1 + 2 * delta**2 / (n + 2)) * n / (n + 2) * (1 + v / (n * g**2)) - 1)
    assert abs(float(values.mean()) - exact) < 4.5 * float(values.std()) / math.sqrt(len(values))
    assert exact == pytest.approx(-12 * delta**4 / n**2, rel=0.3)


def test_what_cannot_be_cancelled():
    with pytest.raises(ValueError, match="= 6 for relu"):
        cancelling_deltas(RELU, 2.0, 3, sigma_w=1.0)
    with pytest.raises(ValueError, match=r"delta: got 1\.2"):
        two_point(1.2)
    with pytest.raises(ValueError, match="widths: got 7"):
        two_point(0.5).singular_values(7, 7)
