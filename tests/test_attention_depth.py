"""lib.attention_depth: closed forms, brute force, and simulation at sizes where the limit is near."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.attention import isometric_tokens, lognormal, uniform
from lib.attention_blocks import Variant, key_query_weights, markov_weights, run
from lib.attention_depth import (
    BlockLaw,
    bulk_moments,
    cyclic_points,
    excess_by_layer,
    plain_excess,
    upscaled_excess,
    upscaled_top,
)
from lib.attention_theory import width_collapse_constant
from lib.laws import FreePower
from lib.spectra import covariance_stable_rank_excess


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("l", [1, 2, 5, 10])
@pytest.mark.parametrize("c", [0.3, 1.0, 2.0])
def test_without_a_skip_the_law_is_the_free_power(l, c):
    ours, known = BlockLaw(l, 0, c), FreePower(l, 1.0)
    assert ours.edge == pytest.approx(c ** (2 * l) * known.edge, rel=1e-9)
    assert ours.limit == pytest.approx(known.moment(2) / known.edge**2, rel=1e-9)
    assert ours.share(150) == pytest.approx(known.moment(2) / known.edge_at(150) ** 2, rel=1e-6)


def test_one_layer_on_a_skip_in_closed_form():
    """f_1(t) = (sqrt(1 + 4t) - 1)/2 + c^2 t / (1 - c^2 t): no curve, no spline."""
    for c in (0.05, 0.3, 1.0):
        t = np.linspace(1e-3, 1 - 1e-3, 200_001) / c**2
        f = (np.sqrt(1 + 4 * t) - 1) / 2 + c**2 * t / (1 - c**2 * t)
        assert BlockLaw(1, 1, c).edge == pytest.approx(((1 + f) ** 2 / t).min(), rel=1e-7)


@pytest.mark.parametrize(("c", "l"), [(1.0, 3), (0.2, 4)])
def test_the_law_is_that_of_gaussian_blocks(c, l):
    T, g = 400, generator(3)
    shares, moments = [], []
    for _ in range(4):
        Y = isometric_tokens(T, T, g)
        for _ in range(l):
            G, W = (torch.randn(T, T, dtype=torch.float64, generator=g) / math.sqrt(T) for _ in range(2))
            Y = Y + c * G @ Y @ W
        moments.append([float(torch.trace(Y @ Y.T)) / T, float((Y @ Y.T).square().sum()) / T])
        shares.append((1 + float(covariance_stable_rank_excess(Y))) / T)
    m1, m2 = torch.tensor(moments).mean(0).tolist()
    assert (m1, m2) == pytest.approx(bulk_moments(l, 1.0, 1.0, c), rel=0.06)
    assert np.mean(shares) == pytest.approx(BlockLaw(l, 1, c).share(T), rel=0.06)


def test_moments_by_hand():
    assert bulk_moments(0, 0.5, 1.0, 1.0) == (1, 1)
    assert bulk_moments(1, 1.0, 1.0, 1.0) == (2, 8)  # 1 + 3 + 4
    assert bulk_moments(2, 1.0, 1.0, 1.0) == (4, 40)
    for l, gamma in itertools.product((1, 2, 5), (0.0, 0.5, 1.0)):
        assert bulk_moments(l, gamma, 0.0, 1.0)[1] == pytest.approx(width_collapse_constant(l, gamma))
        assert plain_excess(100, l, gamma, 2.0, skip=False) == pytest.approx(
            100 ** (1 - 2 * l) * 2.0 ** (4 * l) * width_collapse_constant(l, gamma)
        )


def test_the_plain_skip_reaches_a_fixed_law():
    """m_2 / m_1^2 obeys w' = (w + 3) / 2 at weights 1 and 1, and the rank does not fall any more."""
    w = [bulk_moments(l, 1.0, 1.0, 1.0)[1] / bulk_moments(l, 1.0, 1.0, 1.0)[0] ** 2 for l in range(12)]
    for before, after in itertools.pairwise(w):
        assert after == pytest.approx((before + 3) / 2)
    assert BlockLaw(30, 1, 1.0).limit == pytest.approx(BlockLaw(15, 1, 1.0).limit, rel=1e-3)


