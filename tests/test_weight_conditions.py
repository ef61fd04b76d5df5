"""lib.weight_conditions: closed forms against simulation, against each other and against values found by hand."""

import dataclasses
import math

import pytest
import torch

from lib.ensembles import BlockSparse, Ensemble, Gaussian, GaussianProduct, LowRank, Orthogonal, Spectrum, frame
from lib.weight_conditions import FourthMoments, eighth_moment, estimated_moments, exact_moments, invariant_moments


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
    with pytest.raises(ValueError, match="W: got shape"):
        estimated_moments(torch.ones(4, 4))
