"""lib.mahalanobis: scale mixtures whose radius is known, and simulated networks."""

import itertools
import math

import pytest
import torch
from scipy import stats

from lib.activations import TANH
from lib.ensembles import BlockSparse, Gaussian, GaussianProduct, LowRank, Orthogonal
from lib.joint_corrections import JointCorrection, joint_corrections
from lib.mahalanobis import RadiusCorrection, between_neurons, radius_at_inputs, radius_of_neurons
from lib.nngp import nngp
from lib.weight_conditions import exact_moments
from lib.wide_networks import preactivations
from lib.width_corrections import Correction, corrections


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_radius_of_a_scale_mixture(d):
    """``z = sqrt(K (1 + s / sqrt(n))) g`` with one sign ``s`` for all coordinates: ``C = K^2`` and ``m = 0``."""
    n, c = 4000, Correction(1.7, 1.7**2, 0.0)
    t = torch.linspace(0.5, 20, 40, dtype=torch.float64)
    chi2 = stats.chi2(d)
    exact = sum(chi2.cdf(t.numpy() / (1 + s / math.sqrt(n))) / 2 for s in (-1, 1)) - chi2.cdf(t.numpy())
    radius = radius_of_neurons(c, c, d)
    torch.testing.assert_close(radius.shift(t), n * torch.from_numpy(exact), rtol=0, atol=2e-3)


def test_a_variance_that_is_off_by_one_nth():
    n, d = 10_000, 3
    t = torch.linspace(0.5, 20, 40, dtype=torch.float64)
    exact = n * (stats.chi2(d).cdf(t.numpy() / (1 + 2 / n)) - stats.chi2(d).cdf(t.numpy()))
    torch.testing.assert_close(RadiusCorrection(d, 2.0, 0.0).shift(t), torch.from_numpy(exact), rtol=0, atol=1e-3)


def test_inputs_and_neurons_agree_where_they_are_the_same():
    """With ``C_ab,cd = K_ab K_cd``, the kernel fluctuates by one factor: two inputs are as good as two neurons."""
    K = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    at = radius_at_inputs(JointCorrection(K, torch.einsum("ab,cd->abcd", K, K), 0.3 * K))
    of = radius_of_neurons(Correction(1.0, 1.0, 0.3), Correction(1.0, 1.0, 0.3), 2)
    assert (at.d, at.a, at.b) == (of.d, pytest.approx(of.a), pytest.approx(of.b))


@pytest.mark.parametrize("family", [Gaussian(), Orthogonal(), LowRank(), GaussianProduct()], ids=lambda f: f.name)
def test_two_neurons_share_all_of_the_correction_under_rotations(family):
    weights = exact_moments(family, 60, 60)
    own, shared = (
        list(itertools.islice(corrections(TANH, w, 60, 2.0, sigma_w=1.5), 4))[-1]
        for w in (weights, between_neurons(weights))
    )
    assert math.isclose(shared.C, own.C, rel_tol=1e-9)


@pytest.mark.parametrize("family", [GaussianProduct(), BlockSparse()], ids=lambda f: f.name)
def test_simulated_networks_are_as_far_from_the_limit(family):
    n, networks, layers = 60, 40_000, 4
    X = torch.tensor([[1.0, 0.5, -1.0], [0.3, 1.2, 0.1]], dtype=torch.float64)
    first, *_, K = nngp(X, layers, TANH, 2.0, 0.0)
    weights = exact_moments(family, n, n)
    g = torch.Generator().manual_seed(3)
    *_, z = preactivations(family, X, [n] * layers, torch.tanh, g, sigma_w=2.0, networks=networks)

    joint = list(itertools.islice(joint_corrections(TANH, weights, n, first, sigma_w=2.0), layers))[-1]
    R2 = (torch.linalg.inv(torch.linalg.cholesky(K)) @ z[..., :1]).square().sum((1, 2))
    check(R2, radius_at_inputs(joint), n)

    own, shared = (
        list(itertools.islice(corrections(TANH, w, n, float(first[0, 0]), sigma_w=2.0), layers))[-1]
        for w in (weights, between_neurons(weights))
    )
    squares = z[:, 0, :2].square() / K[0, 0]
    check(squares.sum(-1), radius_of_neurons(own, shared), n)
    assert float(torch.cov(squares.T)[0, 1]) == pytest.approx(shared.C / own.K**2 / n, abs=4 * 2 / math.sqrt(networks))


def check(R2, radius, n):
    D = stats.ks_1samp(R2.numpy(), stats.chi2(radius.d).cdf, method="asymp").statistic
    assert pytest.approx(radius.kolmogorov, abs=1.4 * n / math.sqrt(len(R2))) == n * D
