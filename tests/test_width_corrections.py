"""lib.width_corrections: the 1/n theory against exact relu kurtosis, simulation and integrals by hand."""

import math

import pytest
import torch

from lib.ensembles import FAMILIES, BlockSparse, Ensemble, Gaussian, LowRank, Orthogonal
from lib.weight_conditions import exact_moments
from lib.wide_networks import preactivations
from lib.width_corrections import Correction, corrections, relu_excess_kurtosis


class Relu:
    """E max(u, 0)^2 = K/2 and E max(u, 0)^4 = 3K^2/2."""

    def second_moment(self, K):
        return K / 2

    def second_moment_slope(self, K):
        return 0.5

    def second_moment_curvature(self, K):
        return 0.0

    def fourth_moment(self, K):
        return 1.5 * K**2


class Tanh:
    """By the trapezoid rule, and differences for the derivatives."""

    z = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    w = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])

    def power(self, K, p):
        return float((self.w * torch.tanh(math.sqrt(K) * self.z).pow(p)).sum())

    def second_moment(self, K):
        return self.power(K, 2)

    def second_moment_slope(self, K, h=1e-3):
        return (self.second_moment(K + h) - self.second_moment(K - h)) / (2 * h)

    def second_moment_curvature(self, K, h=1e-3):
        return (self.second_moment(K + h) - 2 * self.second_moment(K) + self.second_moment(K - h)) / h**2

    def fourth_moment(self, K):
        return self.power(K, 4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def layer(phi, ensemble, n, K, l, **scales):
    recursion = corrections(phi, exact_moments(ensemble, n, n), n, K, **scales)
    for _ in range(l - 1):
        next(recursion)
    return next(recursion)


@pytest.mark.parametrize("ensemble", FAMILIES.values(), ids=FAMILIES)
def test_exact_relu_kurtosis_agrees_with_simulation(ensemble):
    n, l = 12, 3
    X = torch.ones(1, 4, dtype=torch.float64)
    *_, z = preactivations(ensemble, X, [n] * l, torch.relu, generator(), sigma_w=math.sqrt(2), networks=100_000)
    z = z[:, 0]  # (networks, n); E z^2 = 2 exactly, so that the fourth moment alone is noisy
    fourth = z.pow(4).mean(-1) / 4
    error = float(fourth.std()) / math.sqrt(len(fourth))
    assert abs(float(fourth.mean()) - 3 - relu_excess_kurtosis(ensemble, n, l)) < 5 * error


@pytest.mark.parametrize("ensemble", FAMILIES.values(), ids=FAMILIES)
def test_the_recursion_is_the_first_order_of_the_exact_kurtosis(ensemble):
    n = 3 * 10**5
    for l in (1, 2, 3, 7):
        exact = n * relu_excess_kurtosis(ensemble, n, l)
        assert layer(Relu(), ensemble, n, 2.0, l, sigma_w=math.sqrt(2)).kurtosis == pytest.approx(exact, rel=1e-3)


def test_reference_values_for_tanh():
    """Layer 7, sigma_w = 2, K^(1) = 4: limits of n times the excess kurtosis and of n W_1."""
    expected = {
        "i.i.d.": (1.436, 0.1823),
        "block sparse": (3.995, 0.508),
        "orthogonal": (-5.300, 0.676),
        "low rank": (8.172, 1.040),
        "product": (14.91, 1.898),
    }
    for name, (kurtosis, distance) in expected.items():
        last = layer(Tanh(), FAMILIES[name], 3 * 10**5, 4.0, 7, sigma_w=2.0)
        assert pytest.approx(2.122902, abs=1e-6) == last.K
        assert last.kurtosis == pytest.approx(kurtosis, rel=2e-3)
        assert last.wasserstein == pytest.approx(distance, rel=2e-3)


def test_edgeworth_distances_by_hand():
    """With C = 0 the law is N(0, K + m/n): n W_1 = m / (2 sqrt K) E|x|, and the largest |x phi(x)| is at x = 1."""
    c = Correction(K=4.0, C=0.0, m=1.0)
    assert c.wasserstein == pytest.approx(1 / 4 * math.sqrt(2 / math.pi), rel=1e-6)
    assert c.kolmogorov == pytest.approx(1 / 8 * math.exp(-0.5) / math.sqrt(2 * math.pi), rel=1e-6)


def test_where_the_shift_changes_its_sign():
    assert Correction(1.0, 0.0, 1.0).sign_changes == (1.0, math.inf)
    assert Correction(1.0, 0.0, -1.0).sign_changes == (-1.0, math.inf)
    assert Correction(1.0, 1.0, 0.0).sign_changes == (-1.0, pytest.approx(math.sqrt(3)))
    x = torch.linspace(0.013, 5, 500, dtype=torch.float64)
    for C, m in ((2.0, -0.3), (-8.0, 1.0), (-1.0, -2.0), (1.0, 2.0), (1.0, 0.5)):
        correction = Correction(2.0, C, m)
        sign, c = correction.sign_changes
        assert torch.equal((-correction.shift(x)).sign(), sign * torch.where(x < c, 1.0, -1.0).double())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="K: got 0"):
        layer(Relu(), Gaussian(), 10, 0.0, 1, sigma_w=1.0)
    with pytest.raises(ValueError, match="n, l: got 1, 2"):
        relu_excess_kurtosis(Gaussian(), 1, 2)
    for ensemble in (Ensemble(), BlockSparse(3, 2)):
        with pytest.raises(ValueError, match="no closed form"):
            relu_excess_kurtosis(ensemble, 12, 3)
    assert relu_excess_kurtosis(Orthogonal(), 12, 1) == relu_excess_kurtosis(LowRank(), 12, 1) == 0
