"""lib.attention_gradients: every norm against the Jacobian written out, the theory against simulation and by hand."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from lib.attention import LAWS, exponential, isometric_tokens, lognormal, markov_matrix
from lib.attention_blocks import VARIANTS, Variant, key_query_weights, markov_weights
from lib.attention_gradients import (
    entry_variance,
    estimate_log_norms,
    exact_log_norms,
    expected_log_square,
    frozen,
    growth_exponent,
    kronecker_log_norms,
    published_log_norm,
)

T, D, LAYERS = 5, 7, 3
BOTH = [replace(v, fix=fix) for v in VARIANTS for fix in (False, True)]
KINDS = {
    "Markov": lambda g: markov_weights(T, D, LAYERS, lognormal(), g),
    "key-query": lambda g: key_query_weights(D, LAYERS, 0.7, g),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plain(X, weights, variant):
    """The block as the paper writes it."""
    for w in weights:
        A = torch.softmax(X @ w.QK @ X.T, -1) if w.A is None else w.A
        Y = (A - 1 / len(X) if variant.fix else A) @ X @ w.V
        Y = {"none": Y, "plain": X + Y, "upscaled": X + Y / math.sqrt(X.shape[1])}[variant.skip]
        X = torch.nn.functional.layer_norm(Y, Y.shape[-1:], eps=0) if variant.norm else Y
    return X


def brute_force(X, weights, variant, l):
    """log ||dX_L / dW_l||_F for L = l, l + 1, ... from Jacobians that are formed."""

    def last(V, L):
        return plain(X, [w._replace(V=V) if i == l - 1 else w for i, w in enumerate(weights[:L])], variant)

    jacobians = [torch.func.jacrev(last)(weights[l - 1].V, L) for L in range(l, len(weights) + 1)]
    return torch.stack([J.norm().log() for J in jacobians])


@pytest.mark.parametrize("variant", BOTH, ids=lambda v: f"{v}{', fixed' * v.fix}")
@pytest.mark.parametrize("kind", KINDS)
def test_every_block_against_the_jacobian(kind, variant):
    g = generator(1)
    weights, X = KINDS[kind](g), isometric_tokens(T, D, g)
    for l in (1, 2):
        oracle = brute_force(X, weights, variant, l)
        torch.testing.assert_close(exact_log_norms(X, weights, variant, l), oracle, rtol=0, atol=1e-10)
        found = estimate_log_norms(X, weights, variant, l, generator=g, probes=256)
        # Over these 144 comparisons 3 standard errors would be exceeded once in two runs of correct code.
        assert ((found.log_norm - oracle).abs() <= 4 * found.stderr + 1e-12).all()
        assert (found.stderr < 0.1).all()


@pytest.mark.parametrize("fix", [False, True])
def test_closed_form_is_the_jacobian(fix):
    g = generator(2)
    weights, X = KINDS["Markov"](g), isometric_tokens(T, D, g)
    for l in (1, 2, 3):
        oracle = brute_force(X, weights, Variant(fix=fix), l)
        torch.testing.assert_close(kronecker_log_norms(X, weights, fix, l), oracle, rtol=0, atol=1e-10)
        wrong = brute_force(X, weights, Variant(fix=not fix), l)
        assert (wrong - oracle).abs().min() > 0.1


def test_closed_form_keeps_its_digits_however_small_or_large():
    g = generator(3)
    weights, X = markov_weights(12, 12, 600, lognormal(), g), isometric_tokens(12, 12, g)
    scaled = [w._replace(V=w.V / 12) for w in weights]
    for fix in (False, True):
        large, small = (kronecker_log_norms(X, w, fix) for w in (weights, scaled))
        assert large.isfinite().all()
        # Each of the L - 1 other value matrices takes its factor 1/12 along.
        torch.testing.assert_close(small - large, -math.log(12) * torch.arange(600.0).double(), rtol=1e-10, atol=1e-10)
    assert small[-1] < -800  # e^-800 is no floating-point number
    common = X + 1e8
    exact = kronecker_log_norms(X, weights[:3], fix=True)
    torch.testing.assert_close(kronecker_log_norms(common, weights[:3], fix=True), exact, rtol=0, atol=1e-6)


def test_a_skip_is_a_sum_of_kronecker_products():
    """||sum_S P_S (x) Q_S||_F^2 = sum <P_S, P_S'> <Q_S, Q_S'>, S over the sets of layers whose branch is taken."""
    g = generator(4)
    weights, X = markov_weights(T, D, 4, lognormal(), g), isometric_tokens(T, D, g)
    left, right = [], []
    for taken in itertools.product((False, True), repeat=3):
        P, Q = weights[0].A @ X, torch.eye(D).double()
        for w, t in zip(weights[1:], taken, strict=True):
            P, Q = (w.A @ P, Q @ w.V) if t else (P, Q)
        left.append(P)
        right.append(Q)
    gram_left, gram_right = (torch.einsum("sij,tij->st", S, S) for S in map(torch.stack, (left, right)))
    exact = exact_log_norms(X, weights, Variant(skip="plain"))[-1]
    torch.testing.assert_close((gram_left * gram_right).sum().log() / 2, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sketch", [0, 2])
def test_estimator_is_unbiased_and_knows_its_error(sketch):
    g = generator(5)
    weights, X = key_query_weights(D, LAYERS, 1.0, g), isometric_tokens(T, D, g)
    oracle = exact_log_norms(X, weights, Variant())
    runs = [estimate_log_norms(X, weights, Variant(), generator=g, probes=8, sketch=sketch) for _ in range(100)]
    ratio = torch.stack([(2 * (r.log_norm - oracle)).exp() for r in runs])
    error = ratio.std(0) / math.sqrt(len(runs))
    assert ((ratio.mean(0) - 1).abs() < 4 * error).all()
    # The stated error of a log-norm is half the relative error of the square.
    stated = torch.stack([2 * r.stderr * rho for r, rho in zip(runs, ratio, strict=True)]).square().mean(0).sqrt()
    torch.testing.assert_close(stated, ratio.std(0), rtol=0.25, atol=0)


def test_variance_of_a_probe_is_that_of_the_formula():
    """Var ||J g||^2 = 2 ||J^T J||_F^2, the same for ||J^T u||^2."""
    g = generator(6)
    weights, X = markov_weights(T, D, 2, lognormal(), g), isometric_tokens(T, D, g)
    J = torch.kron(weights[1].A @ weights[0].A @ X, weights[1].V.T.contiguous())
    relative = math.sqrt(2) * (J.T @ J).norm() / J.norm() ** 2
    found = estimate_log_norms(X, weights, Variant(), generator=g, probes=4000, sketch=0)
    assert float(2 * found.stderr[-1] * math.sqrt(4000)) == pytest.approx(float(relative), rel=0.15)


def test_sketch_makes_a_dominated_jacobian_cheap():
    weights, X = key_query_weights(24, 4, 1.0, generator(8)), isometric_tokens(24, 24, generator(9))
    plain_error, sketched = (
        estimate_log_norms(X, weights, Variant(skip="plain", norm=True), generator=generator(10), sketch=s).stderr[-1]
        for s in (0, 2)
    )
    assert sketched < plain_error / 10


def test_frozen_attention_leaves_out_the_softmax():
    g = generator(11)
    weights, X = key_query_weights(D, LAYERS, 1.0, g), isometric_tokens(T, D, g)
    for variant in (Variant(), Variant(fix=True)):
        fixed = frozen(X, weights, variant)
        closed = kronecker_log_norms(X, fixed, variant.fix)
        torch.testing.assert_close(exact_log_norms(X, fixed, variant), closed, rtol=0, atol=1e-10)
        true = exact_log_norms(X, weights, variant)
        assert true[0] == pytest.approx(float(closed[0]))  # W_1 acts after the first softmax
        assert (true[1:] - closed[1:]).abs().min() > 0.01


@pytest.mark.parametrize("variant", [Variant(), Variant(fix=True), Variant(skip="plain", norm=True)], ids=str)
@pytest.mark.parametrize("kind", ["Markov", "key-query"])
def test_published_quantity(kind, variant):
    g = generator(12)
    weights = markov_weights(6, 6, 3, lognormal(), g) if kind == "Markov" else key_query_weights(6, 3, 0.7, g)
    X = isometric_tokens(6, 6, g)
    J = torch.func.jacrev(lambda X0: plain(X0, weights[1:], variant))(X)  # at X_0, not X_1
    A = torch.softmax(X @ weights[0].QK @ X.T, -1) if kind == "key-query" else weights[0].A
    A = A - 1 / 6 if variant.fix else A
    contracted = torch.einsum("iajb,bc->iajc", J, A @ X)  # features with tokens
    by_hand = (J.norm() * contracted.norm()).log()
    assert published_log_norm(X, weights, variant) == pytest.approx(float(by_hand), abs=1e-10)


@pytest.mark.parametrize("size", [6, 20])
def test_published_quantity_at_the_last_layer(size):
    """L = l: the true value times sqrt(T d), 6.00 and 20.0."""
    g = generator(12)
    weights, X = key_query_weights(size, 2, 1.0, g), isometric_tokens(size, size, g)
    true = exact_log_norms(X, weights, Variant(), 2)
    assert published_log_norm(X, weights, Variant(), 2) - float(true[0]) == pytest.approx(math.log(size), abs=1e-12)


def test_entry_variance():
    # Uniform on the simplex: E A_11^2 = 2 / (T (T + 1)).
    for size in (3, 50):
        assert entry_variance(size, exponential()) == pytest.approx((size - 1) / (size + 1), rel=1e-7)
    for make in LAWS.values():
        law = make()
        samples = 400 * markov_matrix(400, law, generator()).square().sum(-1) - 1
        assert entry_variance(400, law) == pytest.approx(float(samples.mean()), abs=5 * float(samples.std()) / 20)
        next_order = law.sigma**2 + (3 * law.sigma**4 - law.sigma**2 - 2 * law.skewness * law.sigma**3) / 4000
        assert entry_variance(4000, law) == pytest.approx(next_order, abs=1e-4)


@pytest.mark.parametrize("variant", [v for v in BOTH if not v.norm], ids=lambda v: f"{v}{', fixed' * v.fix}")
@pytest.mark.parametrize("l", [1, 2])
def test_expected_square(variant, l):
    """Against simulation, where T, d, the layer l and the scale of the values all count."""
    g, sigma_V, n = generator(13), 0.6, 20_000
    X, dX = torch.eye(T, D).double().expand(n, T, D), torch.zeros(n, T, D).double()
    c = 1 / math.sqrt(D) if variant.skip == "upscaled" else 1.0
    for i in range(1, LAYERS + 1):
        Z = torch.empty(n, T, T).double().exponential_(generator=g)
        A = c * (Z / Z.sum(-1, keepdim=True) - (1 / T if variant.fix else 0))
        W, dW = torch.randn(2, n, D, D, dtype=torch.float64, generator=g)
        branch, dbranch = A @ X @ W * sigma_V, A @ dX @ W * sigma_V + (A @ X @ dW if i == l else 0)
        keep = variant.skip != "none"
        X, dX = keep * X + branch, keep * dX + dbranch  # E ||J g||^2 = ||J||_F^2
    v = entry_variance(T, exponential())
    ratio = dX.square().sum((-2, -1)) / math.exp(expected_log_square(T, D, LAYERS, v, variant, sigma_V))
    error = float(ratio.std()) / math.sqrt(n)
    assert error < 0.02
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * error)


def test_expected_square_by_hand():
    # L = 2, T = 2, d = 3, v = 1: F_1 = 1 + 1, F_2 = 1 + 1/2 + 1/2; with the fix 1 and 1/2.
    by_hand = {
        Variant(): 9 * 2,
        Variant(fix=True): 9 / 2,
        Variant(skip="plain"): 3 * (2 + 3 * 2),
        Variant(skip="upscaled"): 2 + 2,
        Variant(fix=True, skip="upscaled"): 1 + 0.5,
    }
    for variant, value in by_hand.items():
        assert math.exp(expected_log_square(2, 3, 2, 1.0, variant)) == pytest.approx(value)
    # The paper's scale of values, the leading order: d (1 + T (sigma^2 / T)^L).
    leading = math.log(10**4 * (1 + 10**4 * 10**-4.0))
    assert expected_log_square(10**4, 10**4, 1, 1.0, Variant(), 0.01) == pytest.approx(leading)
    with pytest.raises(ValueError, match="LayerNorm has no closed form"):
        expected_log_square(2, 3, 2, 1.0, Variant(norm=True))


@pytest.mark.parametrize("variant", [v for v in BOTH if not v.norm], ids=lambda v: f"{v}{', fixed' * v.fix}")
def test_growth_exponent_is_that_of_the_expectation(variant):
    for L in (1, 2, 5):
        logs = [expected_log_square(size, size, L, 1.0, variant) for size in (10**8, 10**9)]
        assert growth_exponent(variant, L) == pytest.approx((logs[1] - logs[0]) / 2 / math.log(10), abs=1e-3)


def test_bad_input_is_named():
    weights, X = key_query_weights(D, 2, 1.0, generator()), isometric_tokens(T, D, generator())
    with pytest.raises(ValueError, match="needs fixed A"):
        kronecker_log_norms(X, weights)
    with pytest.raises(ValueError, match="l: got 3 with 2 layers"):
        exact_log_norms(X, weights, Variant(), 3)
    with pytest.raises(ValueError, match="probes: got 1"):
        estimate_log_norms(X, weights, Variant(), generator=generator(), probes=1)
    with pytest.raises(ValueError, match="sketch: got -1"):
        estimate_log_norms(X, weights, Variant(), generator=generator(), sketch=-1)
    with pytest.raises(ValueError, match="X: got shape"):
        published_log_norm(X, weights, Variant())
    with pytest.raises(ValueError, match="need floating-point tokens"):
        exact_log_norms(torch.ones(2, 3, dtype=torch.long), weights, Variant())
