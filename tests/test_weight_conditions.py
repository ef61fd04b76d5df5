"""lib.weight_conditions: closed forms against simulation, against each other and against values found by hand."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lib.ensembles import BlockSparse, Ensemble, Gaussian, GaussianProduct, LowRank, Orthogonal, Spectrum
from lib.random_matrices import frame
from lib.weight_conditions import (
    FourthMoments,
    RowMoments,
    eighth_moment,
    eighth_moment_along,
    estimated_eighth_moment,
    estimated_moments,
    estimated_second_moments,
    exact_moments,
    invariant_moments,
)


def ramp(p):
    return torch.arange(1.0, p + 1)


SHAPES = [(6, 12), (12, 6), (9, 9)]
ENSEMBLES = [
    Gaussian(),
    Orthogonal(),
    LowRank(0.5),
    LowRank(1),
    GaussianProduct(0.5),
    BlockSparse(3, 1),
    BlockSparse(3, 2),
    Spectrum(ramp),
]
INVARIANT = [e for e in ENSEMBLES if not isinstance(e, BlockSparse)]  # their law does not change when W is rotated


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "ensemble", ENSEMBLES, ids=lambda e: f"{e.name} {getattr(e, 'rank', getattr(e, 'degree', ''))}"
)
def test_closed_forms_agree_with_simulation(ensemble, shape):
    W = ensemble.matrix(*shape, generator(), (20_000,))
    exact, simulated = exact_moments(ensemble, *shape), estimated_moments(W)
    for field in dataclasses.fields(FourthMoments):
        values, value = getattr(simulated, field.name), getattr(exact, field.name)
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - value) < 5 * error + 1e-12, field.name


def test_the_estimator_is_the_average_over_all_pairs():
    W = torch.randn(1, 3, 4, dtype=torch.float64, generator=generator())
    w, (m, n) = W[0], W.shape[1:]
    rows = [(i, k) for i in range(m) for k in range(m) if i != k]
    columns = [(j, k) for j in range(n) for k in range(n) if j != k]
    naive = {
        "same_row": [w[i, j] ** 2 * w[i, k] ** 2 for i in range(m) for j, k in columns],
        "crossed": [w[i, j] * w[h, j] * w[i, k] * w[h, k] for i, h in rows for j, k in columns],
        "two_rows": [w[i, j] ** 2 * w[h, k] ** 2 for i, h in rows for j, k in columns],
        "entry": [w[i, j] ** 4 for i in range(m) for j in range(n)],
        "column": [w[i, j] ** 2 * w[h, j] ** 2 for i, h in rows for j in range(n)],
    }
    for name, values in naive.items():
        assert float(getattr(estimated_moments(W), name)) == pytest.approx(n**2 * float(sum(values)) / len(values))


def test_the_estimator_takes_two_columns_for_all():
    """Over the pairs of columns, the estimates from two columns average to the estimate from the whole."""
    W = torch.randn(1, 5, 4, dtype=torch.float64, generator=generator())
    pairs = [estimated_moments(W[..., [j, k]], n=4) for j in range(4) for k in range(4) if j != k]
    for name, whole in dataclasses.asdict(estimated_moments(W)).items():
        assert sum(float(getattr(pair, name)) for pair in pairs) / 12 == pytest.approx(float(whole))


def test_second_moments_are_averages_over_all_pairs():
    W = torch.randn(1, 3, 4, dtype=torch.float64, generator=generator())
    cells = [(i, j) for i in range(3) for j in range(4)]
    pairs = [(p, q) for p in cells for q in cells if p != q]
    naive = {
        "mean": [W[0][p] / 2 for p in cells],
        "variance": [W[0][p] ** 2 - 1 / 4 for p in cells],
        "same row": [W[0][p] * W[0][q] for p, q in pairs if p[0] == q[0]],
        "same column": [W[0][p] * W[0][q] for p, q in pairs if p[1] == q[1]],
        "apart": [W[0][p] * W[0][q] for p, q in pairs if p[0] != q[0] and p[1] != q[1]],
    }
    for name, values in naive.items():
        assert float(estimated_second_moments(W)[name]) == pytest.approx(4 * float(sum(values)) / len(values)), name


def test_second_moments_of_known_matrices():
    for W in (torch.eye(3).double(), torch.ones(3, 3).double() / math.sqrt(3)):
        found = {name: float(value) for name, value in estimated_second_moments(W[None]).items()}
        dense = float(W[0, 1] > 0)
        expected = {"variance": 0.0, "same row": dense, "same column": dense}
        assert expected == pytest.approx({name: found[name] for name in expected}, abs=1e-12)


def test_independent_weights_are_the_invariant_law_with_their_traces():
    m, n = 5, 9
    invariant = invariant_moments(m, n, m**2 + 2 * m / n, m * (m + n + 1) / n)
    assert dataclasses.astuple(invariant) == pytest.approx(
        dataclasses.astuple(exact_moments(Gaussian(), m, n)), abs=1e-12
    )


def test_moments_by_hand():
    n = 10
    orthogonal = exact_moments(Orthogonal(), 6, n)
    assert orthogonal.same_row == pytest.approx(n / (n + 2))
    assert orthogonal.crossed == pytest.approx(-n / ((n - 1) * (n + 2)))
    assert orthogonal.two_rows == pytest.approx(n * (n + 1) / ((n - 1) * (n + 2)))
    m, r = 8, 4
    low_rank = exact_moments(LowRank(r), m, 20)
    assert low_rank.crossed == pytest.approx(m * (m - r) / (r * (m - 1) * (m + 2)))
    assert low_rank.two_rows == pytest.approx(m * (r * (m + 1) - 2) / (r * (m - 1) * (m + 2)))
    product = exact_moments(GaussianProduct(r), m, 20)
    assert (product.same_row, product.crossed, product.two_rows) == pytest.approx((1 + 2 / r, 1 / r, 1))
    gaussian = exact_moments(Gaussian(), m, n)
    assert dataclasses.astuple(gaussian) == pytest.approx((1, 0, 1, 3, 1), abs=1e-12)


def test_fixed_rank_breaks_condition_four_and_growing_rank_does_not():
    assert exact_moments(LowRank(2), 10**6, 10**6).crossed == pytest.approx(1 / 2, rel=1e-4)
    assert exact_moments(LowRank(1000), 10**6, 10**6).crossed == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("ensemble", [Orthogonal(), LowRank(0.5), BlockSparse(3)], ids=lambda e: e.name)
def test_eighth_moments_agree_with_simulation(ensemble):
    m, n = 6, 12
    low, high = eighth_moment(ensemble, m, n)
    W = ensemble.matrix(m, n, generator(), (200_000,))
    for a in (torch.ones(n), torch.eye(n)[0]):
        x = (W @ a.double())[..., 0] * math.sqrt(n) / a.norm()
        value, error = float(x.pow(8).mean()), float(x.pow(8).std()) / math.sqrt(len(x))
        expected = low if a.sum() > 1 else high
        assert abs(value - expected) < 6 * error
        assert error < 0.1 * expected


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ensemble", INVARIANT, ids=lambda e: f"{e.name} {getattr(e, 'rank', '')}")
def test_eighth_moments_without_the_tail(ensemble, shape):
    """The estimator that uses the rotation, for any vector, against the closed form."""
    W = ensemble.matrix(*shape, generator(1), (40_000,))
    for a in (torch.eye(shape[1])[0], torch.linspace(-1, 2, shape[1])):
        values = estimated_eighth_moment(W, a)
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - eighth_moment(ensemble, *shape)[0]) < 5 * error + 1e-9


def test_the_eighth_moment_of_a_flat_spectrum_is_that_of_orthogonal_weights():
    for shape in SHAPES:
        flat = eighth_moment(Spectrum(torch.ones), *shape)
        assert flat == pytest.approx(eighth_moment(Orthogonal(), *shape))


def test_the_estimator_of_the_eighth_moment_is_the_raw_average():
    W = Orthogonal().matrix(3, 5, generator(), (200_000,))
    a = torch.arange(1.0, 6, dtype=torch.float64)
    raw = (W @ a).pow(8).mean(-1) * 5**4 / float(a.norm()) ** 8
    difference = raw - estimated_eighth_moment(W, a)
    assert abs(float(difference.mean())) < 5 * float(difference.std()) / math.sqrt(len(raw))


def signed_sums(row, a):
    """``E (a . w)^8`` over all signs of the entries, by enumeration."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * len(a))
    return float((signs @ (row * a)).pow(8).mean())


