"""lib.wide_networks: whole networks, implicit against explicit, and against what is known in closed form."""

import math

import pytest
import torch
from scipy import stats

from lib.ensembles import FAMILIES, BlockSparse, Gaussian, LowRank, Orthogonal
from lib.wide_networks import preactivations

FAMILY_WISE = 1e-3
NETWORKS = 20_000
CASES = [(torch.tanh, 1.5, 0.3), (torch.relu, math.sqrt(2), 0.0)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("phi", "sigma_w", "sigma_b"), CASES, ids=["tanh", "relu"])
@pytest.mark.parametrize("ensemble", FAMILIES.values(), ids=FAMILIES)
def test_implicit_networks_have_the_law_of_explicit_ones(ensemble, phi, sigma_w, sigma_b):
    X = torch.tensor([[1.0, 0.5, -1.0], [0.3, 1.2, 0.1]], dtype=torch.float64)
    scales = {"sigma_w": sigma_w, "sigma_b": sigma_b, "networks": NETWORKS}
    widths = (12, 6, 12, 6)
    *_, implicit = preactivations(ensemble, X, widths, phi, generator(1), **scales)
    *_, explicit = preactivations(ensemble, X, widths, phi, generator(2), **scales, explicit=True)
    statistics = (
        lambda Z: Z[:, 0, 0],
        lambda Z: Z[:, 0, 0] * Z[:, 1, 0],
        lambda Z: Z[:, 0, 0].square() * Z[:, 0, 1].square(),
        lambda Z: (Z[:, 0] * Z[:, 1]).sum(-1),
        lambda Z: Z[:, 0].square().sum(-1),
    )
    level = FAMILY_WISE / (len(FAMILIES) * len(CASES) * len(statistics))
    for f in statistics:
        assert stats.ks_2samp(f(implicit).numpy(), f(explicit).numpy()).pvalue > level


def test_sorted_neurons_change_nothing_that_is_symmetric_in_them():
    X = torch.tensor([[1.0, 0.5, -1.0], [0.3, 1.2, 0.1]], dtype=torch.float64)
    kinds = [BlockSparse(), BlockSparse(2), Gaussian(), BlockSparse()]
    scales = {"sigma_w": 1.5, "networks": NETWORKS}
    *_, plain = preactivations(kinds, X, [6] * 5, torch.tanh, generator(3), **scales)
    *_, quick = preactivations(kinds, X, [6] * 5, torch.tanh, generator(4), **scales, shuffled=False)
    for f in (lambda Z: Z.square().sum((1, 2)), lambda Z: Z.prod(1).sum(-1), lambda Z: Z[:, 0].pow(4).sum(-1)):
        assert stats.ks_2samp(f(plain).numpy(), f(quick).numpy()).pvalue > FAMILY_WISE / 3
    # Sorted they are: two neurons of one block share the scale of their squares, and the first two are of one block.
    *_, quick = preactivations(BlockSparse(), X, [6] * 2, torch.tanh, generator(5), **scales, shuffled=False)
    squares = quick[:, 0].square()
    near, far = (torch.corrcoef(squares[:, [0, i]].T)[0, 1] for i in (1, 5))
    assert near > far + 0.05


def test_the_first_layer_is_gaussian_with_the_stated_variance():
    X = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    scales = {"sigma_w": 2.0, "sigma_b": 0.5, "networks": 20_000}
    (z,) = preactivations(Orthogonal(), X, [5], torch.tanh, generator(), **scales)
    assert z.shape == (20_000, 1, 5)
    # sigma_w^2 |x|^2 / N_0 + sigma_b^2; the biases of one network are drawn once a neuron.
    assert stats.kstest(z[:, 0, 0].numpy(), stats.norm(scale=math.sqrt(4 * 25 / 2 + 0.25)).cdf).pvalue > 1e-4


def test_deep_linear_orthogonal_networks_keep_the_activity():
    X = torch.randn(2, 4, dtype=torch.float64, generator=generator())
    layers = list(preactivations(Orthogonal(), X, [64] * 5, lambda z: z, generator(), sigma_w=1.0, networks=3))
    for z in layers[1:]:
        torch.testing.assert_close(z @ z.mT, layers[0] @ layers[0].mT)


def test_an_ensemble_for_each_layer():
    """Linear layers: an orthogonal one keeps the activity, an independent one does not."""
    X = torch.ones(1, 3, dtype=torch.float64)
    z1, z2, z3 = preactivations([Orthogonal(), Gaussian()], X, [8] * 3, lambda z: z, generator(), sigma_w=1.0)
    torch.testing.assert_close(z2.norm(), z1.norm())
    assert abs(float(z3.norm() / z2.norm()) - 1) > 1e-3
    same, listed = (
        list(preactivations(e, X, [8] * 3, torch.tanh, generator(), sigma_w=1.0)) for e in (LowRank(), [LowRank()] * 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(same, listed, strict=True))
    with pytest.raises(ValueError, match="ensemble: got 1 of them; 3 layers need 2"):
        preactivations([Orthogonal()], X, [8] * 3, torch.tanh, generator(), sigma_w=1.0)


def test_single_precision_is_close_to_double():
    X = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    *_, z = preactivations(
        LowRank(), X, [300] * 7, torch.tanh, generator(), sigma_w=2.0, networks=500, dtype=torch.float32
    )
    assert z.dtype == torch.float32
    q = z.double().square().mean()
    assert float(q) == pytest.approx(2.122902, rel=0.1)  # K^(7) at |x|^2 / N_0 = 1 is close to it; see the kernels


def test_bad_input_is_named_before_anything_is_drawn():
    X = torch.ones(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="X: got"):
        preactivations(Gaussian(), X[0], [3], torch.tanh, generator(), sigma_w=1.0)
    with pytest.raises(ValueError, match="X: got"):
        preactivations(Gaussian(), X * math.nan, [3], torch.tanh, generator(), sigma_w=1.0)
    with pytest.raises(ValueError, match="widths: got"):
        preactivations(Gaussian(), X, [3, 0], torch.tanh, generator(), sigma_w=1.0)
    with pytest.raises(ValueError, match="sigma_w: got -1"):
        preactivations(Gaussian(), X, [3], torch.tanh, generator(), sigma_w=-1)
    with pytest.raises(ValueError, match="networks: got 0"):
        preactivations(Gaussian(), X, [3], torch.tanh, generator(), sigma_w=1.0, networks=0)
