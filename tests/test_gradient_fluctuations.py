"""lib.gradient_fluctuations: hand-made cases, and networks with all their weights or lazy ones."""

import math

import pytest
import torch

from lib.activations import RELU, TANH
from lib.edge_of_chaos import MeanField, critical_point
from lib.ensembles import BlockSparse, Gaussian, LowRank, Orthogonal
from lib.gaussian_moments import Activation
from lib.gradient_fluctuations import gradient_laws
from lib.lazy_weights import gradient_norms

LINEAR = Activation("linear", lambda u: u, torch.ones_like)
ENSEMBLES = {"i.i.d.": Gaussian(), "orthogonal": Orthogonal(), "low rank": LowRank(0.25)}
N, LAYERS = 120, 6


@pytest.mark.parametrize(("ensemble", "spread"), [(Gaussian(), 2), (Orthogonal(), 0), (LowRank(20), 2 * 80 / 20)])
def test_linear_networks(ensemble, spread):
    # |W^T delta|^2 / |delta|^2 of independent layers: n Var log = spread a layer, and the mean is kept exactly.
    for l, law in enumerate(gradient_laws(LINEAR, ensemble, 80, 5, 1.0, sigma_w=1.5), 1):
        assert law.gain == pytest.approx(2.25 ** (5 - l))
        assert law.variance == pytest.approx((5 - l) * spread, rel=0.06, abs=1e-9)  # exact moments at n = 80
        assert law.mean == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize("layers", [2, 6])
def test_relu_by_hand(layers):
    # phi' is a coin in {0, 1}: 3 (E phi'^4 / h^2 - 1) = 3 a layer, plus 2 from independent weights, 0 from orthogonal.
    iid, orthogonal = (gradient_laws(RELU, e, 400, layers, 1.0, sigma_w=2**0.5)[0] for e in (Gaussian(), Orthogonal()))
    assert iid.variance == pytest.approx(5 * (layers - 1))
    assert orthogonal.variance == pytest.approx(3 * (layers - 1), abs=1e-9)
    assert (iid.gain, iid.mean) == pytest.approx((1, 0), abs=1e-9)


@pytest.mark.parametrize("ensemble", ENSEMBLES.values(), ids=ENSEMBLES)
@pytest.mark.parametrize(("phi", "sigma_w", "sigma_b"), [(TANH, 2.0, 0.2), (RELU, 1.3, 0.3)])
def test_networks_follow_the_law(phi, sigma_w, sigma_b, ensemble):
    networks, K = 1500, 1.7 * MeanField(phi, sigma_w, sigma_b).q_star  # not at the fixed point
    g = torch.Generator().manual_seed(1)
    arguments = phi.phi, phi.derivative, K, g
    x = gradient_norms(ensemble, N, LAYERS, networks, *arguments, sigma_w=sigma_w, sigma_b=sigma_b)
    laws = gradient_laws(phi, ensemble, N, LAYERS, K, sigma_w=sigma_w, sigma_b=sigma_b)
    assert len(laws) == LAYERS - 1
    for l in (0, 3):
        y, law = x[:, l], laws[l]
        log_error, square_error = float(y.std()) / math.sqrt(networks), math.sqrt(2 / networks)
        second_order = law.variance / N / 30  # the rank is N / 4
        assert float(y.mean()) == pytest.approx(law.log_mean(N), abs=4 * log_error + second_order)
        assert N * float(y.var()) == pytest.approx(law.variance, rel=4 * square_error + 1 / 30)
        ratio = y.exp() / law.gain
        bound = 4 * float(ratio.std()) / math.sqrt(networks) + (law.variance / N) ** 2
        assert float(ratio.mean()) == pytest.approx(1 + law.mean / N, abs=bound)


def test_the_published_example():
    # tanh at criticality, sigma_b = .2, n = 300, L = 20: sd of log |gradient|^2 over 300 networks, measured once.
    sigma_w, q = critical_point(TANH, 0.2)
    for ensemble, sd in ((Orthogonal(), 0.27), (Gaussian(), 0.53), (LowRank(150), 0.62), (LowRank(75), 0.90)):
        law = gradient_laws(TANH, ensemble, 300, 20, q, sigma_w=sigma_w, sigma_b=0.2)[0]
        assert math.sqrt(law.variance / 300) == pytest.approx(sd, rel=4 / math.sqrt(2 * 300))
        assert law.gain == pytest.approx(1)


def test_what_has_no_law_says_so():
    with pytest.raises(ValueError, match="must not change under rotations"):
        gradient_laws(TANH, BlockSparse(), 30, 3, 1.0, sigma_w=1.0)
    with pytest.raises(ValueError, match="at least 2"):
        gradient_laws(TANH, Gaussian(), 30, 1, 1.0, sigma_w=1.0)
