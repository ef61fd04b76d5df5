"""lib.structured_ensembles: implicit against explicit draws, closed-form moments against simulation and by hand."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg, stats

from lib.ensembles import BlockSparse, Ensemble, Gaussian, LowRank, Orthogonal
from lib.structured_ensembles import (
    Butterfly,
    Kronecker,
    Pruned,
    Shuffled,
    SignedHadamard,
    Sums,
    hadamard,
    orthogonal_moments,
    structured_moments,
)
from lib.weight_conditions import FourthMoments, estimated_moments, exact_moments

ENSEMBLES = {
    "Kronecker": Kronecker(),
    "Kronecker, 2": Kronecker(2),
    "Kronecker, mixed": Kronecker(4, Orthogonal(), LowRank(2)),
    "butterfly, rotations": Butterfly(),
    "butterfly, Gaussian": Butterfly(gaussian=True),
    "Hadamard, 1": SignedHadamard(),
    "Hadamard, 3": SignedHadamard(3),
    "pruned": Pruned(0.2),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("ensemble", ENSEMBLES.values(), ids=ENSEMBLES)
def test_closed_forms_agree_with_simulation(ensemble):
    n = 8
    exact = structured_moments(Shuffled(ensemble), n, n)
    simulated = estimated_moments(ensemble.matrix(n, n, generator(), (60_000,)))
    for field in dataclasses.fields(FourthMoments):
        values, value = getattr(simulated, field.name), getattr(exact, field.name)
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - value) < 5 * error + 1e-9, field.name


@pytest.mark.parametrize("ensemble", ENSEMBLES.values(), ids=ENSEMBLES)
def test_implicit_draws_have_the_law_of_the_explicit_ones(ensemble):
    n, draws = 8, 20_000
    Phi = torch.randn(2, n, dtype=torch.float64, generator=generator(7))
    Phi[0] = math.sqrt(n) * torch.eye(n)[0]
    g, both, law = generator(1), Phi.expand(draws, 2, n), Shuffled(ensemble)
    implicit, explicit = law.outputs(both, n, g), Ensemble.outputs(law, both, n, g)
    for statistic in (
        lambda Z: Z[:, 0, 0],
        lambda Z: Z[:, 0, 0] * Z[:, 1, 0],
        lambda Z: Z[:, 1, 0].square() + Z[:, 1, 1].square(),
    ):
        # Signs make discrete laws, whose atoms rounding would split.
        a, b = (statistic(Z).numpy().round(6) for Z in (implicit, explicit))
        assert stats.ks_2samp(a, b).pvalue > 1e-4


@pytest.mark.parametrize("ensemble", ENSEMBLES.values(), ids=ENSEMBLES)
def test_shuffled_entries_are_uncorrelated_with_variance_one_over_n(ensemble):
    n, draws = 4, 20_000
    W = Shuffled(ensemble).matrix(n, n, generator(3), (draws,)).flatten(1)
    C = n * (W.T @ W) / draws
    products = n * (W[:, :, None] * W[:, None, :])
    noise = products.std(0) / math.sqrt(draws)
    target = torch.eye(n * n, dtype=torch.float64)
    assert bool(((C - target).abs() < 5.5 * noise + 1e-9).all())


def test_a_shuffled_matrix_has_the_same_entries_in_the_same_rows():
    class Numbered(Ensemble):
        def matrix(self, m, n, generator, batch=()):
            return torch.arange(m * n, dtype=torch.float64).reshape(m, n).expand(*batch, m, n)

    W = Shuffled(Numbered()).matrix(3, 5, generator(), (40,))
    rows = (W // 5).sort(-1).values
    assert (rows == rows[..., :1]).all()  # a row keeps its entries
    assert ((W % 5).diff(dim=1) == 0).all()  # and a column too
    assert len({tuple(r) for r in rows[..., 0].long().tolist()}) == 6  # all orders of three rows
    assert (W.flatten(1).sort(-1).values == torch.arange(15)).all()


def test_kronecker_is_the_product():
    g, ensemble = generator(4), Kronecker()
    W = ensemble.matrix(6, 12, g)
    h = generator(4)
    A, B = Gaussian().matrix(3, 4, h), Gaussian().matrix(2, 3, h)
    torch.testing.assert_close(W, torch.kron(A, B))
    assert ensemble.shapes(6, 12) == ((3, 4), (2, 3))


def test_kronecker_moments_by_hand():
    """((n1 + 2)(n2 + 2) - 9) / (n - 1): a row of a Kronecker product is one of products of two Gaussian rows."""
    for n1, n2 in ((4, 4), (8, 2)):
        n = n1 * n2
        assert structured_moments(Kronecker(n2), n, n).same_row == pytest.approx(((n1 + 2) * (n2 + 2) - 9) / (n - 1))
    assert structured_moments(Kronecker(4), 4**9, 4**9).same_row == pytest.approx(1 + 2 / 4, rel=1e-3)
    assert structured_moments(Kronecker(), 4**9, 4**9).same_row == pytest.approx(1 + 4 / 2**9, rel=1e-4)


def test_hadamard_is_that_of_scipy():
    X = torch.randn(3, 16, dtype=torch.float64, generator=generator())
    torch.testing.assert_close(hadamard(X), X @ torch.from_numpy(linalg.hadamard(16)).double())


@pytest.mark.parametrize("ensemble", [Butterfly(), SignedHadamard(), SignedHadamard(3)], ids=lambda e: e.name)
def test_orthogonal_ones_are(ensemble):
    W = ensemble.matrix(16, 16, generator(), (3,))
    torch.testing.assert_close(W @ W.mT, torch.eye(16, dtype=torch.float64).expand(3, 16, 16))


@given(st.integers(3, 60))
def test_haar_is_one_of_the_orthogonal_ones(n):
    expected = exact_moments(Orthogonal(), n, n)
    assert dataclasses.astuple(orthogonal_moments(n, 3 * n / (n + 2))) == pytest.approx(dataclasses.astuple(expected))


def test_hadamard_rounds_tend_to_haar():
    n = 16
    entries = [structured_moments(SignedHadamard(k), n, n).entry for k in range(1, 12)]
    assert entries[0] == 1
    assert entries[1] == pytest.approx(3 - 2 / n)
    assert entries[-1] == pytest.approx(3 * n / (n + 2), rel=1e-8)


@given(st.integers(2, 40), st.integers(2, 40))
def test_sums_and_moments_are_each_others_inverse(m, n):
    moments = FourthMoments(1.1, 0.2, 0.9, 3.3, 1.4)
    assert dataclasses.astuple(Sums.of(moments, m, n).moments(m, n)) == pytest.approx(dataclasses.astuple(moments))


def test_pruning_nothing_is_gaussian_and_moments_are_by_hand():
    assert Pruned(1.0).kept(4) == pytest.approx(3)
    assert Pruned(1.0).kept(8) == pytest.approx(105)
    pruned = Pruned(0.1)
    assert pruned.threshold == pytest.approx(1.644854, abs=1e-5)
    W = pruned.matrix(100, 100, generator(), (20,))
    assert float((W != 0).double().mean()) == pytest.approx(0.1, abs=3e-3)
    assert structured_moments(pruned, 9, 9).entry < exact_moments(BlockSparse(10), 10, 10).entry / 2


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="need m = n, a power of 2"):
        Butterfly().matrix(6, 6, generator())
    with pytest.raises(ValueError, match="got 8, 4"):
        SignedHadamard().matrix(8, 4, generator())
    with pytest.raises(ValueError, match="got 6, 6; a factor of size 4"):
        Kronecker(4).matrix(6, 6, generator())
    with pytest.raises(ValueError, match="Kronecker factor"):
        structured_moments(Kronecker(), 7, 7)
    with pytest.raises(ValueError, match="density: got 0"):
        Pruned(0)
    with pytest.raises(ValueError, match="rounds: got 0"):
        SignedHadamard(0)
