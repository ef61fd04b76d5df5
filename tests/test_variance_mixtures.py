"""lib.variance_mixtures: laws known in closed form, sums against convolutions, and draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from lib.variance_mixtures import VarianceLaw, binomial, chi_square, compressed, point, uniform


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("r", [1, 2, 3, 8, 100])
def test_chi_square_has_mean_one_and_kurtosis_six_over_r(r):
    law = chi_square(r)
    assert law.mean() == pytest.approx(1, rel=1e-9)
    assert law.excess_kurtosis() == pytest.approx(6 / r, rel=1e-8)


def test_an_exponential_variance_gives_laplace():
    x = torch.linspace(-6, 6, 61, dtype=torch.float64)
    expected = torch.from_numpy(stats.laplace.cdf(x.numpy(), scale=math.sqrt(0.5)))
    torch.testing.assert_close(chi_square(2).cdf(x), expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("d", [2, 4, 5])
def test_a_mean_of_chi_squares_is_chi_square(d):
    """Gauss nodes cannot follow the singular density at V = 0 closely, whence 1e-3 in the distribution."""
    law, exact = chi_square(1).mean_of(d), chi_square(d)
    assert law.mean() == pytest.approx(1, rel=1e-8)
    assert law.excess_kurtosis() == pytest.approx(6 / d, rel=1e-7)
    x = torch.linspace(-4, 4, 81, dtype=torch.float64)
    torch.testing.assert_close(law.cdf(x), exact.cdf(x), atol=1e-3, rtol=0)


def test_coins():
    law = binomial(3, 0.5)
    torch.testing.assert_close(law.weights, torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8)
    assert law.excess_kurtosis() == pytest.approx(3 * 0.5 / (3 * 0.5))
    mean = binomial(1, 0.5).mean_of(3)
    torch.testing.assert_close(mean.mean(), law.mean())
    assert mean.excess_kurtosis() == pytest.approx(law.excess_kurtosis())


def test_products_multiply_moments():
    law = chi_square(4).times(uniform((0.2, 1.8)))
    assert law.mean() == pytest.approx(1)
    assert law.excess_kurtosis() == pytest.approx(3 * (1.5 * 1.64 - 1))


def test_squares_of_a_gaussian_are_chi_square():
    law = point(2.0).squares(lambda u: u)
    assert law.mean() == pytest.approx(2)
    assert law.excess_kurtosis() == pytest.approx(6)


def test_the_product_of_two_gaussians_has_the_density_of_bessel():
    """V = Z^2: P(|Z Z'| < x) from K_0, also where V is small and an atom would show."""
    law = point(1.0).squares(lambda u: u)
    for x in (1e-4, 0.01, 0.3, 2.0):
        inside, _ = integrate.quad(lambda u: 2 * special.k0(u) / math.pi, 0, x)
        F = law.cdf(torch.tensor([-x, x], dtype=torch.float64))
        assert float(F[1] - F[0]) == pytest.approx(inside, rel=1e-6)


def test_the_mean_of_squares_is_that_of_draws():
    z = torch.randn(200_000, 2, dtype=torch.float64, generator=generator())
    V = torch.tanh(1.4 * z).square().mean(-1)
    law = point(1.4**2).squares(torch.tanh).mean_of(2)
    assert law.mean() == pytest.approx(float(V.mean()), abs=0.003)
    assert law.excess_kurtosis() == pytest.approx(float(3 * (V.square().mean() / V.mean() ** 2 - 1)), abs=0.02)
    x = V[:20_000].sqrt() * torch.randn(20_000, dtype=torch.float64, generator=generator(1))
    assert stats.kstest(x.numpy(), lambda x: law.cdf(torch.from_numpy(x)).numpy()).pvalue > 1e-4


@given(st.integers(2, 12), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_compression_keeps_moments(nodes, seed):
    V = torch.rand(60, dtype=torch.float64, generator=generator(seed))
    law = VarianceLaw(V, torch.full_like(V, 1 / 60))
    small = compressed(law, nodes)
    assert len(small.values) == nodes
    for k in range(2 * nodes):
        assert float(small.values.pow(k) @ small.weights) == pytest.approx(float(V.pow(k).mean()), rel=1e-9)


def test_few_atoms_are_kept_as_they_are():
    law = uniform((0.0, 2.0))
    assert compressed(law) is law
    repeated = VarianceLaw(torch.ones(100, dtype=torch.float64), torch.full((100,), 0.01, dtype=torch.float64))
    assert len(compressed(repeated).values) == 1


def test_distance_to_a_gaussian():
    assert point(2.0).kolmogorov(2.0) < 1e-15
    assert uniform((0.0, 2.0)).kolmogorov(1.0) == pytest.approx(0.25, abs=1e-4)  # half of the mass sits at 0
    law = chi_square(2)  # Laplace
    x = torch.linspace(0, 5, 5001, dtype=torch.float64)
    assert law.kolmogorov(1.0) == pytest.approx(
        float(torch.from_numpy(abs(stats.laplace.cdf(x, scale=0.5**0.5) - stats.norm.cdf(x))).max()), abs=5e-5
    )


def test_bad_input_is_named():
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    with pytest.raises(ValueError, match="weights: sum 1, least value -1"):
        VarianceLaw(torch.tensor([-1.0, 1.0], dtype=torch.float64), half)
    with pytest.raises(ValueError, match=r"values, weights: got \(1,\)"):
        VarianceLaw(half[:1], half)
    with pytest.raises(ValueError, match="r: got 0"):
        chi_square(0)
    with pytest.raises(ValueError, match="d: got 0"):
        point(1.0).mean_of(0)
