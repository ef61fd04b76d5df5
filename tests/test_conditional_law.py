"""lib.conditional_law: laws against explicit matrices, integrals and exact kurtosis; what the martingale leaves."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from lib.activations import RELU, TANH
from lib.cancelling_spectrum import two_point
from lib.conditional_law import (
    Mixture,
    UnitLaw,
    _interpolated,
    chi_square_rule,
    last_layer,
    last_layer_along,
    symmetric_beta_rule,
    unit_law,
    variances,
)
from lib.ensembles import FAMILIES, BlockSparse, Gaussian, LowRank, Orthogonal, Spectrum
from lib.weight_conditions import exact_moments
from lib.wide_networks import preactivations
from lib.width_corrections import Correction, corrections, relu_excess_kurtosis

ONE = np.ones(1)
LAWS = {
    "normal": UnitLaw(math.inf, ONE, ONE),
    "sphere": UnitLaw(5, ONE, ONE),
    "product": UnitLaw(math.inf, *chi_square_rule(9, 24)),
    "low rank": UnitLaw(12, *chi_square_rule(7, 24)),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def limit(ensemble, phi, l, sigma_w):
    n = 10**5
    recursion = corrections(phi, exact_moments(ensemble, n, n), n, sigma_w**2, sigma_w=sigma_w)
    return next(itertools.islice(recursion, l - 1, l))


def z_score(values, expected):
    return abs(float(values.mean()) - expected) / (float(values.std()) / math.sqrt(len(values)))


@pytest.mark.parametrize("freedom", [1, 2, 7, 100, 10**5])
def test_the_chi_square_rule_has_its_moments(freedom):
    x, w = chi_square_rule(freedom, 24)
    assert w.sum() == pytest.approx(1)
    assert w @ x == pytest.approx(1)
    assert w @ x**4 == pytest.approx(math.prod(1 + 2 * k / freedom for k in range(4)))


@pytest.mark.parametrize("d", [2, 3, 10, 1000])
def test_the_sphere_rule_has_its_moments(d):
    x, w = symmetric_beta_rule((d - 1) / 2, 64)
    for p, moment in ((0, 1), (1, 0), (2, 1 / d), (4, 3 / (d * (d + 2))), (8, 105 / (d * (d + 2) * (d + 4) * (d + 6)))):
        assert w @ x**p == pytest.approx(moment, abs=1e-15)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_moments_are_integrals_of_the_distribution_function(law):
    """``E f(|t|) = int f'(x) P(|t| > x) dx`` for ``f(0) = 0``."""

    def mean(slope, start=0.0):
        def integrand(x):
            return 2 * slope(x) * float(law.cdf(np.array(-x)))

        end = math.sqrt(min(law.dimension, 100) * law.scales.max())
        return integrate.quad(integrand, start, end, limit=400, epsabs=1e-10)[0]

    assert mean(lambda x: 2 * x) == pytest.approx(1, abs=1e-7)
    assert mean(lambda x: 4 * x**3) == pytest.approx(law.fourth_moment, abs=1e-6)
    for c in (0.0, 0.7, 1.8):
        assert mean(lambda x: 1.0, c) == pytest.approx(float(law.tail(np.array(c))), abs=1e-7)
    for s in (0.5, 2.0):
        square = mean(lambda x, s=s: 2 * s * math.tanh(s * x) / math.cosh(s * x) ** 2)
        assert square == pytest.approx(float(law.mean_square(TANH, np.array(s))), abs=1e-7)
    assert float(law.tail(np.array(math.inf))) == 0


