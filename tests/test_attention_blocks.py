"""lib.attention_blocks: every variant against the formula written out, at scales where the formula fails too."""

import math
from dataclasses import replace

import pytest
import torch

from lib.attention import isometric_tokens, lognormal
from lib.attention_blocks import (
    VARIANTS,
    Tokens,
    Variant,
    Weights,
    attention_map,
    block,
    identity_weights,
    key_query_weights,
    markov_weights,
    run,
)
from lib.spectra import covariance_stable_rank

T, D = 12, 17
BOTH = [replace(v, fix=fix) for v in VARIANTS for fix in (False, True)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plain(X, weights, variant):
    """The block as the paper writes it, in plain floating point."""
    for w in weights:
        A = torch.softmax(X @ w.QK @ X.T, -1) if w.A is None else w.A
        if variant.fix:
            A = A - 1 / len(X)
        Y = A @ X @ w.V
        if variant.skip == "plain":
            Y = X + Y
        elif variant.skip == "upscaled":
            Y = X + Y / math.sqrt(X.shape[1])
        if variant.norm:
            Y = torch.nn.functional.layer_norm(Y, Y.shape[-1:], eps=0)
        X = Y
    return X


@pytest.mark.parametrize("variant", BOTH, ids=lambda v: f"{v}{', fixed' * v.fix}")
@pytest.mark.parametrize("kind", ["Markov", "key-query", "identity"])
def test_blocks_are_the_formula(kind, variant):
    g = generator(1)
    weights = {
        "Markov": lambda: markov_weights(T, D, 3, lognormal(), g),
        "key-query": lambda: key_query_weights(D, 3, 0.3, g),
        "identity": lambda: identity_weights(T, D, 3, g),
    }[kind]()
    # Once the tokens have collapsed, the naive logits lose digits: keep the comparison to where both are exact.
    X = isometric_tokens(T, D, g)
    for l, tokens in enumerate(run(X, weights, variant), start=1):
        naive = plain(X, weights[:l], variant)
        torch.testing.assert_close(tokens.X, naive, rtol=1e-9, atol=1e-9 * float(naive.abs().max()))


def test_deep_unscaled_blocks_neither_overflow_nor_underflow():
    X = isometric_tokens(20, 20, generator())
    small = [w._replace(V=w.V / math.sqrt(20)) for w in key_query_weights(20, 12, 1.0, generator(1))]
    *_, last = run(X, small, Variant(fix=True))
    assert last.s < -1e4  # e^s is no floating-point number
    assert 1 <= float(covariance_stable_rank(last.Y)) <= 20
    *_, last = run(X, markov_weights(20, 20, 300, lognormal(), generator(2)), Variant())
    assert last.s > 400
    assert last.Y.isfinite().all()


def test_tiny_tokens_cube_under_the_fix():
    """A_perp is linear in the logits there, so X -> c X gives c^3 times the output."""
    (w,) = key_query_weights(D, 1, 1.0, generator())
    X = isometric_tokens(T, D, generator(1))
    Y, s = block(Tokens(X, math.log(1e-5)), w, Variant(fix=True))
    logits = X @ w.QK @ X.T
    linear = (logits - logits.mean(-1, keepdim=True)) @ X @ w.V / T
    torch.testing.assert_close(math.exp(s + 15 * math.log(10)) * Y, linear, rtol=1e-6, atol=1e-9)
    for log_scale in (-200.0, -400.0):  # above and below where e^{2s} underflows
        Y_tiny, s_tiny = block(Tokens(X, log_scale), w, Variant(fix=True))
        torch.testing.assert_close(Y_tiny, Y, rtol=1e-6, atol=1e-9)
        assert s_tiny - s == pytest.approx(3 * (log_scale - math.log(1e-5)), rel=1e-6)


def test_softmax_stays_exact_on_collapsed_tokens():
    """What all keys share leaves the softmax alone, also when it is ten orders larger than their differences."""
    (w,) = key_query_weights(D, 1, 1.0, generator())
    spread = isometric_tokens(T, D, generator(1))
    common = torch.randn(D, dtype=torch.float64, generator=generator(2))
    X = common + 1e-10 * spread
    # To first order the queries agree, and the logits' differences come from the keys alone.
    expected = torch.softmax(common @ w.QK @ spread.T * 1e-10, -1).expand(T, T)
    A = attention_map(Tokens(X), w)
    torch.testing.assert_close(A - 1 / T, expected - 1 / T, rtol=1e-5, atol=1e-16)


@pytest.mark.parametrize("variant", [Variant(), Variant(fix=True, skip="plain", norm=True)], ids=str)
def test_gradients_flow_through_the_scale(variant):
    weights = key_query_weights(D, 2, 0.5, generator())
    X = isometric_tokens(T, D, generator(1))

    def scaled(V):
        *_, last = run(X, [weights[0]._replace(V=V), weights[1]], variant)
        return math.exp(last.s) * last.Y

    def naive(V):
        return plain(X, [weights[0]._replace(V=V), weights[1]], variant)

    ours, oracle = (torch.func.jacrev(f)(weights[0].V) for f in (scaled, naive))
    torch.testing.assert_close(ours, oracle, rtol=1e-9, atol=1e-10)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="skip: got 'double'"):
        Variant(skip="double")
    with pytest.raises(ValueError, match="layers: got 0"):
        markov_weights(T, D, 0, lognormal(), generator())
    with pytest.raises(ValueError, match="b: got -1"):
        key_query_weights(D, 1, -1, generator())
    with pytest.raises(ValueError, match="need floating-point tokens"):
        next(run(torch.ones(2, 3, 4), [], Variant()))
    zero = Weights(torch.zeros(D, D, dtype=torch.float64), A=torch.eye(T, dtype=torch.float64))
    with pytest.raises(ValueError, match="have no scale"):
        next(run(isometric_tokens(T, D, generator()), [zero], Variant()))