def test_top_of_the_upscaled_skip():
    assert upscaled_top(0, 1.0) == 1
    assert upscaled_top(1, 1.0) == pytest.approx((3 + math.sqrt(5)) / 2)  # golden ratio squared
    assert upscaled_top(5, 0.0) == 32
    assert upscaled_top(20, 1.0) / 2**20 == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("skip", "gamma", "theory"),
    [
        ("none", 1.0, lambda T, l, g, s: plain_excess(T, l, g, s, skip=False)),
        ("plain", 1.0, plain_excess),
        ("plain", 0.5, plain_excess),
        ("upscaled", 1.0, upscaled_excess),
        ("upscaled", 0.5, upscaled_excess),
    ],
)
@pytest.mark.parametrize("norm", [False, True])
def test_collapse_without_the_fix(skip, gamma, theory, norm):
    T, layers, law, g = 300, 3, uniform(), generator(5)
    logs = []
    for _ in range(6):
        d = round(T / gamma)
        weights = markov_weights(T, d, layers, law, g)
        logs.append(excess_by_layer(isometric_tokens(T, d, g), weights, Variant(skip=skip, norm=norm)).log())
    predicted = [math.log(theory(T, l, gamma, law.sigma)) for l in range(1, layers + 1)]
    # Six draws of standard deviation 0.4 at most.
    assert torch.stack(logs).mean(0).tolist() == pytest.approx(predicted, abs=0.5)


def test_excess_by_layer_is_the_excess_of_the_tokens():
    X, g = isometric_tokens(20, 30, generator()), generator(1)
    weights = markov_weights(20, 30, 3, lognormal(), g)
    for variant in (Variant(), Variant(fix=True, skip="plain", norm=True)):
        naive = [covariance_stable_rank_excess(tokens.X) for tokens in run(X, weights, variant)]
        torch.testing.assert_close(excess_by_layer(X, weights, variant), torch.stack(naive), rtol=1e-8, atol=0)


def test_a_factor_between_blocks_only_matters_to_the_softmax():
    X = isometric_tokens(20, 20, generator())
    skip = Variant(skip="plain")
    markov, logits = markov_weights(20, 20, 3, lognormal(), generator(1)), key_query_weights(20, 3, 0.3, generator(1))
    torch.testing.assert_close(
        excess_by_layer(X, markov, skip), excess_by_layer(X, markov, skip, scale=2.0), rtol=1e-9, atol=0
    )
    once, twice = (excess_by_layer(X, logits, skip, scale=scale) for scale in (1.0, 2.0))
    assert once[0] == pytest.approx(float(twice[0]), rel=1e-12)
    assert abs(float(once[1] / twice[1]) - 1) > 0.01


def test_collapsed_tokens_do_not_rise_from_rounding():
    """At this size and scale all tokens become one; with the fix the next layer would then be 0/0 or noise."""
    for seed in range(4):
        g = generator(seed)
        weights = key_query_weights(60, 12, 1.0, g)
        excess = excess_by_layer(isometric_tokens(60, 60, g), weights, Variant(fix=True))
        assert excess.isfinite().all()
        zero = (excess == 0).nonzero()
        assert len(zero) == 0 or (excess[int(zero[0]) :] == 0).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4))
def test_cyclic_points_by_counting_all_maps(T):
    def count(f):
        points = set(range(T))
        for _ in range(T):
            points = {f[i] for i in points}
        return len(points)

    maps = itertools.product(range(T), repeat=T)
    assert cyclic_points(T) == pytest.approx(np.mean([count(f) for f in maps]))


def test_cyclic_points_for_many():
    assert cyclic_points(10_000) == pytest.approx(math.sqrt(math.pi * 10_000 / 2) - 1 / 3, abs=1e-2)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="l: got 0"):
        BlockLaw(0, 1, 1.0)
    with pytest.raises(ValueError, match="skip: got 2"):
        BlockLaw(1, 2, 1.0)
    with pytest.raises(ValueError, match="branch: got 0"):
        BlockLaw(1, 1, 0.0)
    with pytest.raises(ValueError, match="l: got -1"):
        upscaled_top(-1, 1.0)
    with pytest.raises(ValueError, match="T: got 0"):
        cyclic_points(0)
    with pytest.raises(ValueError, match="scale: got 0"):
        excess_by_layer(torch.eye(3), [], Variant(), scale=0)
