"""lib.edge_of_chaos: the published and derived figures, closed forms, and iteration of the maps."""

import math

import pytest
import torch

from lib.activations import ACTIVATIONS, ERF, HARD_TANH, RELU, TANH
from lib.edge_of_chaos import MeanField, critical_bias, critical_point, critical_rate, depth_scale
from lib.nngp import nngp

# sigma_b, then sigma_w and q* of tanh, erf, hard-tanh on the critical line, to all digits given.
CRITICAL = [
    (0.05, (1.12253900, 0.15369194), (0.99368629, 0.14514586), (1.00885349, 0.17705153)),
    (0.1, (1.19340073, 0.27330091), (1.05559465, 0.25320966), (1.02570035, 0.25914622)),
    (0.2, (1.30414584, 0.51207850), (1.15279541, 0.46576294), (1.06860884, 0.42328664)),
    (0.3, (1.39558398, 0.76347477), (1.23367251, 0.68877127), (1.11614500, 0.60156744)),
    (0.5, (1.54967391, 1.31793900), (1.37133047, 1.18327244), (1.21314785, 1.01337966)),
    (1.0, (1.85558910, 3.03639639), (1.64875145, 2.74489093), (1.43969045, 2.38780978)),
]
XI_Q = [4.0708, 2.5752, 1.6355, 1.2581, 0.9092, 0.5952]  # of tanh, in the same order
HALF_DIGIT = 5.01e-9


@pytest.mark.parametrize("row", CRITICAL, ids=lambda row: str(row[0]))
def test_critical_line(row):
    sigma_b, *points = row
    for phi, point in zip((TANH, ERF, HARD_TANH), points, strict=True):
        sigma_w, q = critical_point(phi, sigma_b)
        assert (sigma_w, q) == pytest.approx(point, abs=HALF_DIGIT)
        assert critical_bias(phi, sigma_w) == pytest.approx((sigma_b, q), rel=1e-10)
        field = MeanField(phi, sigma_w, sigma_b)
        assert field.q_star == pytest.approx(q, rel=1e-11)
        assert field.chi == pytest.approx(1, abs=1e-11)
        assert field.c_star == 1
        assert math.isinf(field.xi_c)


def test_length_scale_on_the_critical_line():
    for (sigma_b, *_), xi in zip(CRITICAL, XI_Q, strict=True):
        assert MeanField(TANH, critical_point(TANH, sigma_b)[0], sigma_b).xi_q == pytest.approx(xi, abs=5.1e-5)


def test_ends_of_the_critical_lines():
    for phi, end in ((TANH, 1), (ERF, math.sqrt(math.pi) / 2), (HARD_TANH, 1), (RELU, math.sqrt(2))):
        assert critical_point(phi, 0.0) == pytest.approx((end, 0.0))
    assert critical_bias(RELU, math.sqrt(2)) == (0.0, 0.0)


def test_erf_line_in_closed_form():
    for q in (0.1, 1.0, 5.0):
        weight = math.pi / 4 * math.sqrt(1 + 4 * q)
        bias = q - weight * 2 / math.pi * math.asin(2 * q / (1 + 2 * q))
        assert critical_point(ERF, math.sqrt(bias)) == pytest.approx((math.sqrt(weight), q), rel=1e-11)


def test_the_pair_of_the_literature():
    # tanh at sigma_w^2 = 1.76 and sigma_b^2 = 0.05.
    assert critical_bias(TANH, math.sqrt(1.76))[0] ** 2 == pytest.approx(0.049831, abs=5e-7)