@pytest.mark.parametrize("shape", [(6, 12), (12, 6), (12, 12)], ids=str)
@pytest.mark.parametrize("name", [*FAMILIES, "low rank, r = 4", "two-point", "two-point, delta = 1"])
def test_unit_laws_are_those_of_explicit_matrices(name, shape):
    m, n = shape
    others = {"low rank, r = 4": LowRank(4), "two-point": two_point(0.8), "two-point, delta = 1": two_point(1.0)}
    ensemble = {**FAMILIES, **others}[name]
    if isinstance(ensemble, Spectrum) and m != n:
        with pytest.raises(ValueError, match="not known"):
            unit_law(ensemble, m, n)
        return
    phi = torch.linspace(1, 2, n, dtype=torch.float64)
    phi = torch.ones_like(phi) if isinstance(ensemble, BlockSparse) else phi  # every block then has the same variance
    W = ensemble.matrix(m, n, generator(1), (20_000,))
    t = (W[:, 0] @ phi) / variances(ensemble, phi)[0].sqrt()
    law = unit_law(ensemble, m, n)
    assert stats.kstest(t.numpy(), law.cdf).pvalue > 1e-4
    other = UnitLaw(8, ONE, ONE) if name in ("i.i.d.", "block sparse") else UnitLaw(math.inf, ONE, ONE)
    if name in ("i.i.d.", "orthogonal", "product", "block sparse"):  # elsewhere a factor undoes much of the sphere
        assert stats.kstest(t.numpy(), other.cdf).pvalue < 1e-2


@pytest.mark.parametrize("name", ["i.i.d.", "orthogonal", "low rank", "product"])
def test_condition_iv_is_the_fourth_moment_of_the_unit_law(name):
    """``E t^4 = 3 n^2 E W_1j^2 W_1j'^2`` for rows that no rotation changes."""
    law, weights = unit_law(FAMILIES[name], 12, 12), exact_moments(FAMILIES[name], 12, 12)
    assert law.fourth_moment == pytest.approx(3 * weights.same_row)


def test_variances_are_the_conditional_ones():
    phi = torch.arange(1.0, 7, dtype=torch.float64)
    assert variances(Gaussian(), phi).tolist() == pytest.approx([91 / 6])
    assert variances(BlockSparse(3), phi).tolist() == pytest.approx([5 / 2, 25 / 2, 61 / 2])
    assert variances(BlockSparse(3, 2), phi).tolist() == pytest.approx([15 / 2, 43 / 2, 33 / 2])
    assert variances(BlockSparse(3, 2), phi).mean() == pytest.approx(91 / 6)


@pytest.mark.parametrize("ensemble", FAMILIES.values(), ids=FAMILIES)
def test_for_relu_the_martingale_is_all_there_is(ensemble):
    """g is linear, so q - K is a sum of martingale differences: the estimate of E q has no error."""
    mixture = last_layer(ensemble, RELU, 12, 4, generator(), sigma_w=math.sqrt(2), networks=2000)
    torch.testing.assert_close(mixture.q.mean(1) - mixture.K, mixture.D, atol=1e-10, rtol=0)
    assert float(mixture.values(lambda s: s**2).std()) < 1e-9


@pytest.mark.parametrize("ensemble", FAMILIES.values(), ids=FAMILIES)
def test_the_martingale_has_mean_zero_and_leaves_second_order(ensemble):
    rest = {}
    for n in (30, 300):
        mixture = last_layer(ensemble, TANH, n, 3, generator(n), sigma_w=2.0, networks=4000)
        assert z_score(mixture.D, 0) < 4.5
        rest[n] = float((mixture.q.mean(1) - mixture.K - mixture.D).std())
        assert float(mixture.D.std()) > 1.2 * rest[n]
    assert 7 < rest[30] / rest[300] < 13  # order 1/n, where D is of order 1/sqrt(n)


@pytest.mark.parametrize("ensemble", FAMILIES.values(), ids=FAMILIES)
def test_relu_kurtosis_is_the_exact_one(ensemble):
    mixture = last_layer(ensemble, RELU, 30, 3, generator(2), sigma_w=math.sqrt(2), networks=20_000)
    assert z_score(mixture.excess_kurtosis(), relu_excess_kurtosis(ensemble, 30, 3)) < 4.5


@pytest.mark.parametrize("ensemble", FAMILIES.values(), ids=FAMILIES)
def test_the_mixture_is_the_law_of_samples(ensemble):
    n, l = 9, 3
    mixture = last_layer(ensemble, TANH, n, l, generator(3), sigma_w=2.0, networks=20_000)
    X = torch.ones(1, 1, dtype=torch.float64)
    *_, z = preactivations(ensemble, X, [n] * l, torch.tanh, generator(4), sigma_w=2.0, networks=20_000)
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    measured = (z[:, 0, :1] <= math.sqrt(mixture.K) * x).double().mean(0)
    predicted = torch.special.ndtr(x) + mixture.shift(x).mean(0)
    assert float((measured - predicted).abs().max()) < stats.kstwo.ppf(1 - 1e-4, 20_000)
    assert z_score(z[:, 0, 0].abs(), float(mixture.values(lambda s: s * mixture.law.tail(0 * s)).mean())) < 4.5


