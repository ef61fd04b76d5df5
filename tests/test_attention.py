"""lib.attention and lib.attention_theory: samplers against their naive versions, predictions against simulation."""

import math

import pytest
import torch
from scipy import stats

from lib.attention import (
    LAWS,
    EntryLaw,
    gaussian_equivalent,
    isometric_attention,
    isometric_tokens,
    key_query_attention,
    lognormal,
    markov_matrix,
    pareto,
    remove_gap,
    token_factors,
    value_factor,
)
from lib.attention_theory import (
    GaussianEquivalent,
    edge_shift,
    fixed_rank_at,
    fixed_rank_constant,
    stray_shift,
    top_shift,
    tracy_widom_shift,
    width_collapse_constant,
    width_collapse_exponent,
    width_collapse_shift,
)
from lib.spectra import covariance_stable_rank, covariance_stable_rank_excess, top_singular_values

FAMILY_WISE = 1e-3  # chance that any two-sample test of this file fails on correct code


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mean_and_error(values):
    x = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in values])
    return float(x.mean()), float(x.std()) / math.sqrt(len(x))


@pytest.mark.parametrize("law", [make() for make in LAWS.values()], ids=lambda law: law.name)
def test_entry_laws_have_the_moments_they_state(law):
    z = law.draw(2000, 2000, generator())
    assert (z >= 0).all()
    mean, n = float(z.mean()), z.numel()
    assert mean == pytest.approx(1, abs=5 * law.sigma / math.sqrt(n))
    x = (z - 1) / law.sigma
    assert float(x.square().mean()) == pytest.approx(1, abs=5 * math.sqrt((law.kurtosis + 2) / n) + 1e-6)
    if law.name != "log-normal":  # its sixth moment is too large for a sample mean; see the next test
        assert float((x**3).mean()) == pytest.approx(law.skewness, abs=0.05)
        assert float((x**4).mean()) - 3 == pytest.approx(law.kurtosis, abs=0.2)
    for q in (0.5, 1.5):
        assert law.tail(q) == pytest.approx(float((z > q).double().mean()), abs=5 * 0.5 / math.sqrt(n))


def test_lognormal_moments_by_hand():
    # E Z^k = 2^{k (k-1) / 2} at sigma = 1: 1, 2, 8, 64. Third central moment 8 - 6 + 2, fourth 64 - 32 + 12 - 3.
    law = lognormal(1.0)
    assert law.skewness == pytest.approx(4)
    assert law.kurtosis == pytest.approx(41 - 3)
    assert pareto(1.5).sigma == math.inf
    assert pareto(5).sigma == pytest.approx(1 / math.sqrt(15))


def test_markov_rows_sum_to_one():
    A = markov_matrix(50, lognormal(), generator())
    assert (A >= 0).all()
    assert torch.allclose(A.sum(-1), torch.ones(50, dtype=torch.float64))
    perp = remove_gap(A)
    assert torch.allclose(perp, A @ (torch.eye(50) - 1 / 50).double())


def test_a_row_of_zeros_is_refused():
    always_zero = EntryLaw("zero", lambda m, n, g: torch.zeros(m, n, dtype=torch.float64), lambda z: 0.0, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="zero drew a row of zeros at T = 2"):
        markov_matrix(2, always_zero, generator())


def test_isometric_tokens_are_haar():
    X = isometric_tokens(6, 9, generator())
    assert torch.allclose(X @ X.mT, torch.eye(6, dtype=torch.float64))
    # Each entry of a Haar frame is symmetric; LAPACK's own Q has a first entry of one sign.
    first = torch.stack([isometric_tokens(3, 4, generator(k))[0, 0] for k in range(400)])
    assert stats.binomtest(int((first > 0).sum()), 400).pvalue > 1e-4
    raw = torch.stack([torch.linalg.qr(torch.randn(4, 3, generator=generator(k))).Q[0, 0] for k in range(400)])
    assert stats.binomtest(int((raw > 0).sum()), 400).pvalue < 1e-4
    with pytest.raises(ValueError, match="d >= 9"):
        isometric_tokens(9, 6, generator())


def test_key_query_attention_by_hand():
    X = isometric_tokens(5, 8, generator())
    A = key_query_attention(X, 1.0, generator(1), d_qk=3)
    g = generator(1)
    W_Q, W_K = (torch.randn(8, 3, dtype=torch.float64, generator=g) for _ in range(2))
    assert torch.allclose(A, torch.softmax(X @ W_Q @ W_K.T @ X.T / math.sqrt(3), -1))
    assert torch.allclose(key_query_attention(X, 0.0, g), torch.full((5, 5), 0.2, dtype=torch.float64))


