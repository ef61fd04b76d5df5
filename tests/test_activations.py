"""lib.gaussian_quadrature, lib.gaussian_moments and lib.activations: against mpmath, by hand, and by simulation."""

import math
import warnings

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.activations import ACTIVATIONS, ERF, HARD_TANH, RELU, TANH, PiecewiseLinear
from lib.gaussian_moments import Activation
from lib.gaussian_quadrature import gaussian_rule, hermite_coefficients, mehler

each = pytest.mark.parametrize("phi", ACTIVATIONS.values(), ids=lambda phi: phi.name)
odd = pytest.mark.parametrize("phi", [ERF, HARD_TANH, TANH], ids=lambda phi: phi.name)

LEAKY = PiecewiseLinear(
    "leaky relu", lambda u: u.clamp_min(0) + 0.1 * u.clamp_max(0), lambda u: 0.1 + 0.9 * (u > 0), (0.0,), math.inf
)
SILU = Activation("silu", lambda u: u * torch.sigmoid(u), lambda u: torch.sigmoid(u) * (1 + u * torch.sigmoid(-u)))


def naive_cross(f, q1, q2, rho):
    """E f(u) f(v) by the trapezoid rule in two dimensions, for smooth f."""
    z = 0.05 * torch.arange(-200, 201, dtype=torch.float64)
    w = 0.05 * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    v = math.sqrt(q2) * (rho * z[:, None] + math.sqrt(1 - rho**2) * z)
    return float((w * f(math.sqrt(q1) * z)) @ f(v) @ w)


# References of 20 digits. E[phi(v) | u] is known for three of the four, with v ~ N(m, s^2).


def _ramp(m, s):
    return m * mp.ncdf(m / s) + s * mp.npdf(m / s)


CONDITIONAL = {
    "relu": (lambda u: max(u, 0), _ramp),
    "erf": (mp.erf, lambda m, s: mp.erf(m / mp.sqrt(1 + 2 * s * s))),
    "hard-tanh": (lambda u: max(-1, min(1, u)), lambda m, s: _ramp(m + 1, s) - _ramp(m - 1, s) - 1),
}


def conditional_reference(name, q1, q2, c):
    phi, mean = CONDITIONAL[name]
    with mp.workdps(20):
        r1, s, slope = mp.sqrt(q1), mp.sqrt(q2 - mp.mpf(c) ** 2 / q1), mp.mpf(c) / q1
        cuts = {j * r1 for j in range(-11, 12, 2)} | {mp.mpf(-1), mp.mpf(0), mp.mpf(1)}
        cuts |= {(k + j * s) / slope for k in (-1, 0, 1) for j in (-9, -4, -1, 0, 1, 4, 9)}  # where the mean may bend
        cuts = sorted(x for x in cuts if abs(x) <= 11 * r1)
        return float(mp.quad(lambda u: phi(u) * mean(slope * u, s) * mp.npdf(u / r1) / r1, cuts))