@pytest.mark.parametrize("ensemble", FAMILIES.values(), ids=FAMILIES)
def test_distances_agree_with_the_theory_and_with_each_other(ensemble):
    n, l = 600, 7
    mixture = last_layer(ensemble, TANH, n, l, generator(5), sigma_w=2.0, networks=2000)
    theory = limit(ensemble, TANH, l, 2.0)
    values = n * mixture.wasserstein(theory)
    allowed = 4.5 * float(values.std()) / math.sqrt(len(values)) + 0.02 * theory.wasserstein
    assert abs(float(values.mean()) - theory.wasserstein) < allowed
    distance, kolmogorov = mixture.distances
    assert float(values.mean()) / n == pytest.approx(distance, rel=1e-3)  # the best test function was the best
    assert n * kolmogorov == pytest.approx(theory.kolmogorov, rel=0.1)


def test_a_constant_variance_gives_the_distance_between_two_normal_laws():
    """N(0, 1.21) against N(0, 1): W_1 = 0.1 E |Z|."""
    mixture = Mixture(LAWS["normal"], torch.full((4, 1), 1.21, dtype=torch.float64), torch.zeros(4).double(), 1.0)
    expected = 0.1 * math.sqrt(2 / math.pi)
    assert mixture.distances[0] == pytest.approx(expected, rel=1e-3)
    assert mixture.wasserstein(Correction(1.0, 0.0, 1.0)).tolist() == pytest.approx([expected] * 4)
    assert mixture.excess_kurtosis().tolist() == pytest.approx([0] * 4, abs=1e-12)


def test_a_combination_of_one_input_is_that_input():
    X = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    theta = torch.tensor([0.0, 2.0], dtype=torch.float64)
    arguments = {"n": 30, "l": 3, "generator": generator(), "sigma_w": 2.0, "networks": 4000}
    two = last_layer_along(theta, Orthogonal(), TANH, X, **arguments)
    one = last_layer(Orthogonal(), TANH, K=2.0, **{**arguments, "generator": generator(9)})
    assert abs(two.K - 4 * one.K) < 1e-9
    for mixture in (one, two):
        assert z_score(mixture.excess_kurtosis(), float(one.excess_kurtosis().mean())) < 5.0
    assert stats.ks_2samp(two.q[:, 0], 4 * one.q[:, 0]).pvalue > 1e-4


def test_interpolation_is_exact_to_rounding():
    q = np.linspace(0.5, 6, 1000)

    def h(s):
        return np.stack([np.exp(-s), np.tanh(s)], -1)

    np.testing.assert_allclose(_interpolated(h, q), h(np.sqrt(q)), atol=1e-13)
    np.testing.assert_allclose(_interpolated(h, np.full(3, 2.0)), h(np.sqrt(np.full(3, 2.0))), atol=1e-15)


def test_bad_input_is_named_before_anything_is_drawn():
    arguments = {"generator": None, "sigma_w": 2.0, "networks": 10}
    with pytest.raises(ValueError, match="K: got -1"):
        last_layer(Gaussian(), TANH, 10, 3, K=-1.0, **arguments)
    with pytest.raises(ValueError, match="l, networks: got 1, 10"):
        last_layer(Gaussian(), TANH, 10, 1, **arguments)
    with pytest.raises(ValueError, match="ensemble: got 1 of them; 3 layers need 2"):
        last_layer([Gaussian()], TANH, 10, 3, **arguments)
    with pytest.raises(ValueError, match="not known for spectrum"):
        last_layer(Spectrum(lambda p: torch.arange(1.0, p + 1)), TANH, 10, 3, **arguments)
    with pytest.raises(ValueError, match="theta, l: got"):
        last_layer_along(torch.ones(3), Gaussian(), TANH, torch.ones(2, 2), 10, 3, **arguments)
