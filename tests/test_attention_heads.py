"""lib.attention_heads: the sampler against its naive version, the free-probability law by hand and by simulation."""

import math

import pytest
import torch
from scipy import stats

from lib.attention import (
    LAWS,
    isometric_attention,
    isometric_tokens,
    markov_matrix,
    remove_gap,
)
from lib.attention_heads import HeadsLaw, head_factors, key_query_heads_constant
from lib.laws import FreePower
from lib.spectra import covariance_stable_rank, covariance_stable_rank_excess, top_singular_values

FAMILY_WISE = 1e-3  # chance that any two-sample test of this file fails on correct code


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def explicit_heads(attention, T, d, h, layers, g):
    """The naive version of head_factors: tokens formed, one product per head, heads summed after their projections."""
    X = fixed = isometric_tokens(T, d, g)
    for _ in range(layers):
        W_V = [torch.randn(d, d // h, dtype=torch.float64, generator=g) / math.sqrt(d) for _ in range(h)]
        W_O = [torch.randn(d // h, d, dtype=torch.float64, generator=g) / math.sqrt(d) for _ in range(h)]
        A = [attention() for _ in range(h)]
        X, fixed = (
            sum(f(A[k]) @ Y @ W_V[k] @ W_O[k] for k in range(h)) for Y, f in ((X, lambda A: A), (fixed, remove_gap))
        )
    return X, fixed


@pytest.mark.parametrize("h", [1, 3])
def test_head_factors_have_the_law_of_the_explicit_network(h):
    T, d, layers, g = 4, 6, 2, generator(h)

    def attention():
        return markov_matrix(T, LAWS["log-normal"](), g)

    naive = [explicit_heads(attention, T, d, h, layers, g) for _ in range(1500)]
    factors = [head_factors(attention, T, d, h, layers, g)[-1] for _ in range(1500)]
    factors = [(Y + r, Y) for Y, r in factors]
    for k in (0, 1):
        for f in (covariance_stable_rank, lambda X: (X @ X.mT)[0, 0], lambda X: (X @ X.mT)[0, 1]):
            a, b = (torch.stack([f(x[k]) for x in draws]) for draws in (naive, factors))
            assert stats.ks_2samp(a, b).pvalue > FAMILY_WISE / 12


def test_every_head_keeps_the_direction_of_ones():
    g = generator()
    X, fixed = explicit_heads(lambda: markov_matrix(5, LAWS["uniform"](), g), 5, 8, 4, 3, g)
    assert torch.allclose(X - fixed, (X - fixed)[:1].expand_as(X))


def test_law_by_hand():
    assert HeadsLaw(1, 1.0).second_moment == 4
    assert HeadsLaw(4, 0.5).second_moment == 2.25
    assert HeadsLaw(2, 1.0, 2).second_moment == pytest.approx(1 + 1 / 2 + 1 / 4 + 2 + 1)
    assert HeadsLaw(math.inf, 1.0, 7).second_moment == 3  # many heads: depth adds nothing
    # One head at gamma = 1 is a product of three square factors a layer: Fuss-Catalan.
    assert HeadsLaw(1, 1.0).edge == pytest.approx(4**4 / 3**3)
    # Infinitely many heads leave the values and the projection: two square factors.
    assert HeadsLaw(math.inf, 1.0).edge == pytest.approx(27 / 4)
    # One head without the projection would be FreePower; with it, another factor of ratio gamma.
    power, z = FreePower(1, 0.3), 0.7
    assert HeadsLaw(1, 0.3).chi(z) == pytest.approx(power.chi(z) / (1 + 0.3 * z))
    assert key_query_heads_constant(4, 1.0, 1e-3) == pytest.approx(HeadsLaw(4, 1.0).second_moment + 1, rel=1e-4)


def test_recursion_in_depth():
    # A layer takes S(z) to S(z/h) / ((1 + z/h)(1 + gamma z)^2).
    h, gamma, z = 3, 0.4, 0.9
    S1, S2 = (HeadsLaw(h, gamma, l) for l in (1, 2))

    def S(law, z):
        return law.chi(z) * (1 + z) / z

    assert S(S2, z) == pytest.approx(S(S1, z / h) / ((1 + z / h) * (1 + gamma * z) ** 2))


@pytest.mark.parametrize("h", [1, 4])
def test_heads_against_simulation(h):
    T, gamma, law = 200, 0.5, LAWS["exponential"]()
    tails, shares = [], []
    for g in map(generator, range(24)):
        factors = head_factors(lambda g=g: markov_matrix(T, law, g), T, 400, h, 2, g)
        s1 = torch.stack([top_singular_values(Y + r)[0] for Y, r in factors])
        excess = torch.stack([covariance_stable_rank_excess(Y + r) for Y, r in factors])
        tails.append(excess * s1**4 * torch.tensor([T, T**3]))
        shares.append(torch.stack([covariance_stable_rank(Y) / T for Y, _ in factors]))
    for l in (1, 2):
        theory = HeadsLaw(h, gamma, l)
        tail, share = (torch.stack(x)[:, l - 1] for x in (tails, shares))
        for x, predicted, slack in (
            (tail, theory.second_moment, theory.second_moment_shift(T, law)),
            (share, theory.fixed_rank_at(T, law.kurtosis), 0.05),
        ):
            error = 4 * float(x.std()) / math.sqrt(len(x)) + slack * predicted
            assert abs(float(x.mean()) - predicted) < error
        other = HeadsLaw(5 - h, gamma, l)
        assert abs(float(tail.mean()) - other.second_moment) > 10 * l / T * theory.second_moment
        assert abs(float(share.mean()) - other.fixed_rank) > 0.05 * theory.fixed_rank


def test_key_query_heads_against_simulation():
    T, b, h = 200, 0.5, 4
    sigma2, x = math.expm1(b**2), []
    for g in map(generator, range(24)):
        Y, r = head_factors(lambda g=g: isometric_attention(T, T // h, b, g), T, T, h, 1, g)[0]
        x.append(T * covariance_stable_rank_excess(Y + r) * top_singular_values(Y + r)[0] ** 4 / sigma2**2)
    x = torch.stack(x)
    predicted, error = key_query_heads_constant(h, 1.0, b), 4 * float(x.std()) / math.sqrt(len(x))
    assert abs(float(x.mean()) - predicted) < error + 10 / T * predicted
    assert abs(float(x.mean()) - HeadsLaw(h, 1.0).second_moment) > error


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: head_factors(lambda: None, 4, 6, 4, 1, generator()), "h: got 4; the number of heads divides d = 6"),
        (lambda: head_factors(lambda: None, 0, 6, 1, 1, generator()), "T: got 0"),
        (lambda: head_factors(lambda: None, 4, 6, 1, 0, generator()), "layers: got 0"),
        (lambda: HeadsLaw(0, 1.0), "h: got 0"),
        (lambda: HeadsLaw(1, 0.0), "gamma: got 0.0"),
        (lambda: HeadsLaw(1, 1.0, 0), "l: got 0"),
        (lambda: key_query_heads_constant(1, 1.0, 0.0), "b: got 0.0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
