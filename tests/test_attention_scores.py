"""lib.attention_scores and its theory: samplers in law, coefficients by hand, predictions against simulation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lib.attention import isometric_logits, key_query_attention, remove_gap
from lib.attention_bulk import Bulk
from lib.attention_scores import SCORES, Score, direction_logits, hard_attention, hard_attention_values
from lib.attention_scores_theory import Hermite, ScoreLaw, random_map_values
from lib.attention_theory import GaussianEquivalent
from lib.laws import TW1_MEAN
from lib.spectra import top_singular_values

FAMILY_WISE = 1e-3  # chance that any two-sample test of this file fails on correct code
SQUARE = Score("square less its mean", lambda x: x.square() - 1)
LENGTH = Score("length less its mean", lambda x: x.abs() - math.sqrt(2 / math.pi))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(m, n, g):
    return torch.randn(m, n, dtype=torch.float64, generator=g)


def mean_and_error(values):
    x = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in values])
    return float(x.mean()), float(x.std()) / math.sqrt(len(x))


def explicit_logits(T, d, b, g, unit):
    Q, K = gaussian(T, d, g), gaussian(T, d, g)
    if unit:
        Q, K = (math.sqrt(d) * M / M.norm(dim=-1, keepdim=True) for M in (Q, K))
    return b / math.sqrt(d) * Q @ K.mT


def explicit_direction_logits(T, d, b, g, d_qk):
    X = gaussian(T, d, g)
    X /= X.norm(dim=-1, keepdim=True)
    Q, K = (math.sqrt(b) * X @ gaussian(d, d_qk, g) for _ in range(2))
    return Q @ K.mT / math.sqrt(d_qk)


STATISTICS = (
    lambda S: S[:, 0, 1],
    lambda S: S.abs().amax((-2, -1)),
    lambda S: S[:, :, 0].square().sum(-1),
    lambda S: S[:, 0].square().sum(-1),
    lambda S: S[:, 0, 0] * S[:, 1, 0] * S[:, 0, 1] * S[:, 1, 1],
)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize(("T", "d"), [(4, 4), (4, 7), (5, 3)])
def test_isometric_logits_have_the_law_of_explicit_ones(T, d, unit):
    g = generator(T * d)
    naive = torch.stack([explicit_logits(T, d, 1.5, g, unit) for _ in range(2000)])
    fast = torch.stack([isometric_logits(T, d, 1.5, g, unit=unit) for _ in range(2000)])
    for f in STATISTICS:
        assert stats.ks_2samp(f(naive), f(fast)).pvalue > FAMILY_WISE / 60
    if unit:
        assert fast.abs().max() <= 1.5 * math.sqrt(d)


@pytest.mark.parametrize(("T", "d", "d_qk"), [(4, 4, 4), (4, 9, 3), (5, 3, 3)])
def test_direction_logits_have_the_law_of_explicit_ones(T, d, d_qk):
    g = generator(T * d)
    naive = torch.stack([explicit_direction_logits(T, d, 0.5, g, d_qk) for _ in range(2000)])
    fast = torch.stack([direction_logits(T, d, 0.5, g, None if d_qk == d else d_qk) for _ in range(2000)])
    for f in STATISTICS:
        assert stats.ks_2samp(f(naive), f(fast)).pvalue > FAMILY_WISE / 60


def test_direction_logits_are_those_of_key_query_attention():
    # On one token of length 1 the softmax says nothing; on two, its entry is the sigmoid of a difference of logits.
    g, attention, fast = generator(3), [], []
    for _ in range(2000):
        X = gaussian(2, 5, g)
        attention.append(key_query_attention(X / X.norm(dim=-1, keepdim=True), 2.0, g)[0, 0])
        S = direction_logits(2, 5, 2.0, g)
        fast.append(torch.sigmoid(S[0, 0] - S[0, 1]))
    assert stats.ks_2samp(torch.stack(attention), torch.stack(fast)).pvalue > FAMILY_WISE / 60


def test_scores_by_hand():
    S = torch.tensor([[0.0, math.log(3)], [2.0, -2.0]], dtype=torch.float64)
    assert torch.allclose(SCORES["softmax"].attend(S)[0], torch.tensor([0.25, 0.75], dtype=torch.float64))
    assert SCORES["softmax"].attend(1e6 * S)[1].tolist() == [1, 0]  # no overflow
    assert SCORES["ReLU / T"].attend(S)[1].tolist() == [1, 0]
    assert SCORES["ReLU, rows sum to 1"].attend(S).sum(-1).tolist() == [1, 1]
    assert SCORES["sigmoid / T"].attend(S)[0, 0] == 0.25
    assert SCORES["linear / T"].attend(S)[1].tolist() == [1, -1]
    # Rows of ReLU attention that sum to one do not know the temperature.
    A = [SCORES["ReLU, rows sum to 1"].matrix(20, 20, b, generator()) for b in (0.1, 10.0)]
    assert torch.allclose(*A)


def test_hard_attention_is_softmax_at_zero_temperature():
    S = isometric_logits(30, 30, 1.0, generator())
    A = hard_attention(S)
    assert torch.allclose(torch.softmax(1e9 * S, -1), A)
    assert torch.allclose(hard_attention_values(S, 5), torch.linalg.svdvals(A)[:5])
    assert hard_attention(torch.stack([S, -S])).sum(-1).unique().tolist() == [1]


def test_coefficients_by_hand():
    relu, phi = Hermite.of(torch.relu, 2.0), 1 / math.sqrt(2 * math.pi)
    assert (relu.mean, relu.linear) == pytest.approx((2 * phi, 1))
    assert relu.quadratic == pytest.approx(2 * phi / math.sqrt(2))
    assert relu.quartic == pytest.approx(-2 * phi)
    assert relu.noise**2 == pytest.approx(4 * (0.5 - phi**2) - 1)
    for b in (0.5, 1.0, 2.5):  # Hermite coefficients of e^{bG} are e^{b^2/2} b^k
        e = Hermite.of(torch.exp, b)
        assert (e.linear / e.mean, e.quadratic / e.mean, e.quartic / e.mean) == pytest.approx(
            (b, b**2 / math.sqrt(2), b**4)
        )
        assert e.mean == pytest.approx(math.exp(b**2 / 2))
        assert (e.noise / e.mean) ** 2 == pytest.approx(math.expm1(b**2) - b**2)
    line = Hermite.of(SCORES["linear / T"].f, 3.0)
    assert (line.mean, line.linear, line.quadratic, line.quartic) == pytest.approx((0, 3, 0, 0), abs=1e-9)
    assert line.noise == pytest.approx(0, abs=1e-7)
    square = Hermite.of(SQUARE.f, 1.0)
    assert (square.mean, square.linear, square.quadratic) == pytest.approx((0, 0, math.sqrt(2)), abs=1e-9)
    step = Hermite.of(SCORES["sigmoid / T"].f, 1000.0)
    assert (step.mean, step.linear) == pytest.approx((0.5, phi), rel=1e-3)


@pytest.mark.parametrize(("b", "gamma"), [(0.5, 1.0), (1.0, 0.25), (0.9, 4.0)])
def test_softmax_on_isometric_tokens_is_the_gaussian_equivalent(b, gamma):
    law, model = ScoreLaw.of(SCORES["softmax"], b, gamma), GaussianEquivalent(b, gamma)
    assert law.mean == 1
    assert law.bulk.noise == pytest.approx(model.noise)
    assert law.bulk.std == pytest.approx(model.sigma)
    assert law.outlier(1e4) ** 2 - 1e8 == pytest.approx(model.top, rel=1e-4)


@pytest.mark.parametrize(("linear", "noise", "gamma"), [(0.5, 0.18, 1.0), (1.0, 0.85, 0.25), (0.9, 0.2, 4.0)])
def test_the_edge_is_where_the_inverse_transform_is_smallest(linear, noise, gamma):
    """For isometric tokens ``K(w) = 1/w + noise^2 w + linear^2 w / (1 - gamma linear^2 w^2)`` in closed form."""
    w = torch.linspace(0, 1 / (linear * math.sqrt(gamma)), 10**6 + 1, dtype=torch.float64)[1:-1]
    K = 1 / w + noise**2 * w + linear**2 * w / (1 - gamma * (linear * w) ** 2)
    bulk, i = Bulk(linear, noise, gamma), int(K.argmin())
    assert bulk.edge == pytest.approx(float(K[i]), rel=1e-10)
    assert bulk.threshold == pytest.approx(float(1 / w[i]), rel=1e-5)
    curvature = float(K[i + 2000] - 2 * K[i] + K[i - 2000]) / float(w[2000] - w[0]) ** 2
    shift = (2 * 300 * math.sqrt(2 / curvature)) ** (-2 / 3) * TW1_MEAN
    assert bulk.edge_at(300) == pytest.approx(bulk.edge + shift, rel=1e-6)


def test_bulk_by_hand():
    noise = Bulk(0.0, 0.7, 1.0)
    assert (noise.edge, noise.threshold) == pytest.approx((1.4, 0.7))
    product = Bulk(1.0, 0.0, 1.0)
    assert product.edge == pytest.approx(math.sqrt(27 / 4))
    # z/((1+z)^2 (1+z)^3) is largest at z = 1/4: five factors of ratio one, Fuss-Catalan of order 4, edge 5^5/4^4.
    assert Bulk(1.0, 0.0, 1.0, 1.0).edge ** 2 == pytest.approx(5**5 / 4**4)
    # Many more tokens than dimensions: s_2(S) / T tends to the top singular value of W_Q W_K^T / d^{3/2}.
    assert Bulk(1.0, 0.0, 1e8, 1e8).edge / 1e4 == pytest.approx(math.sqrt(27 / 4), rel=1e-3)
    assert Bulk(2.0, 1.0, 0.5, 0.5).edge == pytest.approx(2 * Bulk(1.0, 0.5, 0.5, 0.5).edge)


@given(st.floats(0, 3), st.floats(0.05, 3), st.floats(0.01, 30), st.floats(0, 30), st.floats(0, 2), st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_outlier_leaves_the_edge_continuously_and_grows(linear, noise, gamma, tokens, quadratic, by_rows):
    bulk = Bulk(linear, noise, gamma, tokens)
    law = ScoreLaw(1.0, quadratic, bulk, by_rows)
    assert bulk.threshold >= bulk.std * (1 - 1e-9)
    assert bulk.edge >= 2 * bulk.std * (1 - 1e-9)
    assert bulk.edge_at(100) < bulk.edge
    if gamma + tokens < 1 and quadratic <= noise:  # c_q <= noise for every f: no outlier without a mean
        assert law.threshold > 0
        assert law.outlier(0) == bulk.edge
    start = law.threshold
    assert law.outlier(start * (1 + 1e-6)) == pytest.approx(max(bulk.edge, law.outlier(start)), rel=1e-4)
    signals = [start + k * bulk.std for k in range(1, 8)]
    values = [law.outlier(s) for s in signals]
    assert values == sorted(values)
    assert values[0] > bulk.edge
    far = 1e3 * (bulk.edge + law.lengths)
    once = 1 if by_rows else 2
    excess = far**2 * (law.outlier(far) ** 2 / far**2 - 1)
    assert excess == pytest.approx(once * (bulk.std**2 + law.lengths**2), rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("name", SCORES)
def test_outlier_and_edge_against_simulation(name):
    T, gamma, b = 300, 0.5, 0.5
    law = ScoreLaw.of(SCORES[name], b, gamma)
    s = [math.sqrt(T) * top_singular_values(SCORES[name].matrix(T, 600, b, generator(k)), 2) for k in range(16)]
    top, error = mean_and_error([x[0] for x in s])
    edge = law.bulk.edge_at(T)
    if law.mean < 1e-9:
        assert abs(top - edge) < 4 * error + 0.01 * edge
        assert abs(top - 2 * law.bulk.std) > 4 * error + 0.01 * edge  # the quarter circle is told apart
    else:
        assert abs(top - law.top(T)) < 4 * error + law.top_shift(T)
        second, error = mean_and_error([x[1] for x in s])
        assert abs(second - edge) < 4 * error + 0.01 * edge


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("ratio", [0.6, 1.5])
def test_the_transition(by_rows, ratio):
    T = 300
    score = SCORES["ReLU, rows sum to 1" if by_rows else "ReLU / T"]
    law = ScoreLaw.of(score, 1.0, 1.0)
    signal = ratio * law.threshold

    def draw(g):
        A = score.matrix(T, T, 1.0, g) - (law.mean - signal / math.sqrt(T)) / T
        return math.sqrt(T) * top_singular_values(A)[0]

    top, error = mean_and_error([draw(generator(k)) for k in range(16)])
    assert abs(top - law.outlier(signal)) < 4 * error + law.bulk.edge - law.bulk.edge_at(T)
    if ratio > 1:  # the two kinds of rows have different outliers at the same signal
        other = ScoreLaw(law.mean, law.quadratic, law.bulk, not by_rows)
        assert abs(top - other.outlier(signal)) > 4 * error + law.bulk.edge - law.bulk.edge_at(T)


def test_lengths_of_keys_make_outliers_without_a_mean_and_unit_keys_do_not():
    T, gamma = 400, 4.0
    for score in (LENGTH, SQUARE):
        law = ScoreLaw.of(score, 1.0, gamma)
        assert law.mean == pytest.approx(0, abs=1e-9)
        assert law.threshold == 0
        a, c = law.lengths, law.bulk.noise
        assert law.outlier(0) == pytest.approx(a + c**2 / a)
    for unit in (False, True):
        score = Score("", LENGTH.f, unit=unit)
        limit = ScoreLaw.of(score, 1.0, gamma).outlier(0)
        s = [math.sqrt(T) * top_singular_values(score.matrix(T, 100, 1.0, generator(k)), 2) for k in range(12)]
        mean, error = mean_and_error([x.mean() for x in s])
        assert abs(mean - limit) < 4 * error + 0.02 * limit
    assert limit == pytest.approx(2 * math.sqrt(1 - 2 / math.pi))


@pytest.mark.parametrize("gamma", [0.5, 10.0])
def test_tokens_of_independent_directions_against_simulation(gamma):
    T, b = 400, 0.5
    law = ScoreLaw.of(SCORES["softmax"], b, gamma, gamma)
    A = [torch.softmax(direction_logits(T, round(T / gamma), b, generator(k)), -1) for k in range(16)]
    s = [top_singular_values(M, 2) for M in A]
    second, error = mean_and_error([math.sqrt(T) * x[1] for x in s])
    slack = law.bulk.edge * (0.01 + gamma / T)  # the next order, in 1/d
    assert abs(second - law.bulk.edge_at(T)) < 4 * error + slack
    assert abs(second - GaussianEquivalent(b, gamma).edge) > 4 * error + slack
    top, error = mean_and_error([T * (x[0] ** 2 - 1) for x in s])
    assert abs(top - (law.top(T) ** 2 - T)) < 4 * error + 10 * (law.top(T) ** 2 - T) * (1 + gamma) / T
    fixed, error = mean_and_error([math.sqrt(T) * top_singular_values(remove_gap(M))[0] for M in A])
    assert abs(fixed - law.bulk.edge_at(T)) < 4 * error + slack


def test_random_maps_against_simulation():
    T = 300
    g = generator()
    balls = [
        torch.bincount(torch.randint(T, (T,), generator=g), minlength=T).topk(2).values.sqrt() for _ in range(2000)
    ]
    keys = [hard_attention_values(isometric_logits(T, T, 1.0, g)) for _ in range(300)]
    for gamma, draws, slack in ((0.0, balls, 0.005), (1.0, keys, 0.03)):
        for k, predicted in enumerate(random_map_values(T, gamma, 2)):
            mean, error = mean_and_error([x[k] for x in draws])
            assert abs(mean - predicted) < 4 * error + slack
    assert random_map_values(T, 1.0, 1)[0] > random_map_values(T, 0.0, 1)[0] + 0.06
    # The squared values sum to T, and the square of a mean is a little less than the mean of the square.
    assert 0.9 * 40 < sum(x**2 for x in random_map_values(40, 0.0, 40)) < 40


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: isometric_logits(4, 4, -1.0, g), "b: got -1.0"),
        (lambda g: isometric_logits(4, 0, 1.0, g), "d: got 0"),
        (lambda g: SCORES["ReLU, rows sum to 1"].attend(-torch.ones(2, 2)), "S: ReLU, rows sum to 1 has a row"),
        (lambda g: hard_attention_values(torch.eye(3), 4), "S, k: got shape"),
        (lambda g: Hermite.of(torch.exp, 0.0), "b: got 0.0"),
        (lambda g: Bulk(-1.0, 1.0, 1.0), "linear: got -1.0"),
        (lambda g: Bulk(0.0, 0.0, 1.0), "gamma, linear, noise"),
        (lambda g: ScoreLaw.of(Score("odd", torch.tanh, by_rows=True), 1.0, 1.0), "score: odd has mean"),
        (lambda g: ScoreLaw.of(SCORES["softmax"], 1.0, 1.0).outlier(-1.0), "signal: got -1.0"),
        (lambda g: random_map_values(1, 1.0, 1), "T, gamma, k: got 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(generator())
