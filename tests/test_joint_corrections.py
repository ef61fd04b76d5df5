"""lib.joint_corrections: against the theory of one input, derivatives against differences, slices of networks."""

import itertools
import math

import pytest
import torch

from lib.activations import ERF, RELU, TANH
from lib.conditional_law import last_layer_along
from lib.ensembles import FAMILIES, Gaussian, Orthogonal
from lib.joint_corrections import _first, _fourth_derivative, _grid, joint_corrections
from lib.weight_conditions import exact_moments
from lib.width_corrections import corrections

K = torch.tensor([[1.3, 0.5], [0.5, 0.9]], dtype=torch.float64)


def layer(recursion, l):
    return next(itertools.islice(recursion, l - 1, l))


@pytest.mark.parametrize("phi", [TANH, ERF], ids=["tanh", "erf"])
@pytest.mark.parametrize("ensemble", FAMILIES.values(), ids=FAMILIES)
def test_along_one_input_it_is_the_theory_of_one_input(ensemble, phi):
    weights, scales = exact_moments(ensemble, 120, 120), {"sigma_w": 1.5, "sigma_b": 0.4}
    for l in (1, 2, 4):
        joint = layer(joint_corrections(phi, weights, 120, K, **scales), l)
        for a, theta in enumerate(torch.eye(2)):
            one = layer(corrections(phi, weights, 120, float(K[a, a]), **scales), l)
            along = joint.along(theta)
            assert (along.K, along.C, along.m) == pytest.approx((one.K, one.C, one.m), abs=1e-9)


def test_derivatives_of_the_kernel_are_differences():
    """Along ``K + t v v^T``: ``dF/dt = v^T dF/dK v`` and, by the heat equation, ``d^2F/dt^2 = sum C E d^4 G / 4``."""
    x, w, root = _grid(TANH, K)
    f = TANH.phi(x @ root.T)
    G, v, h = f[:, :, None] * f[:, None, :], torch.tensor([0.8, -0.5], dtype=torch.float64), 1e-3
    minus, middle, plus = (TANH.kernel(K + t * torch.outer(v, v)) for t in (-h, 0, h))
    first = torch.einsum("abij,i,j->ab", _first(x, w, G, root), v, v)
    fourth = _fourth_derivative(x, w, G, root, torch.einsum("i,j,k,l->ijkl", v, v, v, v)) / 4
    torch.testing.assert_close(first, (plus - minus) / (2 * h), atol=1e-6, rtol=0)
    torch.testing.assert_close(fourth, (plus - 2 * middle + minus) / h**2, atol=1e-5, rtol=0)


def test_swapping_inputs_swaps_the_correction():
    weights = exact_moments(Orthogonal(), 50, 50)
    swap = torch.tensor([1, 0])
    one = layer(joint_corrections(TANH, weights, 50, K, sigma_w=1.5), 3)
    two = layer(joint_corrections(TANH, weights, 50, K[swap][:, swap], sigma_w=1.5), 3)
    for theta in ([1.0, -1.0], [0.3, 0.7]):
        theta = torch.tensor(theta, dtype=torch.float64)
        a, b = one.along(theta), two.along(theta[swap])
        assert (a.K, a.C, a.m) == pytest.approx((b.K, b.C, b.m))


def test_three_inputs_contain_two():
    weights = exact_moments(Gaussian(), 50, 50)
    K3 = torch.eye(3, dtype=torch.float64) * 0.9
    K3[:2, :2] = K
    two = layer(joint_corrections(ERF, weights, 50, K, sigma_w=1.0), 2).along([1.0, -1.0])
    three = layer(joint_corrections(ERF, weights, 50, K3, sigma_w=1.0), 2).along([1.0, -1.0, 0.0])
    assert (three.C, three.m, three.K) == pytest.approx((two.C, two.m, two.K))


@pytest.mark.parametrize("name", ["i.i.d.", "orthogonal", "low rank", "block sparse"])
def test_slices_of_networks_have_the_predicted_kurtosis(name):
    n, l, angle = 300, 3, math.radians(40)
    X = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64) * math.sqrt(2)
    recursion = joint_corrections(TANH, exact_moments(FAMILIES[name], n, n), n, 2.25 * X @ X.T / 2, sigma_w=1.5)
    joint = layer(recursion, l)
    for theta in ([1.0, -1.0], [1.0, 0.5]):
        theta = torch.tensor(theta, dtype=torch.float64)
        mixture = last_layer_along(
            theta, FAMILIES[name], TANH, X, n, l, torch.Generator().manual_seed(1), sigma_w=1.5, networks=3000
        )
        theory, values = joint.along(theta), n * mixture.excess_kurtosis()
        assert abs(mixture.K - theory.K) < 1e-9
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - theory.kurtosis) < 4.5 * error + theory.kurtosis**2 / n


def test_bad_input_is_named():
    weights = exact_moments(Gaussian(), 10, 10)
    with pytest.raises(ValueError, match=r"K: got shape \(4, 4\)"):
        next(joint_corrections(TANH, weights, 10, torch.eye(4), sigma_w=1.0))
    with pytest.raises(ValueError, match="equal inputs are one input"):
        next(joint_corrections(TANH, weights, 10, torch.ones(2, 2), sigma_w=1.0))
    with pytest.raises(ValueError, match="relu has kinks"):
        next(joint_corrections(RELU, weights, 10, K, sigma_w=1.0))
    with pytest.raises(ValueError, match="theta: got shape"):
        next(joint_corrections(TANH, weights, 10, K, sigma_w=1.0)).along([1.0])
