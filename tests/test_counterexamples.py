"""lib.counterexamples: implicit against explicit draws, the moment that each violates, and what it leaves alone."""

import math

import pytest
import torch
from scipy import stats

from lib.counterexamples import (
    EQUAL_ROWS,
    BernoulliBlocks,
    BlockDiagonal,
    CorrelatedRows,
    FixedFanIn,
    Rademacher,
    RandomSigns,
    RowScales,
    Stable,
    StudentT,
    stable,
)
from lib.ensembles import Ensemble, LowRank
from lib.weight_conditions import estimated_moments

FAMILY_WISE = 1e-3  # chance that any two-sample test of this file fails on correct code
DRAWS = 20_000
IMPLICIT = {
    "row scales": RowScales(),
    "row scales in blocks": RowScales(permuted=False),
    "Bernoulli blocks": BernoulliBlocks(),
    "random signs": RandomSigns(),
    "equal rows": EQUAL_ROWS,
    "correlated rows": CorrelatedRows(0.5),
    "fan-in 2": FixedFanIn(2),
    "fan-in 5": FixedFanIn(5),
    "unpermuted blocks": BlockDiagonal(),
}
OF_VARIANCE_ONE_OVER_N = {**IMPLICIT, "t9": StudentT(9.0), "Rademacher": Rademacher()}
SHAPES = [(6, 12), (12, 6)]
STATISTICS = {
    "one output": lambda Z: Z[:, 0, 0],
    "two inputs": lambda Z: Z[:, 0, 0] * Z[:, 1, 0],
    "two neurons": lambda Z: Z[:, 0, 0] * Z[:, 1, -1].abs() * Z[:, 1, -1],
    "activity": lambda Z: Z[:, 0].square().sum(-1) * Z[:, 1, 1].abs(),
    "overlap": lambda Z: (Z[:, 0] * Z[:, 1].abs()).sum(-1),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ensemble", IMPLICIT.values(), ids=IMPLICIT)
def test_implicit_draws_have_the_law_of_the_explicit_ones(ensemble, shape):
    m, n = shape
    Phi = torch.randn(2, n, dtype=torch.float64, generator=generator(7))
    Phi[0] = math.sqrt(n) * torch.eye(n)[0]  # one entry, where sparse and dense weights differ most
    Phi, g = Phi.expand(DRAWS, 2, n), generator(1)
    implicit, explicit = ensemble.outputs(Phi, m, g), Ensemble.outputs(ensemble, Phi, m, g)
    level = FAMILY_WISE / (len(IMPLICIT) * len(SHAPES) * len(STATISTICS))
    for name, statistic in STATISTICS.items():
        p = stats.ks_2samp(statistic(implicit).numpy(), statistic(explicit).numpy()).pvalue
        assert p > level, f"{name}: p = {p:.2g}"


@pytest.mark.parametrize("alpha", [0.7, 1.0, 1.5])
def test_stable_outputs_of_one_input_are_a_sum_of_stable_weights(alpha):
    Phi = torch.linspace(-1, 2, 9, dtype=torch.float64).expand(DRAWS, 1, 9)
    implicit = Stable(alpha).outputs(Phi, 4, generator())
    explicit = Ensemble.outputs(Stable(alpha), Phi, 4, generator(1))
    for statistic in (lambda Z: Z[:, 0, 0], lambda Z: Z[:, 0].abs().amax(-1)):
        assert stats.ks_2samp(statistic(implicit), statistic(explicit)).pvalue > 1e-4
    assert Stable(alpha).outputs(torch.ones(5, 3, 9, dtype=torch.float64), 4, generator()).shape == (5, 3, 4)


@pytest.mark.parametrize("alpha", [0.7, 1.0, 1.5])
def test_stable_variables_have_their_characteristic_function(alpha):
    """E cos(tS) = exp(-|t|^alpha); a bounded average, with error below 1/sqrt(draws)."""
    S = stable(alpha, 200_000, generator=generator())
    for t in (0.3, 1.0, 2.5):
        assert float(torch.cos(t * S).mean()) == pytest.approx(math.exp(-(t**alpha)), abs=4 / math.sqrt(200_000))


@pytest.mark.parametrize("nu", [1.0, 1.5, 2.0, 5.0])
def test_student_entries_have_the_law_of_scipy(nu):
    law = StudentT(nu)
    W = law.matrix(20, 50, generator(), (20,)).flatten() / law.scale(50)
    assert stats.kstest(W.numpy(), stats.t(nu).cdf).pvalue > 1e-4
    if nu > 2:
        assert law.scale(50) ** 2 * stats.t(nu).var() == pytest.approx(1 / 50)


@pytest.mark.parametrize("ensemble", OF_VARIANCE_ONE_OVER_N.values(), ids=OF_VARIANCE_ONE_OVER_N)
def test_entries_are_centred_with_variance_one_over_n(ensemble):
    """Over all entries of 4000 matrices; uncorrelated, but for the rows that are said to be correlated."""
    m, n = 6, 12
    W = ensemble.matrix(m, n, generator(3), (4000,))
    assert float(n * W.square().mean()) == pytest.approx(1, abs=0.05)
    C = n * torch.einsum("dij,dkl->ijkl", W, W) / len(W)
    rho = getattr(ensemble, "correlation", 0.0)
    between_rows = C.diagonal(dim1=1, dim2=3).sum(-1) / n  # (m, m): mean over columns of n E W_ij W_kj
    off = between_rows[~torch.eye(m, dtype=torch.bool)]
    torch.testing.assert_close(off, torch.full_like(off, rho), atol=0.08, rtol=0)
    between_columns = C.diagonal(dim1=0, dim2=2).sum(-1)[~torch.eye(n, dtype=torch.bool)] / m
    assert float(between_columns.abs().max()) < 0.08


FOURTH = {  # closed forms of n^2 E[W_1j^2 W_1j'^2] and n^2 E[W_1j W_2j W_1j' W_2j'] at m = n = 12; (iv) asks for 1, 0
    "row scales": (RowScales(), (0.2**2 + 1.8**2) / 2, 0),
    # two columns share a block with chance 3/11, and 1/p = 2 then, else 1
    "Bernoulli blocks": (BernoulliBlocks(3, 0.5), 1 + 3 / 11, 0),
    "random signs": (RandomSigns(), 1, 1),
    "correlated rows": (CorrelatedRows(0.6), 1, 0.36),
    "fan-in 2": (FixedFanIn(2), (12 / 11) * (1 - 1 / 2), 0),
    "fan-in 4": (FixedFanIn(4), (12 / 11) * (1 - 1 / 4), 0),
    "Rademacher": (Rademacher(), 1, 0),
}


@pytest.mark.parametrize(("ensemble", "same_row", "crossed"), FOURTH.values(), ids=FOURTH)
def test_condition_iv_fails_by_what_the_closed_form_says(ensemble, same_row, crossed):
    moments = estimated_moments(ensemble.matrix(12, 12, generator(5), (20_000,)))
    for measured, exact in ((moments.same_row, same_row), (moments.crossed, crossed)):
        error = float(measured.std()) / math.sqrt(len(measured))
        assert float(measured.mean()) == pytest.approx(exact, abs=4 * error + 1e-12)


def test_random_signs_and_low_rank_keep_condition_iii():
    """|a . W_1|^8 of random signs is that of a Gaussian row: 105, exactly."""
    a = torch.linspace(1, 2, 12, dtype=torch.float64)
    x = math.sqrt(12) * (RandomSigns().matrix(3, 12, generator(), (DRAWS,)) @ a)[:, 0] / a.norm()
    assert stats.kstest(x.numpy(), stats.norm.cdf).pvalue > 1e-4


@pytest.mark.parametrize("d", [2, 5, 12])
def test_fan_in_is_what_it_says_at_uniform_places(d):
    W = FixedFanIn(d).matrix(4, 12, generator(), (5000,))
    assert ((W != 0).sum(-1) == d).all()
    share = (W != 0).double().mean((0, 1))
    torch.testing.assert_close(share, torch.full_like(share, d / 12), atol=0.02, rtol=0)


def test_each_ensemble_has_the_shape_that_it_is_named_after():
    g = generator()
    rows = EQUAL_ROWS.matrix(5, 8, g)
    torch.testing.assert_close(rows, rows[:1].expand(5, 8))
    assert int(torch.linalg.matrix_rank(RandomSigns().matrix(5, 8, g))) == 1
    W = BlockDiagonal(2).matrix(4, 6, g)
    assert torch.equal(W != 0, torch.block_diag(torch.ones(2, 3), torch.ones(2, 3)).bool())
    norms = RowScales().matrix(4, 4000, g, (50,)).square().sum(-1).round(decimals=0)
    assert set(norms.flatten().tolist()) == {0, 2}  # .2 and 1.8
    assert len(set(norms[:, 0].tolist())) == 2  # in random order
    counts = (BernoulliBlocks(3).matrix(6, 6, g, (50,)) != 0).sum(-1)
    assert set(counts.flatten().tolist()) == {0, 2, 4, 6}


def test_the_tests_have_power():
    """The statistics above tell each of these from the other, and every one from a low-rank law."""
    Phi = torch.randn(2, 12, dtype=torch.float64, generator=generator(7)).expand(DRAWS, 2, 12)
    Z_low = LowRank(2).outputs(Phi, 6, generator(8))
    for ensemble in IMPLICIT.values():
        Z = ensemble.outputs(Phi, 6, generator(9))
        assert min(stats.ks_2samp(f(Z).numpy(), f(Z_low).numpy()).pvalue for f in STATISTICS.values()) < 1e-5


def test_bad_input_is_named():
    Phi = torch.ones(1, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"variances: got \(1, 2\)"):
        RowScales((1, 2))
    with pytest.raises(ValueError, match="density: got 0"):
        BernoulliBlocks(3, 0)
    with pytest.raises(ValueError, match="correlation: got 2"):
        CorrelatedRows(2)
    with pytest.raises(ValueError, match="alpha: got 2"):
        Stable(2)
    with pytest.raises(ValueError, match="nu: got 0"):
        StudentT(0)
    with pytest.raises(ValueError, match="fan_in: got 0"):
        FixedFanIn(0)
    with pytest.raises(ValueError, match="at most 8"):
        FixedFanIn(9).outputs(Phi, 4, generator())
    for ensemble in (BernoulliBlocks(3), BlockDiagonal(3)):
        with pytest.raises(ValueError, match="multiple of 3"):
            ensemble.outputs(Phi, 9, generator())
    with pytest.raises(ValueError, match="m: got 3"):
        RowScales().outputs(Phi, 3, generator())
