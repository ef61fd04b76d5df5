"""lib.causal_spectrum: the Cesàro matrix against dense linear algebra, the laws of causal attention against draws."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from lib.attention import LAWS, lognormal
from lib.causal_spectrum import (
    causal_markov_matrix,
    cesaro_closed_form,
    cesaro_matrix,
    cesaro_singular_values,
    cesaro_stable_rank,
    fixed_shift,
    fixed_singular_value,
)

POSITIVE = ("log-normal", "exponential", "uniform")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_cesaro_by_hand():
    assert cesaro_matrix(3).tolist() == [[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]]
    assert cesaro_singular_values(1).tolist() == pytest.approx([1])
    # C C^T has the trace 1 + 1/2 and the determinant 1/4 for two tokens.
    s = cesaro_singular_values(2, 2)
    assert [float((s**2).sum()), float(s.prod())] == pytest.approx([1.5, 0.5])


@pytest.mark.parametrize("T", [2, 7, 60])
def test_cesaro_singular_values_against_the_dense_matrix(T):
    assert torch.allclose(cesaro_singular_values(T, T), torch.linalg.svdvals(cesaro_matrix(T)), rtol=1e-10)


def test_cesaro_is_a_continuous_dual_hahn_polynomial():
    T = 6
    for s in cesaro_singular_values(T, T).tolist():
        xi2, term, total, size = s**-2 - 0.25, 1.0, 0.0, 0.0
        for n in range(T + 1):  # 3F2(-T, 1/2 + i xi, 1/2 - i xi; 1, 1; 1)
            total, size = total + term, size + abs(term)
            term *= (n - T) * ((n + 0.5) ** 2 + xi2) / (n + 1) ** 3
        assert abs(total) < 1e-9 * size


def test_stable_rank_of_the_cesaro_matrix():
    s = torch.linalg.svdvals(cesaro_matrix(50))
    assert cesaro_stable_rank(50) == pytest.approx(float((s**4).sum() / s[0] ** 4))
    growth = (cesaro_stable_rank(10**5) - cesaro_stable_rank(10**4)) / math.log(10)
    assert growth == pytest.approx(1 / 8, rel=0.25)


def test_closed_form_has_an_error_of_order_one_over_t_squared():
    errors = []
    for T in (10, 100, 1000):
        computed = cesaro_singular_values(T, 6)
        errors.append(max(abs(cesaro_closed_form(T, k + 1) - float(computed[k])) for k in range(6)))
    assert errors[0] < 1e-3
    assert all(b < a / 50 for a, b in pairwise(errors))  # T^{-1} would gain a factor 10
    assert all(cesaro_closed_form(9, k) > cesaro_closed_form(9, k + 1) > 0 for k in range(1, 9))


def test_closed_form_has_stampachs_expansion():
    # 4 - 16 pi^2 / log^2 T + 32 pi^2 (gamma + 6 log 2) / log^3 T + O(log^{-4} T)
    constant = np.euler_gamma + 6 * math.log(2)
    for power in (100, 200, 300):
        log = power * math.log(10)
        rest = (4 - cesaro_closed_form(10**power) ** 2) * log**2 / (16 * math.pi**2) - 1 + 2 * constant / log
        assert abs(rest) < 80 / log**2
        assert abs(rest - 2 * constant / log) > 80 / log**2 or power == 100  # the third term is seen


def test_causal_markov_matrix():
    A = causal_markov_matrix(50, lognormal(), generator())
    assert torch.allclose(A.sum(-1), torch.ones(50, dtype=torch.float64))
    assert (A.triu(1) == 0).all()
    assert (A >= 0).all()
    assert A[0, 0] == 1


@pytest.mark.parametrize("name", POSITIVE)
def test_mean_and_variance_of_an_entry(name):
    law, T, draws = LAWS[name](), 40, 4000
    A = torch.stack([causal_markov_matrix(T, law, generator(n)) for n in range(draws)])
    error = A.std(0) / math.sqrt(draws)
    assert ((A.mean(0) - cesaro_matrix(T)).abs() <= 5.5 * error + 1e-15).all()
    a = 0.5 + law.skewness * law.sigma - 1.5 * law.sigma**2
    relative = float((T**2 * A[:, -1].var(0)).mean()) / law.sigma**2
    assert relative == pytest.approx(1 - 2 * a / T, abs=0.02 + (2 * a / T) ** 2)


@pytest.mark.parametrize("name", POSITIVE)
def test_singular_values_with_the_fix(name):
    T, law = 400, LAWS[name]()
    bulk = [torch.linalg.svdvals(causal_markov_matrix(T, law, generator(n)) - cesaro_matrix(T)) for n in range(4)]
    s = torch.stack(bulk).mean(0)
    for k in (10, 20, 40):
        predicted = fixed_singular_value(T, k, law.sigma)
        assert abs(float(s[k - 1]) / predicted - 1) < fixed_shift(T, k, law)
        # Without causality all rows would count alike, and the k-th value were one of a quarter circle.
        assert abs(2 * law.sigma / math.sqrt(T) / predicted - 1) > fixed_shift(T, k, law)


def test_the_norm_of_causal_attention_exceeds_that_of_its_mean():
    T, law = 200, LAWS["exponential"]()
    draws = [causal_markov_matrix(T, law, generator(n)) for n in range(30)]
    norms, fixed = (
        torch.stack([torch.linalg.matrix_norm(A - M, 2) for A in draws])
        for M in (0 * cesaro_matrix(T), cesaro_matrix(T))
    )
    assert norms.mean() - 4 * norms.std() / math.sqrt(30) > cesaro_closed_form(T)
    assert fixed.mean() + 4 * fixed.std() / math.sqrt(30) < cesaro_closed_form(T)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: causal_markov_matrix(0, lognormal(), generator()), "T: got 0"),
        (lambda: causal_markov_matrix(9, LAWS["Bernoulli"](), generator()), "law: Bernoulli drew a row of zeros"),
        (lambda: cesaro_matrix(2.5), "T: got 2.5"),
        (lambda: cesaro_singular_values(4, 5), "k: got 5"),
        (lambda: cesaro_closed_form(4, 0), "k: got 0"),
        (lambda: fixed_singular_value(4, 5, 1.0), "k: got 5"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