@pytest.mark.parametrize(("T", "d"), [(4, 4), (4, 9), (5, 3)])
def test_implicit_attention_has_the_law_of_the_explicit_one(T, d):
    g = generator(T * d)
    explicit = torch.stack([key_query_attention(isometric_tokens(T, max(T, d), g), 1.5, g, d) for _ in range(2000)])
    implicit = torch.stack([isometric_attention(T, d, 1.5, g) for _ in range(2000)])
    statistics = (
        lambda A: A[:, 0, 0],
        lambda A: A[:, 0].amax(-1),
        lambda A: A.sum(1).amax(-1),
        lambda A: torch.linalg.svdvals(A)[:, 1],
    )
    for f in statistics:
        assert stats.ks_2samp(f(explicit), f(implicit)).pvalue > FAMILY_WISE / 24


@pytest.mark.parametrize(("T", "d"), [(3, 3), (3, 7), (4, 2)])
def test_value_factor_is_wishart(T, d):
    g = generator(d)
    naive = torch.randn(4000, T, d, dtype=torch.float64, generator=g) / math.sqrt(d)
    factors = torch.stack([value_factor(T, d, g) for _ in range(4000)])
    assert factors.shape[-1] == min(T, d)
    for f in (lambda G: G[:, 0, 0], lambda G: G[:, 0, 1], lambda G: torch.linalg.eigvalsh(G)[:, -1]):
        assert stats.ks_2samp(f(naive @ naive.mT), f(factors @ factors.mT)).pvalue > FAMILY_WISE / 24


def explicit_networks(attention, d, g):
    """The naive version of token_factors: tokens and value matrices formed, with and without the fix."""
    T = attention[0].shape[0]
    X = fixed = isometric_tokens(T, d, g)
    for A in attention:
        W = torch.randn(d, d, dtype=torch.float64, generator=g) / math.sqrt(d)
        X, fixed = A @ X @ W, remove_gap(A) @ fixed @ W
    return X, fixed


def test_the_fix_takes_away_one_common_row():
    g = generator()
    attention = [markov_matrix(8, lognormal(), g) for _ in range(3)]
    X, fixed = explicit_networks(attention, 12, g)
    assert torch.allclose(X - fixed, (X - fixed)[:1].expand_as(X))
    assert not torch.allclose(X, X[:1].expand_as(X), rtol=1e-3)


@pytest.mark.parametrize("d", [5, 12])
def test_token_factors_have_the_law_of_the_explicit_networks(d):
    T, g = 5, generator(d)
    naive, factors = [], []
    for _ in range(1500):
        attention = [markov_matrix(T, lognormal(), g) for _ in range(2)]
        naive.append(explicit_networks(attention, d, g))
        Y, r = token_factors(attention, d, g)[-1]
        factors.append((Y + r, Y))
    for k in (0, 1):
        for f in (covariance_stable_rank, lambda X: (X @ X.mT)[0, 0], lambda X: (X @ X.mT)[0, 1]):
            a, b = (torch.stack([f(x[k]) for x in draws]) for draws in (naive, factors))
            assert stats.ks_2samp(a, b).pvalue > FAMILY_WISE / 24


def test_top_singular_value_to_the_next_order():
    T = 40
    for name, make in LAWS.items():
        law = make()
        draws = [T * (top_singular_values(markov_matrix(T, law, g))[0] ** 2 - 1) for g in map(generator, range(1500))]
        mean, error = mean_and_error(draws)
        next_order = 30 * law.sigma**2 / T**2 + 0.2 * abs(top_shift(T, law))
        assert abs(mean - law.sigma**2 - top_shift(T, law)) < 4 * error + next_order, name


def test_edge_of_markov_matrices_and_its_shift():
    T = 300
    for name, make in LAWS.items():
        law = make()
        draws = [math.sqrt(T) * top_singular_values(markov_matrix(T, law, g), 2)[1] for g in map(generator, range(16))]
        mean, error = mean_and_error(draws)
        assert abs(mean - 2 * law.sigma) < 4 * error + edge_shift(T, law), name
        assert abs(mean - 4 * law.sigma) > 4 * error + edge_shift(T, law), name  # a factor 2 is seen


def test_shifts_by_hand():
    assert tracy_widom_shift(1000) == pytest.approx(2 ** (-2 / 3) * 1.2065335745820 / 100)
    assert stray_shift(400, LAWS["uniform"]()) == 0
    assert stray_shift(10**6, lognormal()) < 1e-3 < stray_shift(400, lognormal())
    # One entry takes a whole row: T A is at most T, so nothing sticks out where T - 1 < sigma sqrt(T).
    assert stray_shift(2, lognormal(2.0)) == 0


def test_collapse_constants_by_hand():
    assert [width_collapse_exponent(l) for l in (1, 2, 3)] == [-1, -3, -5]
    assert width_collapse_constant(1, 1.0) == 3
    assert width_collapse_constant(2, 0.5) == 4
    assert fixed_rank_constant(1, 1.0) == pytest.approx(48 / 729)
    assert fixed_rank_constant(1, 0.0) == pytest.approx(1 / 8)
    # Deep limit: 1 / (e^2 (1 + gamma) l).
    assert fixed_rank_constant(400, 0.5) * math.e**2 * 1.5 * 400 == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("gamma", [1.0, 0.25])
