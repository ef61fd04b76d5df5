"""lib.stable_law: the distribution against SciPy and against draws, scales against quadrature, layers against draws."""

import math

import pytest
import torch
from scipy import integrate, stats
from scipy.special import gamma

from lib.counterexamples import StudentT, stable
from lib.stable_law import activity, cdf, gaussian_activity, student_layer_cdf, student_scale

ALPHAS = [0.7, 1.0, 1.3, 1.5, 1.9]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_distribution_is_scipys_away_from_zero(alpha):
    x = torch.tensor([-40.0, -3.0, -0.2, 0.02, 0.7, 2.0, 15.0, 300.0], dtype=torch.float64)
    expected = torch.from_numpy(stats.levy_stable.cdf(x.numpy() / 1.7, alpha, 0))
    torch.testing.assert_close(cdf(x, alpha, 1.7), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_near_zero_it_has_the_density_of_the_closed_form(alpha):
    """f(0) = Gamma(1 + 1/alpha) / pi, where SciPy rounds."""
    x = torch.tensor([1e-3], dtype=torch.float64)
    assert float((cdf(x, alpha) - cdf(-x, alpha)) / 2e-3) == pytest.approx(gamma(1 + 1 / alpha) / math.pi, rel=1e-4)
    assert float(cdf(torch.zeros(1), alpha)) == pytest.approx(0.5, abs=1e-7)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_draws_have_it(alpha):
    S = stable(alpha, 20_000, generator=generator())
    assert stats.kstest(S.numpy(), lambda x: cdf(torch.from_numpy(x), alpha).numpy()).pvalue > 1e-4


def test_activity_of_cauchy_is_an_integral_with_its_density():
    value, _ = integrate.quad(lambda x: 2 * math.tanh(2 * x) / math.pi / (1 + x * x), 0, math.inf)
    assert activity(torch.tanh, 1.0, 2.0) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.7, 1.5])
def test_activity_is_an_average_over_draws(alpha):
    f = torch.tanh(1.5 * stable(alpha, 400_000, generator=generator())).abs().pow(alpha)
    assert activity(torch.tanh, alpha, 1.5) ** alpha == pytest.approx(float(f.mean()), abs=4 * float(f.std()) / 632)


def test_gaussian_activity_of_the_identity_is_a_gaussian_moment():
    """E|u| = sqrt(2K/pi)."""
    assert gaussian_activity(lambda u: u, 1.0, 3.0) == pytest.approx(math.sqrt(6 / math.pi), rel=1e-10)


def test_student_scale():
    assert student_scale(1.0) == pytest.approx(1)  # Cauchy is stable
    nu, t = 1.5, 1e-4
    expected, _ = integrate.quad(lambda x: 2 * (1 - math.cos(t * x)) * stats.t.pdf(x, nu), 0, 1e7, limit=20_000)
    assert (student_scale(nu) * t) ** nu == pytest.approx(expected, rel=0.02)  # 1 - E cos(tT), to its first order


@pytest.mark.parametrize("nu", [1.5, 2.0, 5.0])
def test_the_law_of_a_layer_is_that_of_draws(nu):
    law, n, K = StudentT(nu), 20, 2.0
    Phi = torch.tanh(math.sqrt(K) * torch.randn(20_000, 1, n, dtype=torch.float64, generator=generator()))
    z = law.outputs(Phi, 1, generator(1))[:, 0, 0]
    F = student_layer_cdf(z.clamp(-9, 9), nu, n, law.scale(n), torch.tanh, K, 1.0)
    assert stats.kstest(F.numpy().clip(0, 1), stats.uniform.cdf).statistic < stats.kstwo.ppf(1 - 1e-4, 20_000)


def test_a_wide_layer_is_stable_or_gaussian():
    x, n, K = torch.linspace(-4, 4, 41, dtype=torch.float64), 10**9, 2.0
    F = student_layer_cdf(x, 1.0, n, 1 / n, torch.tanh, K, 1.0)
    torch.testing.assert_close(F, cdf(x, 1.0, gaussian_activity(torch.tanh, 1.0, K)), atol=1e-5, rtol=0)
    s = gaussian_activity(torch.tanh, 2.0, K)
    F = student_layer_cdf(x, 9.0, 10**6, StudentT(9.0).scale(10**6), torch.tanh, K, s)
    torch.testing.assert_close(F, torch.special.ndtr(x / s), atol=2e-6, rtol=0)


def test_bad_input_is_named():
    x = torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="alpha: got 2"):
        cdf(x, 2.0)
    with pytest.raises(ValueError, match="scale: got 0"):
        activity(torch.tanh, 1.0, 0.0)
    with pytest.raises(ValueError, match="nu: got 2"):
        student_scale(2.0)
    with pytest.raises(ValueError, match="n: got 4"):
        student_layer_cdf(x, 3.0, 4, 1.0, torch.tanh, 1.0, 1.0)
    with pytest.raises(ValueError, match="nu, scale, size: got -1"):
        student_layer_cdf(x, -1.0, 10, 1.0, torch.tanh, 1.0, 1.0)
