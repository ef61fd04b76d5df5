"""lib.ensembles: implicit against explicit draws, moments against closed forms, and what cannot work."""

import math

import pytest
import torch
from scipy import stats

from lib.ensembles import FAMILIES, BlockSparse, Ensemble, Gaussian, GaussianProduct, LowRank, Orthogonal, Spectrum
from lib.random_matrices import frame, gram

FAMILY_WISE = 1e-3  # chance that any two-sample test of this file fails on correct code
DRAWS = 20_000
SPECTRUM = Spectrum(lambda p: torch.arange(1.0, p + 1).square())
ENSEMBLES = {
    **FAMILIES,
    "low rank, r = 1": LowRank(1),
    "low rank, r = 2": LowRank(2),
    "product, r = 1": GaussianProduct(1),
    "block sparse, degree 2": BlockSparse(3, 2),
    "spectrum": SPECTRUM,
}
SHAPES = [(6, 12), (12, 6), (9, 9)]
STATISTICS = {
    "one output": lambda Z: Z[:, 0, 0],
    "two inputs": lambda Z: Z[:, 0, 0] * Z[:, 1, 0],
    "two neurons": lambda Z: Z[:, 0, 0].square() * Z[:, 2, -1].square(),
    "activity": lambda Z: Z[:, 0].square().sum(-1) * Z[:, 1, 1].abs(),
    "overlap": lambda Z: (Z[:, 0] * Z[:, 1].abs()).sum(-1),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(n):
    """Three vectors; the first has one entry, where sparse and dense weights differ most."""
    Phi = torch.randn(3, n, dtype=torch.float64, generator=generator(7))
    Phi[0] = math.sqrt(n) * torch.eye(n)[0]
    return Phi.expand(DRAWS, 3, n)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ensemble", ENSEMBLES.values(), ids=ENSEMBLES)
def test_implicit_draws_have_the_law_of_the_explicit_ones(ensemble, shape):
    m, n = shape
    g, Phi = generator(1), inputs(n)
    implicit, explicit = ensemble.outputs(Phi, m, g), Ensemble.outputs(ensemble, Phi, m, g)
    level = FAMILY_WISE / (len(ENSEMBLES) * len(SHAPES) * len(STATISTICS))
    for name, statistic in STATISTICS.items():
        p = stats.ks_2samp(statistic(implicit).numpy(), statistic(explicit).numpy()).pvalue
        assert p > level, f"{name}: p = {p:.2g}"


def test_sorted_outputs_have_the_same_law_up_to_order():
    """Two block sparse layers: what is symmetric in the neurons does not see that the first is sorted in groups."""
    g, Phi, layer = generator(5), inputs(12), BlockSparse()
    Z = {
        name: layer.outputs(layer.outputs(Phi, 6, g, groups=groups), 6, g, shuffled=True)
        for name, groups in (("shuffled", None), ("sorted", 3))
    }
    for statistic in STATISTICS.values():
        p = stats.ks_2samp(*(statistic(z).numpy() for z in Z.values())).pvalue
        assert p > FAMILY_WISE / len(STATISTICS)
    # Sorted in one group, the neurons of a block stay together in the next layer, which shows.
    wrong = layer.outputs(layer.outputs(Phi, 6, g, groups=1), 6, g, shuffled=True)
    p = [stats.ks_2samp(f(wrong).numpy(), f(Z["shuffled"]).numpy()).pvalue for f in STATISTICS.values()]
    assert min(p) < FAMILY_WISE / len(STATISTICS)


@pytest.mark.parametrize("other", [name for name in ENSEMBLES if name != "i.i.d."])
def test_the_tests_have_power(other):
    """The same statistics tell every family from independent weights."""
    m, n = 6, 12
    g, Phi = generator(2), inputs(n)
    level = FAMILY_WISE / (len(ENSEMBLES) * len(SHAPES) * len(STATISTICS))
    Z, Z_iid = ENSEMBLES[other].outputs(Phi, m, g), Gaussian().outputs(Phi, m, g)
    p = [stats.ks_2samp(f(Z).numpy(), f(Z_iid).numpy()).pvalue for f in STATISTICS.values()]
    assert min(p) < level


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ensemble", ENSEMBLES.values(), ids=ENSEMBLES)
def test_entries_are_uncorrelated_with_variance_one_over_n(ensemble, shape):
    m, n = shape
    W = ensemble.matrix(m, n, generator(3), (4000,)).flatten(1)
    C = n * (W.T @ W) / len(W)
    fourth = W.square().square().mean() * n**2
    noise = math.sqrt(float(fourth) / len(W))
    off = C - C.diagonal().diag()
    assert float((C.diagonal() - 1).abs().max()) < 5.5 * noise
    assert float(off.abs().max()) < 6.5 * noise  # some 2500 pairs


def test_orthogonal_matrices_are():
    for m, n in SHAPES:
        W = Orthogonal().matrix(m, n, generator(), (5,))
        small = W @ W.mT if m <= n else W.mT @ W * n / m
        torch.testing.assert_close(small, torch.eye(min(m, n), dtype=torch.float64).expand_as(small))


def test_an_orthogonal_layer_keeps_lengths_and_angles():
    Phi = torch.randn(10, 3, 8, dtype=torch.float64, generator=generator())
    torch.testing.assert_close(gram(Orthogonal().outputs(Phi, 8, generator())), gram(Phi))


def test_low_rank_matrices_have_that_rank():
    W = LowRank(0.5).matrix(8, 20, generator())
    assert int(torch.linalg.matrix_rank(W)) == 4
    s = torch.linalg.svdvals(SPECTRUM.matrix(6, 9, generator()))
    torch.testing.assert_close(s, SPECTRUM.singular_values(6, 9).flip(0))
    assert float(s.square().sum()) == pytest.approx(6)


@pytest.mark.parametrize("degree", [1, 2])
def test_the_mask_is_balanced(degree):
    W = BlockSparse(3, degree).matrix(6, 12, generator())
    assert ((W != 0).sum(1) == 4 * degree).all()
    assert ((W != 0).sum(0) == 2 * degree).all()


@pytest.mark.parametrize("ensemble", FAMILIES.values(), ids=FAMILIES)
def test_equal_or_zero_inputs_are_no_error(ensemble):
    x = torch.randn(1, 9, dtype=torch.float64, generator=generator())
    Z = ensemble.outputs(torch.cat([x, 2 * x, 0 * x]), 9, generator())
    torch.testing.assert_close(Z[1], 2 * Z[0])
    assert not Z[2].any()


def test_more_inputs_than_the_sampler_takes_are_multiplied():
    Phi = torch.randn(9, 4, dtype=torch.float64, generator=generator())
    for ensemble in (Gaussian(), Orthogonal(), LowRank(2)):
        Z = ensemble.outputs(Phi, 4, generator())
        assert int(torch.linalg.matrix_rank(Z)) <= 4
        assert Z.shape == (9, 4)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"rank: got 0"):
        LowRank(0)
    with pytest.raises(ValueError, match=r"rank: got 2\.5"):
        GaussianProduct(2.5)
    with pytest.raises(ValueError, match="at most rank 4"):
        LowRank(5).matrix(4, 8, generator())
    with pytest.raises(ValueError, match="multiples of 3"):
        BlockSparse(3).outputs(torch.ones(2, 8, dtype=torch.float64), 9, generator())
    with pytest.raises(ValueError, match="degree: got 4"):
        BlockSparse(3, 4)
    with pytest.raises(ValueError, match="at most 3 orthonormal"):
        frame(3, 4, generator())
    with pytest.raises(ValueError, match="values: got shape"):
        Spectrum(lambda p: torch.zeros(p)).matrix(3, 3, generator())