def test_collapse_rates_against_simulation(gamma):
    T, law, layers = 200, LAWS["exponential"](), 2
    excess, share = [], []
    for g in map(generator, range(24)):
        factors = token_factors([markov_matrix(T, law, g) for _ in range(layers)], round(T / gamma), g)
        excess.append([covariance_stable_rank_excess(Y + r) for Y, r in factors])
        share.append([covariance_stable_rank(Y) / T for Y, _ in factors])
    for l in (1, 2):
        limit = width_collapse_constant(l, gamma)
        mean, error = mean_and_error([T ** (2 * l - 1) * e[l - 1] for e in excess])
        assert abs(mean - limit) < 4 * error + limit * width_collapse_shift(T, l, gamma, law)
        assert abs(mean - 2 * limit) > 4 * error + limit * width_collapse_shift(T, l, gamma, law)
        mean, error = mean_and_error([s[l - 1] for s in share])
        predicted = fixed_rank_at(T, l, gamma, law.kurtosis)
        assert abs(mean - predicted) < 4 * error + 0.05 * predicted  # the next order in T^{-2/3}
        assert abs(mean - fixed_rank_constant(l + 1, gamma)) > 4 * error + 0.05 * predicted


@pytest.mark.parametrize(("b", "gamma"), [(0.5, 1.0), (0.5, 0.25), (0.9, 0.5)])
def test_gaussian_equivalent_density(b, gamma):
    model = GaussianEquivalent(b, gamma)
    x = torch.linspace(1e-6, model.edge, 20001, dtype=torch.float64)
    density = model.density(x)
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-3)
    assert float(torch.trapezoid(density * x**2, x)) == pytest.approx(model.sigma**2, rel=1e-3)
    assert float(model.density(torch.tensor(1.01 * model.edge))) == pytest.approx(0, abs=1e-7)
    assert float(model.density(torch.tensor(0.98 * model.edge))) > 0.01
    assert model.edge > 2 * model.sigma  # dependence pushes the edge out
    assert model.cdf(torch.tensor([0.0, model.edge, 9.0])).tolist() == pytest.approx([0, 1, 1], abs=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.25])
def test_gaussian_equivalent_against_the_model_and_against_attention(gamma):
    b, T = 0.5, 250
    d = round(T / gamma)
    model = GaussianEquivalent(b, gamma)

    def explicit(g):
        Q, K = (torch.randn(T, d, dtype=torch.float64, generator=g) for _ in range(2))
        Z = torch.randn(T, T, dtype=torch.float64, generator=g)
        return top_singular_values((b * Q @ K.T / math.sqrt(d) + model.noise * Z) / math.sqrt(T))[0]

    def implicit(g):
        return top_singular_values(gaussian_equivalent(T, d, b, g))[0]

    def attention(g):
        return math.sqrt(T) * top_singular_values(isometric_attention(T, d, b, g), 2)[1]

    for draw in (explicit, implicit, attention):
        mean, error = mean_and_error([draw(g) for g in map(generator, range(24))])
        assert abs(mean - model.edge_at(T)) < 4 * error + 0.005
        assert abs(mean - 2 * model.sigma) > 4 * error + 0.005
    mean, error = mean_and_error(
        [T * (top_singular_values(isometric_attention(T, d, b, g))[0] ** 2 - 1) for g in map(generator, range(100))]
    )
    assert abs(mean - model.top) < 4 * error + 10 * model.top / T


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: markov_matrix(0, lognormal(), g), "T: got 0"),
        (lambda g: lognormal(-1), "sigma: got -1"),
        (lambda g: pareto(1.0), "alpha: got 1.0"),
        (lambda g: isometric_attention(4, 0, 1.0, g), "d: got 0"),
        (lambda g: isometric_attention(4, 4, -1.0, g), "b: got -1.0"),
        (lambda g: key_query_attention(torch.eye(3).double(), math.nan, g), "b: got nan"),
        (lambda g: token_factors([], 4, g), "attention: got no layer"),
        (lambda g: GaussianEquivalent(0, 1), "b: got 0"),
        (lambda g: GaussianEquivalent(1, 0), "gamma: got 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(generator())


def test_a_reader_can_add_a_law():
    narrow = EntryLaw(
        "narrow",
        lambda m, n, g: torch.rand(m, n, generator=g, dtype=torch.float64) + 0.5,
        lambda z: 0.0,
        12**-0.5,
        0.0,
        -1.2,
    )
    s = top_singular_values(markov_matrix(400, narrow, generator()), 2)
    assert float(s[1]) == pytest.approx(2 * narrow.sigma / 20, rel=0.03)
