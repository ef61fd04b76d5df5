"""lib.coupling: each family keeps its law, and the distance between coupled networks is the predicted one."""

import itertools
import math

import pytest
import torch
from scipy import special, stats

from lib.activations import ERF, TANH
from lib.coupling import Coupled, coupling_constants, kernel_derivative
from lib.ensembles import BlockSparse, Gaussian, GaussianProduct, LowRank, Orthogonal
from lib.nngp import nngp
from lib.wide_networks import preactivations

X = torch.tensor([[1.0, 0.5, -1.0], [0.3, 1.2, 0.1]], dtype=torch.float64)
FAMILIES = (Gaussian(), Orthogonal(), LowRank(), GaussianProduct())


def coupled(n, layers, networks, *, families=FAMILIES, sigma_w=1.5, sigma_b=0.3, seed=0):
    """All layers, each of shape (networks, families, k, n)."""
    stacked = X.repeat(len(families), 1)
    draws = preactivations(
        Coupled(families),
        stacked,
        [n] * layers,
        torch.tanh,
        torch.Generator().manual_seed(seed),
        sigma_w=sigma_w,
        sigma_b=sigma_b,
        networks=networks,
    )
    return [z.unflatten(1, (len(families), -1)) for z in draws]


def test_the_first_layer_is_common_and_equal_families_stay_equal():
    first, *_, last = coupled(8, 4, 5, families=(Gaussian(), Orthogonal(), Gaussian()))
    torch.testing.assert_close(first, first[:, :1].expand(first.shape))
    torch.testing.assert_close(last[:, 0], last[:, 2])
    assert not torch.allclose(last[:, 0], last[:, 1], atol=0.01)


def test_each_family_keeps_its_law():
    networks, n = 20_000, 6
    *_, z = coupled(n, 3, networks)
    for i, family in enumerate(FAMILIES):
        g = torch.Generator().manual_seed(10 + i)
        *_, alone = preactivations(family, X, [n] * 3, torch.tanh, g, sigma_w=1.5, sigma_b=0.3, networks=networks)
        for f in (
            lambda Z: Z[:, 0, 0],
            lambda Z: Z[:, 0, 0] * Z[:, 1, 0],
            lambda Z: (Z[:, 0] * Z[:, 1]).sum(-1),
        ):
            assert stats.ks_2samp(f(z[:, i]).numpy(), f(alone).numpy()).pvalue > 1e-4


def test_one_layer_of_orthogonal_weights_in_closed_form():
    """At one input ``z_orth = z_iid sqrt(n) / ||a||``, so ``E (z_orth - z_iid)^2 = 2 q (1 - E chi_n / sqrt(n))``."""
    n, networks = 20, 40_000
    z1, z2 = coupled(n, 2, networks, families=(Gaussian(), Orthogonal()), sigma_b=0.0)
    q = 1.5**2 * torch.tanh(z1[:, 0, 0]).square().mean(-1)
    gap = (z2[:, 0, 0] - z2[:, 1, 0]).square().mean(-1) / q
    chi = math.sqrt(2 / n) * math.exp(special.gammaln((n + 1) / 2) - special.gammaln(n / 2))
    assert float(gap.mean()) == pytest.approx(2 * (1 - chi), abs=5 * float(gap.std()) / math.sqrt(networks))
    limit = list(coupling_constants(Orthogonal(), X[:1], 2, TANH, n, sigma_w=1.5))[-1]
    assert float(limit[0]) == pytest.approx(0.5)  # n times 2 (1 - (1 - 1/4n))


@pytest.mark.parametrize("family", FAMILIES[1:], ids=lambda f: f.name)
def test_the_constant_at_one_input_by_hand(family):
    c = {"orthogonal": 1, "low rank": 3, "product": 2}[family.name]
    v = 0.0
    kernels = list(nngp(X[:1], 5, TANH, 2.0, 0.3))
    for before, K in itertools.pairwise(kernels):
        v = (4 * float(TANH.second_moment_slope(before[0, 0]))) ** 2 * v + 2 * c * float(K[0, 0] - 0.09) ** 2
    q = float(K[0, 0] - 0.09)
    *_, constant = coupling_constants(family, X[:1], 5, TANH, 100, sigma_w=2.0, sigma_b=0.3)
    assert float(constant[0]) == pytest.approx(v / (4 * q * float(K[0, 0])), rel=1e-6)


def test_the_derivative_of_the_kernel_is_that_of_its_two_moments():
    K = torch.tensor([[1.5, 0.4], [0.4, 0.8]], dtype=torch.float64)
    J = kernel_derivative(ERF, K)
    assert float(J[0, 0, 0, 0]) == pytest.approx(float(ERF.second_moment_slope(1.5)), rel=1e-7)
    assert float(2 * J[0, 1, 0, 1]) == pytest.approx(float(ERF.cross_derivative(1.5, 0.8, 0.4)), rel=1e-7)
    assert float(J[0, 0, 1, 1]) == float(J[0, 0, 0, 1]) == 0  # a variance feeds on its own input only
    torch.testing.assert_close(J, J.mT)


@pytest.mark.parametrize("sigma_b", [0.0, 0.5])
def test_simulated_networks_are_as_far_apart_as_predicted(sigma_b):
    n, layers, networks = 200, 4, 3000
    *_, z = coupled(n, layers, networks, sigma_w=2.0, sigma_b=sigma_b)
    *_, K = nngp(X, layers, TANH, 2.0, sigma_b)
    gaps = n * (z - z[:, :1]).square().mean(-1) / K.diagonal()  # (networks, families, k)
    for i, family in enumerate(FAMILIES):
        *_, constant = coupling_constants(family, X, layers, TANH, n, sigma_w=2.0, sigma_b=sigma_b)
        error = 5 * gaps[:, i].std(0) / math.sqrt(networks) + 0.03 * constant + 1e-12
        assert ((gaps[:, i].mean(0) - constant).abs() < error).all()


def test_bad_input_is_named_at_once():
    with pytest.raises(ValueError, match="block sparse cannot be coupled"):
        Coupled((Gaussian(), BlockSparse()))
    with pytest.raises(ValueError, match="got 3 rows for 2 families"):
        Coupled((Gaussian(), Orthogonal())).outputs(torch.ones(3, 8), 8, torch.Generator())
    with pytest.raises(ValueError, match="no constant for block sparse"):
        coupling_constants(BlockSparse(), X, 3, TANH, 9, sigma_w=1.0)
    with pytest.raises(ValueError, match="linearly independent"):
        coupling_constants(Orthogonal(), torch.cat([X, X[:1]]), 3, TANH, 9, sigma_w=1.0)
