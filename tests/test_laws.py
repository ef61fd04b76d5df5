"""lib.laws: numbers one can check by hand, and closed forms against simulation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.laws import TW1_MEAN, Disk, FreePower, QuarterCircle, ks_distance
from lib.spectra import top_singular_values


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_quarter_circle(sigma):
    law = QuarterCircle(sigma)
    x = torch.linspace(0, law.edge, 20001, dtype=torch.float64)
    density = law.density(x)
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-5)
    assert float(torch.trapezoid(density * x**2, x)) == pytest.approx(sigma**2, rel=1e-5)
    assert torch.allclose(law.cdf(x)[1:], torch.cumulative_trapezoid(density, x), atol=1e-5)
    assert law.cdf(torch.tensor([-1.0, 0.0, law.edge, 9.0])).tolist() == [0, 0, 1, 1]
    assert float(law.density(torch.tensor(-0.1))) == 0


def test_quarter_circle_fits_a_gaussian_matrix_and_a_wrong_edge_does_not():
    M = torch.randn(400, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / 20
    s = torch.linalg.svdvals(M)
    assert ks_distance(s, QuarterCircle().cdf) < 0.02
    assert ks_distance(s, QuarterCircle(1.1).cdf) > 0.04
    assert ks_distance(torch.linalg.eigvals(M).abs(), Disk().modulus_cdf) < 0.06
    assert ks_distance(torch.linalg.eigvals(M).abs(), Disk(2.0).modulus_cdf) > 0.5


def test_disk_edge_against_simulation():
    g, n = torch.Generator().manual_seed(0), 100
    for T in (50, 200):
        draws = [torch.linalg.eigvals(torch.randn(T, T, generator=g) / math.sqrt(T)).abs().max() for _ in range(n)]
        mean, error = torch.stack(draws).mean(), torch.stack(draws).std() / math.sqrt(n)
        assert abs(mean - Disk().edge_mean(T)) < 4 * error + 0.3 / T  # real eigenvalues do not pair up
        assert abs(mean - Disk().edge) > 4 * error + 0.3 / T  # the limit itself is further off
    assert Disk(2.0).edge_mean(200) == pytest.approx(2 * Disk().edge_mean(200))


def test_fuss_catalan_by_hand():
    # gamma = 1: the Fuss-Catalan numbers of order s = 2 l, binom(n (s + 1), n) / (s n + 1); edge (s+1)^{s+1} / s^s.
    for l in (1, 2, 3):
        law, order = FreePower(l, 1.0), 2 * l
        for n in range(1, 7):
            assert law.moment(n) == math.comb(n * (order + 1), n) / (order * n + 1)
        assert law.edge == pytest.approx((order + 1) ** (order + 1) / order**order)
        assert law.z_star == pytest.approx(1 / order)


def test_marchenko_pastur_by_hand():
    # gamma = 0 and l = 1: the square Marchenko-Pastur law has the Catalan numbers and the edge 4.
    law = FreePower(1, 0.0)
    assert [law.moment(n) for n in range(1, 6)] == [1, 2, 5, 14, 42]
    assert law.edge == pytest.approx(4)


@settings(max_examples=50, deadline=None)
@given(l=st.integers(1, 8), gamma=st.floats(0, 4))
def test_free_power_properties(l, gamma):
    law = FreePower(l, gamma)
    assert law.moment(1) == 1
    assert law.moment(2) == pytest.approx(1 + l * (1 + gamma))
    z = law.z_star
    assert law.chi(z) >= max(law.chi(0.999 * z), law.chi(1.001 * z))
    # Moments grow like the edge to their number, from below, and the edge is at least their ratio.
    assert law.moment(13) / law.moment(12) < law.edge
    assert law.edge_at(1000) < law.edge


def test_free_power_against_simulation():
    g, T, d, l = torch.Generator().manual_seed(1), 300, 600, 2
    tops, seconds = [], []
    for _ in range(20):
        Y = torch.linalg.qr(torch.randn(d, T, dtype=torch.float64, generator=g)).Q.mT
        for _ in range(l):
            A = torch.randn(T, T, dtype=torch.float64, generator=g) / math.sqrt(T)
            Y = A @ Y @ (torch.randn(d, d, dtype=torch.float64, generator=g) / math.sqrt(d))
        tops.append(top_singular_values(Y)[0] ** 2)
        seconds.append((Y @ Y.mT).square().sum() / T)
    law = FreePower(l, T / d)
    for values, theory in ((tops, law.edge_at(T)), (seconds, law.moment(2))):
        x = torch.stack(values)
        assert abs(x.mean() - theory) < 4 * x.std() / math.sqrt(20) + 0.01 * theory
    # The control: a wrong aspect ratio is out of reach of the same tolerance.
    x = torch.stack(seconds)
    assert abs(x.mean() - FreePower(l, 1.0).moment(2)) > 4 * x.std() / math.sqrt(20) + 0.01 * law.moment(2)


def test_tracy_widom_mean():
    # The largest eigenvalue of a real Wishart matrix, centred and scaled as in Johnstone (2001).
    g, n = torch.Generator().manual_seed(2), 150
    mu = (math.sqrt(n - 1) + math.sqrt(n)) ** 2
    scale = (math.sqrt(n - 1) + math.sqrt(n)) * (1 / math.sqrt(n - 1) + 1 / math.sqrt(n)) ** (1 / 3)
    tops = top_singular_values(torch.randn(400, n, n, dtype=torch.float64, generator=g), tol=1e-6)[:, 0] ** 2
    x = (tops - mu) / scale
    assert abs(x.mean() - TW1_MEAN) < 4 * x.std() / 20 + 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuarterCircle(0), "sigma: got 0"),
        (lambda: Disk(math.nan), "sigma: got nan"),
        (lambda: FreePower(0), "l: got 0"),
        (lambda: FreePower(1.5), "l: got 1.5"),
        (lambda: FreePower(1, -1), "gamma: got -1"),
        (lambda: FreePower(1).moment(0), "n: got 0"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