def tanh_reference(q1, q2, c):
    with mp.workdps(20):
        rho, r1, r2 = mp.mpf(c) / mp.sqrt(q1 * q2), mp.sqrt(q1), mp.sqrt(q2)
        h = mp.pi**2 / (mp.sqrt(max(q1, q2, 1)) * 34)
        z = [h * j for j in range(-int(9 / h), int(9 / h) + 1)]
        w = [h * mp.npdf(x) for x in z]
        rest = [r2 * mp.sqrt(1 - rho * rho) * x for x in z]
        rows = range(len(z) // 2)  # an odd function: the other half is the same
        inner = (mp.fsum(wj * mp.tanh(r2 * rho * z[i] + v) for wj, v in zip(w, rest, strict=True)) for i in rows)
        return float(2 * mp.fsum(w[i] * mp.tanh(r1 * z[i]) * x for i, x in zip(rows, inner, strict=True)))


@pytest.mark.parametrize(
    ("q1", "q2", "rho"),
    [(0.05, 0.05, 0.9), (0.05, 10, -0.99), (1, 1.01, 1 - 1e-9), (10, 10, 0.9999), (10, 15, 1 - 1e-9), (4, 0.5, 0.3)],
)
@pytest.mark.parametrize("phi", [RELU, ERF, HARD_TANH], ids=lambda phi: phi.name)
def test_cross_moment_against_mpmath(phi, q1, q2, rho):
    c = rho * math.sqrt(q1 * q2)
    assert float(phi.cross(q1, q2, c)) == pytest.approx(conditional_reference(phi.name, q1, q2, c), abs=2e-12)


@pytest.mark.parametrize(
    ("q1", "q2", "rho"), [(0.05, 0.05, 0.9), (0.05, 10, -0.99), (1, 1.01, 1 - 1e-9), (10, 10, 0.9999), (4, 0.5, 0.3)]
)
def test_tanh_cross_moment_against_mpmath(q1, q2, rho):
    c = rho * math.sqrt(q1 * q2)
    assert float(TANH.cross(q1, q2, c)) == pytest.approx(tanh_reference(q1, q2, c), abs=1e-12)


MP_PHI = {  # phi, phi' and phi^2 in 20 digits
    "relu": (lambda u: max(u, 0), lambda u: mp.mpf(u > 0)),
    "erf": (mp.erf, lambda u: 2 / mp.sqrt(mp.pi) * mp.exp(-u * u)),
    "hard-tanh": (lambda u: max(-1, min(1, u)), lambda u: mp.mpf(abs(u) < 1)),
    "tanh": (mp.tanh, lambda u: mp.sech(u) ** 2),
}


@each
@pytest.mark.parametrize("K", [0.05, 2.12, 10.0])
def test_moments_of_one_variable_against_mpmath(phi, K):
    f, d = MP_PHI[phi.name]
    with mp.workdps(20):
        r = mp.sqrt(K)
        cuts = sorted({mp.mpf(j) for j in range(-12, 13)} | ({-1 / r, 1 / r} if 1 / r < 12 else set()))

        def mean(h):
            return mp.quad(lambda z: h(z) * mp.npdf(z), cuts)

        g, fourth = mean(lambda z: f(r * z) ** 2), mean(lambda z: f(r * z) ** 4)
        # Derivatives with respect to K by Hermite weights, a path that shares nothing with the library's.
        slope = mean(lambda z: f(r * z) ** 2 * (z * z - 1)) / (2 * K)
        curvature = mean(lambda z: f(r * z) ** 2 * (z**4 - 6 * z * z + 3)) / (4 * K * K)
        expected = {
            "second_moment": g,
            "second_moment_slope": slope,
            "derivative_moment": mean(lambda z: d(r * z) ** 2),
            "fourth_moment": fourth,
            "square_variance": fourth - g * g,
        }
    for moment, value in expected.items():
        assert float(getattr(phi, moment)(K)) == pytest.approx(float(value), rel=2e-14, abs=2e-14), moment
    assert float(phi.second_moment_curvature(K)) == pytest.approx(float(curvature), abs=1e-12)


def test_moments_by_hand():
    # E max(u, 0)^2 = K/2, its fourth power 3 K^2 / 2, hence Var = (3/2 - 1/4) K^2.
    K = torch.tensor([0.5, 2.0], dtype=torch.float64)
    assert torch.equal(RELU.second_moment(K), K / 2)
    assert torch.equal(RELU.square_variance(K), 1.25 * K**2)
    # E erf(u)^2 at K = 1/2: (2/pi) asin(1/2) = 1/3.
    assert float(ERF.second_moment(0.5)) == pytest.approx(1 / 3, abs=1e-15)
    # Hard-tanh: 1 - P + q (P - 2 k n(k)), k = 1 / sqrt(q), P = erf(k / sqrt 2).
    for q in (0.05, 1.0, 10.0):
        k, P = q**-0.5, math.erf((2 * q) ** -0.5)
        n = math.exp(-k * k / 2) / math.sqrt(2 * math.pi)
        assert float(HARD_TANH.second_moment(q)) == pytest.approx(1 - P + q * (P - 2 * k * n), abs=1e-15)
        assert float(HARD_TANH.derivative_moment(q)) == pytest.approx(P, abs=1e-15)


@each
def test_closed_moments_are_those_of_the_quadrature(phi):
    K = torch.tensor([[0.05, 1.0, 10.0]], dtype=torch.float64)
    names = "second_moment second_moment_slope derivative_moment fourth_moment square_variance second_moment_curvature"
    for name in names.split():
        closed = getattr(phi, name)(K)
        assert closed.shape == K.shape
        assert torch.allclose(closed, getattr(Activation, name)(phi, K), rtol=1e-12, atol=1e-12), name


@each
def test_slopes_are_derivatives(phi):
    K, h = 1.7, 1e-4
    up, down = phi.second_moment(K + h), phi.second_moment(K - h)
    assert float(phi.second_moment_slope(K)) == pytest.approx(float(up - down) / (2 * h), abs=1e-8)
    middle = phi.second_moment(K)
    assert float(phi.second_moment_curvature(K)) == pytest.approx(float(up - 2 * middle + down) / h**2, abs=1e-6)
    for c in (-0.8, 0.0, 0.5, 1.2):
        difference = phi.cross(1.0, 1.7, c + h) - phi.cross(1.0, 1.7, c - h)
        assert float(phi.cross_derivative(1.0, 1.7, c)) == pytest.approx(float(difference) / (2 * h), abs=1e-7)


def test_cross_moments_by_hand():
    assert float(RELU.cross(4.0, 9.0, 0.0)) == pytest.approx(6 / (2 * math.pi), abs=1e-15)  # (E max(u, 0))^2
    assert float(RELU.cross(4.0, 9.0, 6.0)) == pytest.approx(3.0)  # half of sqrt(q1 q2)
    assert float(RELU.cross(4.0, 9.0, -6.0)) == pytest.approx(0.0, abs=1e-14)
    assert float(RELU.cross_derivative(1.0, 1.0, 0.0)) == pytest.approx(1 / 4)
    assert float(ERF.cross(0.5, 0.5, 0.25)) == pytest.approx(2 / math.pi * math.asin(1 / 4))
    # A very steep erf is a sign: (2/pi) asin(rho), as Grothendieck's identity has it.
    assert float(ERF.cross(1e12, 1e12, 0.5e12)) == pytest.approx(1 / 3, abs=1e-11)
    # Variances so small that the kinks are never reached: u v itself, and so for large kinks.
    assert float(HARD_TANH.cross(1e-4, 1e-4, 3e-5)) == pytest.approx(3e-5, abs=1e-18)


@odd
def test_odd_activations(phi):
    c = torch.linspace(-0.99, 0.99, 9, dtype=torch.float64)
    F = phi.cross(1.0, 1.0, c)
    assert torch.allclose(F, -F.flip(0), rtol=0, atol=1e-15)
    assert float(phi.cross(2.0, 0.3, 0.0)) == pytest.approx(0.0, abs=1e-15)


@each
def test_cross_moment_by_simulation(phi):
    n, q1, q2, rho = 1_000_000, 2.0, 0.5, 0.8
    z1, z2 = torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, v = math.sqrt(q1) * z1, math.sqrt(q2) * (rho * z1 + math.sqrt(1 - rho**2) * z2)
    for f, exact in ((phi.phi, phi.cross(q1, q2, rho)), (phi.derivative, phi.cross_derivative(q1, q2, rho))):
        product = f(u) * f(v)
        assert abs(float(product.mean() - exact)) < 4 * float(product.std()) / math.sqrt(n)


@each
@settings(max_examples=25, deadline=None, derandomize=True)
@given(q1=st.floats(0.05, 10), q2=st.floats(0.05, 10), rho=st.floats(-1, 1))
def test_cross_moment_is_a_covariance(phi, q1, q2, rho):
    c = rho * math.sqrt(q1 * q2)
    value, swapped = float(phi.cross(q1, q2, c)), float(phi.cross(q2, q1, c))
    assert value == pytest.approx(swapped, abs=1e-12)
    assert abs(value) <= math.sqrt(float(phi.second_moment(q1) * phi.second_moment(q2))) + 1e-11
    assert float(phi.cross(q1, q1, q1)) == pytest.approx(float(phi.second_moment(q1)), abs=1e-11)


def test_series_against_two_dimensions():
    for q1, q2, rho in ((0.05, 3.0, 0.7), (1.0, 1.0, -0.95), (4.0, 2.0, 0.999)):
        c = rho * math.sqrt(q1 * q2)
        for phi in (TANH, SILU):
            assert float(phi.cross(q1, q2, c)) == pytest.approx(naive_cross(phi.phi, q1, q2, rho), abs=1e-11)
            slope = naive_cross(phi.derivative, q1, q2, rho)
            assert float(phi.cross_derivative(q1, q2, c)) == pytest.approx(slope, abs=1e-11)


@each
def test_series_of_every_activation_is_its_closed_form(phi):
    generic = Activation(phi.name, phi.phi, phi.derivative, phi.kinks, phi.strip)
    q1 = torch.tensor([[0.05], [1.0], [10.0]], dtype=torch.float64)
    q2 = torch.tensor([0.3, 2.0], dtype=torch.float64)
    for rho in (-0.97, 0.0, 0.9):
        c = rho * (q1 * q2).sqrt()
        assert torch.allclose(generic.cross(q1, q2, c), phi.cross(q1, q2, c), rtol=0, atol=3e-12)
        slopes = generic.cross_derivative(q1, q2, c), phi.cross_derivative(q1, q2, c)
        assert torch.allclose(*slopes, rtol=0, atol=3e-12)


def test_piecewise_linear_by_hand():
    # leaky relu = 0.1 u + 0.9 max(u, 0), and E[u max(v, 0)] = c / 2.
    q1, q2 = 2.0, 3.0
    c = torch.linspace(-2.4, 2.4, 9, dtype=torch.float64)
    assert torch.allclose(LEAKY.cross(q1, q2, c), 0.01 * c + 0.09 * c + 0.81 * RELU.cross(q1, q2, c), atol=1e-14)
    # |u|: (2/pi) sqrt(q1 q2) (sqrt(1 - rho^2) + rho asin rho).
    absolute = PiecewiseLinear("abs", torch.abs, torch.sign, (0.0,), math.inf)
    rho = c / math.sqrt(6)
    expected = 2 / math.pi * math.sqrt(6) * ((1 - rho**2).sqrt() + rho * rho.asin())
    assert torch.allclose(absolute.cross(q1, q2, c), expected, atol=1e-14)
    with pytest.raises(ValueError, match="tanh is not linear between its kinks"):
        PiecewiseLinear("tanh", torch.tanh, TANH.derivative, (0.0,))


@each
def test_kernel_is_all_pairs(phi):
    X = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    X[3] = -2 * X[2]  # opposite and of another length
    X[5] = X[4]
    K = X @ X.T
    F = phi.kernel(K)
    pairs = torch.stack([phi.cross(K[i, i], K[j, j], K[i, j]) for i in range(7) for j in range(7)]).reshape(7, 7)
    assert torch.allclose(F, pairs, rtol=0, atol=1e-11)
    assert torch.equal(F, F.T)
    assert torch.linalg.eigvalsh(F)[0] > -1e-10
    assert torch.equal(F.diagonal(), phi.second_moment(K.diagonal()))
    assert phi.kernel(K[:1, :1]).shape == (1, 1)


def test_kernel_of_many_inputs_crosses_its_blocks():
    X = torch.randn(300, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) / 2
    K = X @ X.T
    for phi in (TANH, HARD_TANH):
        pairs = phi.cross(K.diagonal()[:, None], K.diagonal()[None], K)
        assert torch.allclose(phi.kernel(K), pairs, rtol=0, atol=1e-11)


@each
def test_a_zero_input_has_no_covariance(phi):
    K = torch.tensor([[0.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    F = phi.kernel(K)
    assert F.isfinite().all()
    assert F[0].abs().max() == 0


def test_gaussian_rule_integrates_polynomials():
    q = torch.tensor([0.05, 1.0, 10.0], dtype=torch.float64)
    for kinks in ((), (0.0,), (-1.0, 2.0)):
        z, w = gaussian_rule(q, kinks)
        for power, moment in ((0, 1), (1, 0), (2, 1), (4, 3), (8, 105)):
            assert torch.allclose((w * z**power).sum(-1), torch.full((len(z),), moment).double(), atol=1e-11)


def test_hermite_coefficients_by_hand():
    # u^3 = q^{3/2} (He_3 + 3 He_1), He_k = sqrt(k!) h_k.
    q = torch.tensor([0.25, 4.0], dtype=torch.float64)
    for kinks in ((), (1.0,)):
        a = hermite_coefficients(lambda u: u**3, q, 6, kinks)
        expected = torch.zeros(6, 2, dtype=torch.float64)
        expected[1], expected[3] = 3 * q**1.5, math.sqrt(6) * q**1.5
        assert torch.allclose(a, expected, atol=1e-12)
    # Parseval: all of E tanh^2.
    a = hermite_coefficients(TANH.phi, q, 400, strip=TANH.strip)
    assert torch.allclose(a.square().sum(0), TANH.second_moment(q), atol=1e-13)


def test_mehler_by_hand():
    rho = torch.tensor([-0.5, 2.0], dtype=torch.float64)
    for coefficients in ((1.0, 2.0, 3.0), (0.0, 2.0, 0.0, 3.0), (1.0, 0.0, 3.0), (0.0,)):
        a = torch.tensor(coefficients, dtype=torch.float64)
        expected = sum(x * x * rho**k for k, x in enumerate(coefficients))
        assert torch.allclose(mehler(a[:, None], a[:, None], rho), torch.as_tensor(expected).double() + 0 * rho)


def test_a_series_that_does_not_converge_says_so():
    generic = Activation("relu", RELU.phi, RELU.derivative, (0.0,), math.inf)
    with pytest.warns(RuntimeWarning, match=r"relu: the Mehler series leaves up to .* at \|rho\| = 1"):
        value = generic.cross(1.0, 1.0, 1.0)
    assert float(value) == pytest.approx(0.5, abs=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(generic.cross(1.0, 1.0, 0.95)) == pytest.approx(float(RELU.cross(1.0, 1.0, 0.95)), abs=1e-12)
        assert float(TANH.cross(10.0, 10.0, 10.0)) == pytest.approx(float(TANH.second_moment(10.0)), abs=1e-12)


def test_bad_activations_are_refused():
    with pytest.raises(ValueError, match="name all its kinks"):
        Activation("hard-tanh", HARD_TANH.phi, HARD_TANH.derivative)
    with pytest.raises(ValueError, match="a strip smaller than 6"):
        Activation("tanh", torch.tanh, TANH.derivative, strip=6.0)
    with pytest.raises(ValueError, match="derivative: "):
        Activation("tanh", torch.tanh, torch.cos)
    with pytest.raises(ValueError, match="derivative: "):
        Activation("sign", torch.sign, torch.zeros_like, kinks=(0.0,))


@each
def test_bad_covariances_are_refused(phi):
    with pytest.raises(ValueError, match=r"c: 1 of 2 covariances are not within \+-sqrt\(q1 q2\)"):
        phi.cross(1.0, 4.0, torch.tensor([2.0, 2.1]))
    with pytest.raises(ValueError, match=r"q2: got -1.0"):
        phi.cross(1.0, -1.0, 0.0)
    with pytest.raises(ValueError, match=r"K: got -1.0"):
        phi.second_moment(-1.0)
    with pytest.raises(ValueError, match="K: got shape"):
        phi.kernel(torch.eye(3)[:2])
