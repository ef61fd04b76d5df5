"""lib.pair_corrections: one input, small networks in numbers, and a case by hand."""

from itertools import islice

import pytest
import torch

from lib.activations import RELU, TANH
from lib.ensembles import BlockSparse, Gaussian, LowRank, Orthogonal
from lib.gaussian_moments import Activation
from lib.joint_corrections import joint_corrections
from lib.pair_corrections import pair_corrections
from lib.weight_conditions import exact_moments
from lib.wide_networks import preactivations
from lib.width_corrections import corrections

N, LAYERS, NETWORKS = 60, 4, 8000
ENSEMBLES = {"i.i.d.": Gaussian(), "orthogonal": Orthogonal(), "low rank": LowRank(0.25), "block": BlockSparse(2, 1)}
K = torch.tensor([[1.4, 0.6], [0.6, 0.9]], dtype=torch.float64)


@pytest.mark.parametrize("ensemble", ENSEMBLES.values(), ids=ENSEMBLES)
@pytest.mark.parametrize(("phi", "sigma_w", "sigma_b"), [(TANH, 2.0, 0.2), (RELU, 1.3, 0.3)])
def test_the_diagonal_is_the_case_of_one_input(phi, sigma_w, sigma_b, ensemble):
    arguments = phi, exact_moments(ensemble, N, N), N
    pair = islice(pair_corrections(*arguments, K, sigma_w=sigma_w, sigma_b=sigma_b), LAYERS)
    ones = [corrections(*arguments, float(K[i, i]), sigma_w=sigma_w, sigma_b=sigma_b) for i in (0, 1)]
    for both, *single in zip(pair, *ones, strict=False):
        assert both.K[:2].tolist() == pytest.approx([x.K for x in single])
        assert both.m[:2].tolist() == pytest.approx([x.m for x in single], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("ensemble", ENSEMBLES.values(), ids=ENSEMBLES)
@pytest.mark.parametrize(("phi", "sigma_w", "sigma_b"), [(TANH, 2.0, 0.2), (RELU, 2**0.5, 0.0)])
def test_networks_are_shifted_as_predicted(phi, sigma_w, sigma_b, ensemble):
    X = torch.linalg.cholesky((K - sigma_b**2) / sigma_w**2 * 2)
    *_, z = preactivations(
        ensemble, X, [N] * LAYERS, phi.phi, torch.Generator().manual_seed(2), sigma_w=sigma_w, sigma_b=sigma_b,
        networks=NETWORKS,
    )  # fmt: skip
    *_, law = islice(
        pair_corrections(phi, exact_moments(ensemble, N, N), N, K, sigma_w=sigma_w, sigma_b=sigma_b), LAYERS
    )
    G = (z @ z.mT / N).flatten(-2)[:, [0, 3, 1]]
    mean = G.mean(0)
    error = 4 * N * G.std(0) / NETWORKS**0.5
    assert bool((N * (mean - law.K) - law.m).abs().le(error + 0.15 * law.m.abs()).all())  # the next order: 1/N of a few
    c = mean[2] / (mean[0] * mean[1]).sqrt()
    relative = G / mean
    linear = relative[:, 2] - (relative[:, 0] + relative[:, 1]) / 2
    error = 4 * N * float(c * linear.std()) / NETWORKS**0.5
    assert N * (float(c) - law.c) == pytest.approx(law.c_shift, abs=error + 0.25 * abs(law.c_shift))


@pytest.mark.parametrize("ensemble", ENSEMBLES.values(), ids=ENSEMBLES)
def test_a_smooth_pair_is_the_case_of_many_inputs(ensemble):
    """Differences of ``cross`` against Hermite polynomials on a grid."""
    arguments = (TANH, exact_moments(ensemble, N, N), N, K)
    pairs, joints = (f(*arguments, sigma_w=2.0, sigma_b=0.2) for f in (pair_corrections, joint_corrections))
    for pair, joint in islice(zip(pairs, joints, strict=False), LAYERS):
        assert pair.m.tolist() == pytest.approx(joint.m.flatten()[[0, 3, 1]].tolist(), rel=1e-4, abs=1e-5)


def test_linear_networks_keep_their_means():
    linear = Activation("linear", lambda u: u, torch.ones_like)
    *_, law = islice(pair_corrections(linear, exact_moments(Gaussian(), N, N), N, K, sigma_w=1.0), LAYERS)
    assert law.m.abs().max() < 1e-6
    assert law.c == pytest.approx(0.6 / (1.4 * 0.9) ** 0.5)


def test_a_singular_pair_is_refused():
    with pytest.raises(ValueError, match="positive definite"):
        next(pair_corrections(TANH, exact_moments(Gaussian(), N, N), N, torch.ones(2, 2), sigma_w=1.0))