@pytest.mark.parametrize(
    ("phi", "weight", "bias", "expected"),
    [
        (TANH, 4, 0, {"q_star": 2.12147357, "chi": 1.36267334, "chi_par": 0.33096715, "c_star": 0, "xi_c": 7.97963}),
        (TANH, 4, 0.09, {"q_star": 2.25375338, "c_star": 0.26389478, "chi_c": 0.86035067, "xi_c": 6.64826}),
        (TANH, 2.25, 0.25, {"q_star": 1.21820833, "chi": 0.96709680, "c_star": 1, "xi_c": 29.88939}),
        (TANH, 1, 0.09, {"xi_c": 2.80657}),
        (TANH, 1.69, 0.09, {"xi_c": 16.10817}),
        (ERF, 1, 0.09, {"xi_c": 4.71603}),
        (ERF, 2, 0.09, {"c_star": 0.61307609, "xi_c": 11.03299}),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_off_the_critical_line(phi, weight, bias, expected):
    field = MeanField(phi, math.sqrt(weight), math.sqrt(bias))
    for name, value in expected.items():
        tolerance = 5.1e-6 if name == "xi_c" else HALF_DIGIT
        assert getattr(field, name) == pytest.approx(value, abs=tolerance), name


@pytest.mark.parametrize("phi", ACTIVATIONS.values(), ids=lambda phi: phi.name)
def test_fixed_points_are_where_the_maps_lead(phi):
    field = MeanField(phi, 1.35 if phi is RELU else 1.9, 0.4)  # relu has no chaos with bounded lengths
    q, c = 1.0, 0.3
    for _ in range(400):
        q = field.length_map(q)
    assert q == pytest.approx(field.q_star, rel=1e-10)
    for _ in range(400):
        c = field.correlation_map(c)
    assert c == pytest.approx(field.c_star, abs=1e-9)
    assert (field.c_star < 1) == (field.chi > 1)


@pytest.mark.parametrize("phi", ACTIVATIONS.values(), ids=lambda phi: phi.name)
def test_slopes_are_those_of_the_maps(phi):
    field, h = MeanField(phi, 1.35 if phi is RELU else 1.9, 0.4), 1e-5
    q, c = field.q_star, field.c_star
    slope = (field.length_map(q + h) - field.length_map(q - h)) / (2 * h)
    assert field.chi_par == pytest.approx(slope, abs=1e-8)
    if c < 1:
        slope = (field.correlation_map(c + h) - field.correlation_map(c - h)) / (2 * h)
        assert field.chi_c == pytest.approx(slope, abs=1e-8)
    else:
        # One-sided, and the next term of relu's map is of order (1 - c)^{3/2}.
        assert field.chi_c == pytest.approx((1 - field.correlation_map(1 - h)) / h, abs=5e-3)


def test_relu_by_hand():
    # q* = sigma_b^2 / (1 - sigma_w^2 / 2), both slopes sigma_w^2 / 2.
    field = MeanField(RELU, math.sqrt(1.5), math.sqrt(0.1))
    assert field.q_star == pytest.approx(0.4)
    assert (field.chi, field.chi_par) == pytest.approx((0.75, 0.75))
    assert field.xi_c == pytest.approx(-1 / math.log(0.75))
    assert MeanField(RELU, 1.0, 0.0).q_star == 0
    assert math.isinf(MeanField(RELU, 1.5, 0.1).q_star)


def test_critical_relu_forgets_algebraically():
    # 1 - c_l ~ (9 pi^2 / 2) / l^2.
    field, c = MeanField(RELU, math.sqrt(2), 0.0), 0.0
    for _ in range(2000):
        c = field.correlation_map(c)
    assert (1 - c) * 2000**2 == pytest.approx(43.72, abs=0.005)
    assert (1 - c) * 2000**2 == pytest.approx(4.5 * math.pi**2, rel=0.02)


@pytest.mark.parametrize("phi", ACTIVATIONS.values(), ids=lambda phi: phi.name)
def test_two_ways_to_forget_at_criticality(phi):
    field = MeanField(phi, math.sqrt(2), 0.0) if phi is RELU else MeanField(phi, critical_point(phi, 0.3)[0], 0.3)
    power, rate, drift = critical_rate(field)
    assert power == (0.5 if phi.kinks else 1)
    l, c, grown = 200, 0.5, []
    for step in range(2 * l + 1):
        if step in (l, 2 * l):
            grown.append((1 - c) ** -power)
        c = field.correlation_map(c)
    found = (grown[1] - grown[0]) / (l * rate) - 1
    assert found == pytest.approx(drift * math.log(2) / l, rel=0.2)


def test_critical_rates_by_hand():
    # relu: sqrt(2) / (3 pi). erf: phi'' = -(4/sqrt(pi)) u e^{-u^2}, so E phi''^2 = (16/pi) q / (1 + 4q)^{3/2}.
    assert critical_rate(MeanField(RELU, math.sqrt(2), 0.0)) == pytest.approx((0.5, math.sqrt(2) / (3 * math.pi), 1.5))
    sigma_w, q = critical_point(ERF, 0.5)
    beta = sigma_w**2 * q * 16 / math.pi * q / (1 + 4 * q) ** 1.5
    assert critical_rate(MeanField(ERF, sigma_w, 0.5))[:2] == pytest.approx((1, beta / 2), rel=1e-6)
    with pytest.raises(ValueError, match=r"chi = 1\.36"):
        critical_rate(MeanField(TANH, 2.0, 0.0))


def test_the_kernel_follows_the_maps():
    field = MeanField(TANH, 1.5, 0.3)
    root = math.sqrt((field.q_star - 0.09) / 2.25 * 2)
    X = root * torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    c = None
    for K in nngp(X, 10, TANH, 1.5, 0.3):
        assert float(K[0, 0]) == pytest.approx(field.q_star, rel=1e-11)
        found = float(K[0, 1] / K[0, 0])
        assert c is None or found == pytest.approx(c, abs=1e-11)
        c = field.correlation_map(found)


def test_small_weights_silence_the_network():
    field = MeanField(TANH, 0.5, 0.0)
    assert (field.q_star, field.chi, field.c_star) == (0.0, 0.25, 1.0)
    assert field.chi_par == pytest.approx(0.25)
    with pytest.raises(ValueError, match="lengths shrink to 0"):
        field.correlation_map(0.5)
    # A bias however small is felt: q* = sigma_b^2 / (1 - sigma_w^2) to first order.
    assert MeanField(TANH, 0.5, 1e-8).q_star == pytest.approx(1e-16 / 0.75)


def test_depth_scale():
    assert depth_scale(math.exp(-1 / 7)) == pytest.approx(7)
    assert depth_scale(1.0) == math.inf
    assert depth_scale(0.0) == 0


def test_points_off_the_line_are_refused():
    with pytest.raises(ValueError, match=r"sigma_b: the critical line of relu does not reach 0.1"):
        critical_point(RELU, 0.1)
    with pytest.raises(ValueError, match=r"sigma_w: the critical line of tanh does not pass 0.9"):
        critical_bias(TANH, 0.9)
    with pytest.raises(ValueError, match=r"sigma_w: the critical line of relu does not pass 1.5"):
        critical_bias(RELU, 1.5)
    with pytest.raises(ValueError, match="lengths grow without bound"):
        _ = MeanField(RELU, 1.5, 0.1).chi
    with pytest.raises(ValueError, match="sigma_w: got 0"):
        MeanField(TANH, 0, 0.1)