@given(a=arrays(np.float64, 5, elements=st.floats(-3, 3).filter(lambda x: abs(x) > 0.1)))
def test_the_eighth_moment_along_a_vector_by_enumeration(a):
    a = torch.from_numpy(a)
    signs = eighth_moment_along(a, RowMoments.independent(1, 1, 1))
    assert signs == pytest.approx(signed_sums(torch.ones(5).double(), a / a.norm()))
    # zero or +-sqrt(3), with probability 1/3: every choice of the places that are not zero
    thirds = [
        signed_sums(math.sqrt(3) * kept, a / a.norm()) / 3 ** int(kept.sum()) * (2 / 3) ** int(5 - kept.sum())
        for kept in torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 5)
    ]
    assert eighth_moment_along(a, RowMoments.independent(3, 9, 27)) == pytest.approx(sum(thirds))


@given(
    a=arrays(np.float64, 6, elements=st.floats(-3, 3).filter(lambda x: abs(x) > 0.1)), degree=st.sampled_from([1, 2])
)
def test_the_eighth_moment_of_block_sparse_weights_along_a_vector(a, degree):
    ensemble, n = BlockSparse(3, degree), 6
    b, x = 2 * degree, a**2 / np.sum(a**2)
    subsets = [sum(x[list(S)]) ** 4 for S in itertools.combinations(range(n), b)]
    value = eighth_moment_along(torch.from_numpy(a), RowMoments.block_sparse(ensemble, n))
    assert value == pytest.approx(105 * (3 / degree) ** 4 * np.mean(subsets))
    low, high = eighth_moment(ensemble, n, n)
    assert low * (1 - 1e-12) <= value <= high * (1 + 1e-12)


