"""lib.lazy_weights: adaptive queries and gradients against matrices that were drawn in full."""

import pytest
import torch
from scipy import stats

from lib.ensembles import BlockSparse, Gaussian, GaussianProduct, LowRank, Orthogonal
from lib.lazy_weights import LazyWeights, gradient_norms

FAMILY_WISE = 1e-3
NETWORKS, N = 30_000, 7
ENSEMBLES = {"i.i.d.": Gaussian(), "orthogonal": Orthogonal(), "low rank": LowRank(4), "full rank": LowRank(7)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def recurrence(forward, backward):
    """Three steps of a weight-tied network, and the gradient of its last state's square in the last matrix product."""
    h = torch.linspace(-1, 1, N, dtype=torch.float64).expand(NETWORKS, N)
    states = []
    for _ in range(3):
        h = torch.tanh(1.5 * forward(h)) + 0.2
        states.append(h)
    gradient = backward(h * (1 - (h - 0.2).square()))
    return [
        states[1][:, 0],
        states[2][:, 1],
        states[2].square().sum(-1),
        (states[0] * states[2]).sum(-1),
        gradient[:, 0],
        gradient.square().sum(-1),
        (gradient * states[1]).sum(-1),
        (gradient * states[2]).sum(-1),
    ]


@pytest.mark.parametrize("ensemble", ENSEMBLES.values(), ids=ENSEMBLES)
def test_a_tied_network_and_its_gradient_have_the_law_of_full_matrices(ensemble):
    lazy = LazyWeights(ensemble, N, N, NETWORKS, generator(1))
    W = ensemble.matrix(N, N, generator(2), (NETWORKS,))
    ours = recurrence(lazy.forward, lazy.backward)
    full = recurrence(
        lambda x: (W @ x[..., None])[..., 0],
        lambda x: (W.mT @ x[..., None])[..., 0],
    )
    level = FAMILY_WISE / (len(ENSEMBLES) * len(ours))
    for i, (a, b) in enumerate(zip(ours, full, strict=True)):
        p = stats.ks_2samp(a.numpy(), b.numpy()).pvalue
        assert p > level, f"statistic {i}: p = {p:.2g}"


@pytest.mark.parametrize("ensemble", ENSEMBLES.values(), ids=ENSEMBLES)
def test_answers_are_those_of_one_matrix(ensemble):
    """Linear in the query, and the two directions agree: delta . W phi = W^T delta . phi."""
    lazy = LazyWeights(ensemble, N, N, 5, generator())
    x, y, delta = (torch.randn(5, N, dtype=torch.float64, generator=generator(i)) for i in range(3))
    Wx, Wy = lazy.forward(x), lazy.forward(y)
    back = lazy.backward(delta)
    for phi, answer in ((x, Wx), (y, Wy), (2 * x - y, 2 * Wx - Wy)):
        torch.testing.assert_close((back * phi).sum(-1), (delta * answer).sum(-1))


@pytest.mark.parametrize("ensemble", ENSEMBLES.values(), ids=ENSEMBLES)
def test_gradients_have_the_law_of_full_matrices(ensemble):
    def run(explicit, seed):
        phi = torch.tanh, lambda u: torch.cosh(u) ** -2
        return gradient_norms(
            ensemble, N, 4, NETWORKS, *phi, 0.8, generator(seed), sigma_w=1.5, sigma_b=0.3, explicit=explicit
        )

    ours, full = run(False, 1), run(True, 2)
    assert ours.shape == (NETWORKS, 4)
    assert ours[:, -1].abs().max() < 1e-12
    for l in range(3):
        p = stats.ks_2samp(ours[:, l].numpy(), full[:, l].numpy()).pvalue
        assert p > FAMILY_WISE / (3 * len(ENSEMBLES)), f"layer {l + 1}: p = {p:.2g}"


def test_gradient_norms_are_those_of_autograd():
    """The explicit sampler against automatic differentiation of the same matrices."""
    phi, n, L = (torch.tanh, lambda u: torch.cosh(u) ** -2), 5, 3
    got = gradient_norms(Gaussian(), n, L, 1, *phi, 0.8, generator(4), sigma_w=1.5, sigma_b=0.3, explicit=True)
    g = generator(4)  # the same draws in the same order
    z = [(0.8**0.5 * torch.randn(1, n, dtype=torch.float64, generator=g)).requires_grad_()]
    for _ in range(L - 1):
        W = Gaussian().matrix(n, n, g, (1,))
        z.append(1.5 * torch.tanh(z[-1]) @ W[0].T + 0.3 * torch.randn(1, n, dtype=torch.float64, generator=g))
    delta = torch.nn.functional.normalize(torch.randn(1, n, dtype=torch.float64, generator=g), dim=-1)
    gradients = torch.autograd.grad((z[-1] * delta).sum(), z)
    torch.testing.assert_close(got, torch.stack([2 * d.norm().log() for d in gradients])[None])


def test_orthogonal_weights_keep_lengths_both_ways():
    lazy = LazyWeights(Orthogonal(), N, N, 4, generator())
    x = torch.randn(4, N, dtype=torch.float64, generator=generator())
    torch.testing.assert_close(lazy.forward(x).norm(dim=-1), x.norm(dim=-1))
    delta = torch.randn(4, N, dtype=torch.float64, generator=generator())
    torch.testing.assert_close(lazy.backward(delta).norm(dim=-1), delta.norm(dim=-1))


def test_what_cannot_be_asked_says_so():
    for ensemble in (BlockSparse(), GaussianProduct()):
        with pytest.raises(ValueError, match="no lazy sampler"):
            LazyWeights(ensemble, 6, 6, 1, generator())
    with pytest.raises(ValueError, match="lazy orthogonal weights are square"):
        LazyWeights(Orthogonal(), 6, 7, 1, generator())
    lazy = LazyWeights(LowRank(1), 6, 6, 1, generator())
    x = torch.ones(1, 6, dtype=torch.float64)
    lazy.forward(x)
    with pytest.raises(ValueError, match="1 queries were answered"):
        lazy.forward(x)
    lazy.backward(x)
    with pytest.raises(RuntimeError, match="forward queries first"):
        lazy.forward(x)
    with pytest.raises(RuntimeError, match="can be asked once"):
        lazy.backward(x)
