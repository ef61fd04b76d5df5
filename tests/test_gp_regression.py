"""lib.gp_regression: against scikit-learn, by hand, and on the digits."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from lib.activations import ERF
from lib.gp_regression import GaussianProcess, one_hot
from lib.nngp import nngp


@pytest.mark.parametrize("outputs", [None, 3])
def test_same_as_scikit_learn(outputs):
    g = torch.Generator().manual_seed(0)
    X, new = (torch.randn(n, 2, dtype=torch.float64, generator=g) for n in (20, 7))
    Y = torch.randn(20, *(() if outputs is None else (outputs,)), dtype=torch.float64, generator=g)
    kernel = RBF(0.8)
    theirs = GaussianProcessRegressor(kernel, alpha=0.1, optimizer=None).fit(X.numpy(), Y.numpy())
    mean, std = theirs.predict(new.numpy(), return_std=True)

    K, K_cross = (torch.from_numpy(kernel(A.numpy(), X.numpy())) for A in (X, new))
    ours = GaussianProcess(K, Y, 0.1)
    m, v = ours.predict(K_cross, torch.ones(7))
    assert np.allclose(m, mean, rtol=1e-10)
    assert torch.equal(ours.mean(K_cross), m)
    assert np.allclose(v.sqrt() if outputs is None else v.sqrt()[:, None], std, rtol=1e-10)
    assert ours.log_likelihood == pytest.approx(theirs.log_marginal_likelihood_value_, rel=1e-12)


def test_one_observation_by_hand():
    # C = 2 + 1: mean (1/3) 6, variance 2 - 1/3, and the density of N(0, 3) at 6.
    gp = GaussianProcess(torch.tensor([[2.0]]), torch.tensor([6.0]), 1.0)
    mean, variance = gp.predict(torch.tensor([[1.0]]), torch.tensor([2.0]))
    assert float(mean) == pytest.approx(2)
    assert float(variance) == pytest.approx(5 / 3)
    assert gp.misfit == pytest.approx(12)
    assert gp.log_likelihood == pytest.approx(-6 - math.log(6 * math.pi) / 2)


def test_without_noise_it_interpolates():
    X = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None]
    *_, K = nngp(torch.cat([X, torch.ones_like(X)], 1), 3, ERF, 2.0, 0.5)
    Y = torch.sin(3 * X[:, 0])
    mean, variance = GaussianProcess(K, Y, 1e-10).predict(K, K.diagonal())
    assert torch.allclose(mean, Y, atol=1e-4)
    assert variance.abs().max() < 1e-6


def test_a_random_kernel_is_too_sure_and_fits_worse():
    """The predictive variance is concave in the kernel, the misfit convex: Jensen, for two kernels and their mean."""
    g = torch.Generator().manual_seed(1)
    Y = torch.randn(8, dtype=torch.float64, generator=g)
    for _ in range(20):
        A = torch.randn(2, 11, 3, dtype=torch.float64, generator=g)
        kernels = [*(A @ A.mT), (A @ A.mT).mean(0)]
        gps = [GaussianProcess(K[:8, :8], Y, 0.1) for K in kernels]
        one, other, mean = (gp.predict(K[8:, :8], K.diagonal()[8:])[1] for gp, K in zip(gps, kernels, strict=True))
        assert (one + other <= 2 * mean).all()
        assert gps[0].misfit + gps[1].misfit >= 2 * gps[2].misfit


def test_digits_with_an_infinitely_wide_network():
    X, labels = load_digits(return_X_y=True)
    X = torch.from_numpy(X)
    X = 8 * X / X.norm(dim=1, keepdim=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, labels = X[order], torch.from_numpy(labels[order])
    *_, K = nngp(X, 4, ERF, math.sqrt(1.5), math.sqrt(0.5))  # three hidden layers
    k, Y = K.diagonal(), one_hot(labels, 10)
    gp = GaussianProcess(K[:1000, :1000], Y[:1000], 1e-3 * float(k[0]))
    mean, variance = gp.predict(K[1000:, :1000], k[1000:])
    assert int((mean.argmax(1) != labels[1000:]).sum()) == 6
    assert float((mean - Y[1000:]).square().mean()) == pytest.approx(0.00634, abs=1e-5)
    assert float(variance.mean()) + gp.noise == pytest.approx(0.00741, abs=1e-5)


def test_one_hot():
    Y = one_hot(torch.tensor([0, 3]), 4)
    assert Y.tolist() == [[0.75, -0.25, -0.25, -0.25], [-0.25, -0.25, -0.25, 0.75]]
    with pytest.raises(ValueError, match=r"values 0..2"):
        one_hot(torch.tensor([0, 3]), 3)


def test_bad_arguments_are_refused():
    K, Y = torch.ones(2, 2, dtype=torch.float64), torch.ones(2)
    with pytest.raises(ValueError, match="use a larger noise"):
        GaussianProcess(K - 2 * torch.eye(2), Y, 0.0)
    with pytest.raises(ValueError, match=r"noise: got -1.0"):
        GaussianProcess(K, Y, -1.0)
    with pytest.raises(ValueError, match="K, Y: got shapes"):
        GaussianProcess(K, torch.ones(3), 1.0)
    with pytest.raises(ValueError, match="K_cross: got shape"):
        GaussianProcess(K, Y, 1.0).predict(torch.ones(2, 3), torch.ones(2))
    with pytest.raises(ValueError, match="K_cross: got shape"):
        GaussianProcess(K, Y, 1.0).mean(torch.ones(2, 3))
