"""lib.empirical_kernel: the variance of a finite network's kernel against simulation, by hand and by differences."""

import math
from itertools import islice

import pytest
import torch

from lib.activations import ACTIVATIONS, ERF, RELU
from lib.empirical_kernel import _moments, empirical_kernel, kernel_variances
from lib.ensembles import FAMILIES, Gaussian, LowRank
from lib.nngp import nngp
from lib.weight_conditions import exact_moments
from lib.wide_networks import preactivations
from lib.width_corrections import corrections

SCALES = {"sigma_w": 1.3, "sigma_b": 0.4}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs():
    """Four inputs of one norm, at angles from 20 to 180 degrees."""
    angles = torch.tensor([0.0, 20.0, 90.0, 180.0], dtype=torch.float64) * math.pi / 180
    return 2 * torch.stack([angles.cos(), angles.sin(), 0 * angles, 0 * angles], 1)


def variances(phi, ensemble, n, layers):
    """Predicted for those inputs, behind ``layers`` hidden layers."""
    K = next(nngp(inputs(), 1, phi, **SCALES))
    rho = (K / K[0, 0]).clamp(-1, 1)
    recursion = kernel_variances(phi, exact_moments(ensemble, n, n), n, float(K[0, 0]), rho, **SCALES)
    return list(islice(recursion, layers))[-1]


def test_the_kernel_is_that_of_the_features():
    X = inputs()
    K = empirical_kernel(Gaussian(), X, [6, 5], torch.tanh, generator(), networks=2, **SCALES)
    *_, z = preactivations(Gaussian(), X, [6, 5], torch.tanh, generator(), networks=2, **SCALES)
    for network in range(2):
        for a in range(4):
            for b in range(4):
                overlap = sum(float(torch.tanh(z[network, a, i]) * torch.tanh(z[network, b, i])) for i in range(5))
                assert float(K[network, a, b]) == pytest.approx(0.16 + 1.69 / 5 * overlap, rel=1e-12)


def test_one_relu_layer_by_hand():
    # At correlation 0 the neurons' phi_a phi_b has variance (K/2)^2 - (K / 2 pi)^2; at -1 one of the two is 0.
    rho = torch.tensor([0.0, -1.0, 1.0])
    V = next(kernel_variances(RELU, exact_moments(Gaussian(), 9, 9), 9, 2.0, rho, sigma_w=1.0))
    assert V.tolist() == pytest.approx([1 - 1 / math.pi**2, 0, 5], abs=1e-4)


@pytest.mark.parametrize("phi", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_equal_inputs_are_the_recursion_of_one_input(phi):
    weights, one = exact_moments(Gaussian(), 50, 50), torch.ones(())
    ours = kernel_variances(phi, weights, 50, 1.2, one, **SCALES)
    theirs = corrections(phi, weights, 50, 1.2, **SCALES)
    next(theirs)  # the first layer
    for V, correction in islice(zip(ours, theirs, strict=False), 4):
        assert float(V) == pytest.approx(correction.C, rel=2e-4)


@pytest.mark.parametrize("phi", [ERF, RELU], ids=lambda phi: phi.name)
def test_the_jacobian_is_that_of_differences(phi):
    K, h = 1.4, 1e-5
    for rho in (-0.6, 0.3, 0.9):
        J = _moments(phi, torch.tensor(K, dtype=torch.float64), torch.tensor(rho, dtype=torch.float64))[1]
        for j, (da, dc, db) in enumerate(torch.eye(3, dtype=torch.float64) * h):
            up, down = (phi.cross(K + t * da, K + t * db, K * rho + t * dc) for t in (1, -1))
            assert float(J[1, j]) == pytest.approx(float(up - down) / (2 * h), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("phi", [ERF, RELU], ids=lambda phi: phi.name)
@pytest.mark.parametrize("name", FAMILIES)
def test_prediction_and_simulation_agree(name, phi):
    n, layers, networks = 120, 3, 4000
    K = empirical_kernel(
        FAMILIES[name], inputs(), [n] * layers, phi.phi, generator(2), networks=networks, dtype=torch.float32, **SCALES
    )
    square = n * (K - K.mean(0)).square()
    error = square.std(0) / math.sqrt(networks)
    predicted = variances(phi, FAMILIES[name], n, layers)
    next_order = 5 * layers / (2 * n) * predicted  # as for relu and one input, where it is known
    assert ((square.mean(0) - predicted).abs() < 4.5 * error + next_order).all()


@pytest.mark.parametrize("name", ["orthogonal", "low rank", "product"])
def test_the_families_differ_by_more_than_that(name):
    own, independent = (variances(ERF, FAMILIES[family], 120, 3) for family in (name, "i.i.d."))
    assert float((own / independent - 1).abs().max()) > 0.15


def test_a_fixed_rank_has_no_such_limit():
    small, large = (variances(ERF, LowRank(2), n, 3) for n in (100, 1000))
    assert float(large.max() / small.max()) == pytest.approx(10, rel=0.1)


def test_bad_arguments_are_refused_at_once():
    weights = exact_moments(Gaussian(), 9, 9)
    with pytest.raises(ValueError, match="rho: correlations lie"):
        kernel_variances(ERF, weights, 9, 1.0, torch.tensor([1.5]), sigma_w=1.0)
    with pytest.raises(ValueError, match="K: got 0"):
        kernel_variances(ERF, weights, 9, 0, torch.tensor([0.5]), sigma_w=1.0)
    with pytest.raises(ValueError, match="sigma_w: got -1"):
        kernel_variances(ERF, weights, 9, 1.0, torch.tensor([0.5]), sigma_w=-1)