def test_the_eighth_moment_along_a_vector_by_hand():
    gauss = RowMoments.independent(3, 15, 105)
    assert eighth_moment_along(torch.tensor([1.0, -2, 5]), gauss) == pytest.approx(105)
    assert eighth_moment_along(torch.eye(4)[1], RowMoments.independent(1, 1, 1)) == 1
    assert eighth_moment_along(torch.ones(2), RowMoments.independent(1, 1, 1)) == pytest.approx(8)  # (sqrt 2)^8 / 2
    assert eighth_moment_along(torch.eye(3)[0], RowMoments.block_sparse(BlockSparse(3), 3)) == pytest.approx(105 * 27)
    assert eighth_moment_along(torch.ones(9), RowMoments.block_sparse(BlockSparse(3), 9)) == pytest.approx(105)


def test_frames_have_the_moments_of_the_sphere():
    C = frame(7, 3, generator(), (50_000,))
    assert float((C[:, 0, 0].pow(2) * C[:, 1, 0].pow(2)).mean()) == pytest.approx(1 / 63, rel=0.03)


def test_bad_input_is_named():
    class Mine(Ensemble):
        name = "mine"

    with pytest.raises(ValueError, match="no closed form for mine"):
        exact_moments(Mine(), 4, 4)
    with pytest.raises(ValueError, match="no closed form for mine"):
        eighth_moment(Mine(), 4, 4)
    with pytest.raises(ValueError, match="two rows"):
        invariant_moments(1, 4, 1.0, 1.0)
    for estimator in (estimated_moments, estimated_second_moments, lambda W: estimated_eighth_moment(W, W[0])):
        with pytest.raises(ValueError, match="W: got shape"):
            estimator(torch.ones(4, 4))
    with pytest.raises(ValueError, match="n: got 3"):
        estimated_moments(torch.ones(1, 4, 4), n=3)
    with pytest.raises(ValueError, match="a: need a finite vector"):
        eighth_moment_along(torch.zeros(4), RowMoments.independent(3, 15, 105))
