"""lib.spectra against torch's dense factorisations, which are the naive versions of the same quantities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.spectra import (
    covariance_stable_rank,
    covariance_stable_rank_excess,
    stable_rank,
    top_singular_triplets,
    top_singular_values,
)


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(m=st.integers(1, 40), n=st.integers(1, 40), batch=st.integers(1, 3), seed=st.integers(0, 2**31), data=st.data())
def test_equivalent_to_dense_svd(m, n, batch, seed, data):
    k = data.draw(st.integers(1, min(m, n)))
    M = gaussian(batch, m, n, seed=seed)
    expected = torch.linalg.svdvals(M)
    U, s, V = top_singular_triplets(M, k)
    scale = expected[:, 0].max()
    assert torch.allclose(s, expected[:, :k], atol=1e-7 * scale, rtol=0)
    assert torch.allclose(M @ V, U * s[:, None], atol=1e-6 * scale, rtol=0)
    assert torch.allclose(M.mT @ U, V * s[:, None], atol=1e-6 * scale, rtol=0)


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_soft_edge_of_a_large_matrix(dtype, tol):
    M = gaussian(500, 500, dtype=dtype) / math.sqrt(500)
    s = top_singular_values(M, 2)
    assert s.dtype == dtype
    assert torch.allclose(s, torch.linalg.svdvals(M)[:2], rtol=tol, atol=0)


def test_repeated_values_are_counted_as_often_as_they_occur():
    M = torch.diag(torch.tensor([3.0, 3.0, 3.0, 2.0, 0.0], dtype=torch.float64))
    assert torch.allclose(top_singular_values(M, 5), M.diagonal(), atol=1e-12)


def test_low_rank_and_zero_matrices():
    ones = torch.ones(4, 6, dtype=torch.float64)
    assert torch.allclose(
        top_singular_values(ones, 3), torch.tensor([24.0, 0, 0], dtype=torch.float64).sqrt(), atol=1e-12
    )
    assert top_singular_values(torch.zeros(3, 3), 2).tolist() == [0, 0]


def test_start_vector_comes_from_the_generator():
    M = gaussian(60, 60)
    draws = [top_singular_values(M, 1, generator=torch.Generator().manual_seed(k)) for k in (1, 2)]
    assert torch.allclose(*draws, rtol=1e-13)
    assert torch.equal(top_singular_values(M), top_singular_values(M))


def test_stable_rank_by_hand():
    # ||M||_F^2 = 9 + 4 + 1, ||M||_2^2 = 9.
    M = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    assert float(stable_rank(M)) == pytest.approx(14 / 9)
    # The Gram matrix has the fourth powers: (81 + 16 + 1) / 81.
    assert float(covariance_stable_rank(M)) == pytest.approx(98 / 81)
    assert float(stable_rank(torch.eye(7, dtype=torch.float64))) == pytest.approx(7)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (2, 3, 8, 4)])
def test_covariance_stable_rank_is_that_of_the_gram_matrix(shape):
    X = gaussian(*shape)
    assert torch.allclose(covariance_stable_rank(X), stable_rank(X @ X.mT))


def test_excess_keeps_its_digits_where_subtraction_loses_them():
    U, V = (torch.linalg.qr(gaussian(50, 50, seed=k)).Q for k in (1, 2))
    s = torch.full((50,), 1e-6, dtype=torch.float64)
    s[0] = 1
    X = U @ torch.diag(s) @ V.mT
    exact = 49e-24
    assert float(covariance_stable_rank_excess(X)) == pytest.approx(exact, rel=1e-6, abs=0)
    # The control: the textbook ratio minus 1 sees nothing at all.
    assert abs(float(stable_rank(X @ X.mT) - 1)) != pytest.approx(exact, rel=0.5, abs=0)


@pytest.mark.parametrize(
    ("M", "k", "message"),
    [
        (torch.ones(3, dtype=torch.float64), 1, "shape"),
        (torch.ones(3, 3, dtype=torch.int64), 1, "floating-point"),
        (torch.ones(3, 3) * math.nan, 1, "not finite"),
        (torch.ones(0, 3), 1, "no entries"),
        (torch.ones(3, 4), 4, "k: got 4"),
        (torch.ones(3, 4), 0, "k: got 0"),
        ([[1.0]], 1, "list"),
    ],
)
def test_bad_input_is_named(M, k, message):
    with pytest.raises(ValueError, match=message):
        top_singular_values(M, k)


def test_zero_matrix_has_no_stable_rank():
    for function in (stable_rank, covariance_stable_rank, covariance_stable_rank_excess):
        with pytest.raises(ValueError, match="0/0"):
            function(torch.zeros(3, 3))
