"""lib.entrywise_training, lib.default_scaling: formulas against simulation, networks against the formula."""

import math
from dataclasses import replace

import pytest
import torch

from lib.attention import isometric_attention, isometric_tokens
from lib.attention_blocks import VARIANTS, Variant, Weights, run
from lib.default_scaling import independent_gap, xavier_gap, xavier_gap_at
from lib.entrywise_training import (
    MAPS,
    Task,
    entrywise_task,
    initial_layers,
    moved,
    network,
    reference_losses,
    resolved,
    shared_output_loss,
    train,
    train_pair,
)
from lib.spectra import top_singular_values

T, D = 7, 9
BOTH = [replace(v, fix=fix) for v in VARIANTS for fix in (False, True)]
STEP = MAPS["Heaviside"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def named(variant):
    return f"{variant}{', fixed' * variant.fix}"


def inputs(n=3, T=T, d=D, seed=1):
    g = generator(seed)
    return torch.stack([isometric_tokens(T, d, g) for _ in range(n)])


@pytest.mark.parametrize("variant", BOTH, ids=named)
def test_the_network_is_the_blocks_of_claim_a15(variant):
    """Two implementations of one formula; large values make LayerNorm's eps small, which the blocks leave out."""
    layers = [layer._replace(V=1e4 * layer.V) for layer in initial_layers(D, 1, 0.5, generator())]
    weights = [Weights(layer.V, QK=layer.Q @ layer.K.mT / math.sqrt(D)) for layer in layers]
    X = inputs()
    for x, y in zip(X, network(X, layers, variant), strict=True):
        *_, tokens = run(x, weights, variant)
        torch.testing.assert_close(y, tokens.X, rtol=1e-8, atol=1e-8 * float(y.abs().max()))


def test_two_layers_written_out():
    layers = initial_layers(D, 2, 1.0, generator())
    layers = [layer._replace(gain=layer.gain + 0.5, bias=layer.bias - 0.2) for layer in layers]
    (X,) = inputs(1)
    expected = X
    for Q, K, V, gain, bias in layers:
        logits = (expected @ Q) @ (expected @ K).T / math.sqrt(D)
        A = logits.exp() / logits.exp().sum(1, keepdim=True) - 1 / T
        Y = expected + A @ expected @ V
        Y = (Y - Y.mean(1, keepdim=True)) / (Y.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        expected = gain * Y + bias
    ours = network(X[None], layers, Variant(fix=True, skip="plain", norm=True))[0]
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variant", BOTH, ids=named)
def test_only_the_bias_breaks_the_symmetry(variant):
    X, layers = inputs(), initial_layers(D, 2, 1.0, generator())
    torch.testing.assert_close(network(-X, layers, variant), -network(X, layers, variant))
    biased = [layer._replace(bias=layer.bias + 1) for layer in layers]
    same = torch.allclose(network(-X, biased, variant), -network(X, biased, variant))
    assert same is not variant.norm


def test_reference_losses_by_hand():
    d = 50
    step = reference_losses(STEP, d)
    assert step.zero == pytest.approx(1 / 2)
    assert step.constant == pytest.approx(1 / 4)
    assert step.odd == pytest.approx(1 / 4)
    assert reference_losses(STEP, 10**6).line == pytest.approx(1 / 4 - 1 / (2 * math.pi), abs=1e-6)
    identity = reference_losses(MAPS["identity"], d)
    assert identity == pytest.approx((1 / d, 1 / d, 0, 0), abs=1e-12)
    fourth = 3 / (d * (d + 2))
    assert reference_losses(MAPS["square"], d) == pytest.approx((fourth, fourth - 1 / d**2, fourth, fourth - 1 / d**2))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("d", [3, 20])
def test_reference_losses_against_simulation(name, d):
    f = MAPS[name]
    x = torch.randn(400_000, d, generator=generator(), dtype=torch.float64)
    x = x[:, 0] / x.norm(dim=1)
    y, even = f(x), (f(x) + f(-x)) / 2
    slope = (x @ (y - y.mean())) / (x @ x)
    simulated = y.square().mean(), y.var(), even.square().mean(), (y - y.mean() - slope * x).square().mean()
    assert reference_losses(f, d) == pytest.approx([float(s) for s in simulated], rel=0.02, abs=1e-6)


def test_no_weights_beat_the_odd_bound_on_inputs_and_their_negatives():
    """On X and -X together the bound is exact, for trained weights too."""
    task = entrywise_task(STEP, T, D, 4, 1, generator())
    both = Task(torch.cat([task.X, -task.X]), torch.cat([task.Y, STEP(-task.X)]), task.X, task.Y)
    layers = initial_layers(D, 2, 1.0, generator(1))
    fit = train(both, layers, Variant(skip="plain"), 0.05, 60)
    assert float(fit.losses.min()) >= 1 / 4
    assert float(train(both, layers, Variant(skip="plain", norm=True), 0.05, 60).losses[-1]) < 1 / 4


def test_uniform_attention_is_bound_by_the_shared_output():
    Y = torch.tensor([[[0.0, 1.0], [2.0, 1.0]]])
    assert shared_output_loss(Y) == pytest.approx(0.5)  # columns vary by 1 and by 0
    task = entrywise_task(STEP, T, D, 3, 1, generator())
    zero = [layer._replace(Q=0 * layer.Q) for layer in initial_layers(D, 1, 1.0, generator(1))]
    fit = train(task, zero, Variant(), 0.1, 400, frozen_keys=True)
    bound = shared_output_loss(task.Y)
    assert bound - 1e-12 < float(fit.losses.min()) < bound + 0.01  # and three inputs in nine dimensions attain it
    assert float(train(task, zero, Variant(fix=True), 0.1, 5, frozen_keys=True).losses[-1]) == pytest.approx(
        float(task.Y.square().mean())
    )


def test_shared_output_loss_has_the_stated_mean():
    Y = torch.stack([entrywise_task(STEP, 10, 10, 1, 1, generator(k)).Y[0] for k in range(400)])
    assert shared_output_loss(Y) == pytest.approx(0.25 * (1 - 1 / 10), rel=0.02)


def test_the_first_step_of_adam_is_the_sign_of_the_gradient():
    task = entrywise_task(STEP, T, D, 3, 2, generator())
    (layer,) = initial_layers(D, 1, 1.0, generator(1))
    leaves = [p.clone().requires_grad_() for p in layer[:3]]
    loss = (
        (network(task.X, [layer._replace(Q=leaves[0], K=leaves[1], V=leaves[2])], Variant()) - task.Y).square().mean()
    )
    gradients = torch.autograd.grad(loss, leaves)
    stepped = [p.detach() - 0.01 * g / (g.abs() + 1e-8) for p, g in zip(leaves, gradients, strict=True)]
    fit = train(task, [layer], Variant(), 0.01, 1)
    after = layer._replace(Q=stepped[0], K=stepped[1], V=stepped[2])
    assert float(fit.losses[0]) == pytest.approx(float(loss.detach()))
    assert float(fit.losses[1]) == pytest.approx(float((network(task.X, [after], Variant()) - task.Y).square().mean()))
    fresh = (network(task.X_fresh, [after], Variant()) - task.Y_fresh).square().mean()
    assert fit.fresh == pytest.approx(float(fresh))


def test_pairs_share_their_start_and_leave_it_alone():
    task = entrywise_task(STEP, T, D, 3, 2, generator())
    layers = initial_layers(D, 2, 1.0, generator(1))
    before = [p.clone() for layer in layers for p in layer]
    pair = train_pair(task, layers, VARIANTS[3], (0.1, 0.01), 5)
    assert all(torch.equal(p, q) for p, q in zip(before, (p for layer in layers for p in layer), strict=True))
    assert pair["losses"].shape == (2, 6)
    for k, (fix, rate) in enumerate(((False, 0.1), (True, 0.01))):
        alone = train(task, layers, replace(VARIANTS[3], fix=fix), rate, 5)
        assert torch.equal(pair["losses"][k], alone.losses)
        assert float(pair["fresh"][k]) == pytest.approx(alone.fresh)


def test_both_scales_are_the_same_draws():
    one, small = initial_layers(D, 1, 1.0, generator())[0], initial_layers(D, 1, 1 / D, generator())[0]
    torch.testing.assert_close(small.Q, one.Q / 3)
    assert torch.equal(small.V, one.V)
    values = torch.cat([initial_layers(40, 1, 0.25, generator(k))[0].K.flatten() for k in range(5)])
    assert float(values.var()) == pytest.approx(0.25, rel=0.05)


def test_tasks_are_isometric_and_move():
    task = entrywise_task(STEP, T, D, 3, 2, generator())
    assert (len(task.X), len(task.X_fresh)) == (3, 2)
    torch.testing.assert_close(task.X @ task.X.mT, torch.eye(T, dtype=torch.float64).expand(3, T, T))
    assert torch.equal(task.Y_fresh, (task.X_fresh > 0).double())
    single = moved(task, "cpu", "float32")
    assert {t.dtype for t in single} == {torch.float32}
    layers = initial_layers(D, 1, 1.0, generator(1))
    ours, exact = (train(t, layers, Variant(), 0.01, 3).losses for t in (single, task))
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=0)
    assert resolved("cpu") == "cpu"
    assert resolved("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_default_scale_by_hand():
    assert xavier_gap(1.0) == pytest.approx(math.sqrt(27 / 4))
    assert independent_gap(0.5) == 1
    # Wide tokens: the queries' covariance is the identity, and the keys are a square Gaussian matrix of norm 2.
    assert xavier_gap(1e-6) / 1e-6 == pytest.approx(2, rel=1e-5)
    assert xavier_gap_at(10**7, 0.5) == pytest.approx(xavier_gap(0.5), rel=1e-4)


@pytest.mark.parametrize("gamma", [1.0, 0.25])
def test_the_default_scale_against_simulation(gamma):
    n, g = 60, generator(3)
    d = round(n / gamma)
    s2 = torch.stack([top_singular_values(isometric_attention(n, d, 1 / d, g), 2)[1] for _ in range(100)])
    # Within terms of order 1/T, which the limit is not.
    assert float(n**1.5 * s2.mean()) == pytest.approx(xavier_gap_at(n, gamma), rel=1 / n)
    assert abs(float(n**1.5 * s2.mean()) / xavier_gap(gamma) - 1) > 2 / n


def test_bad_input_is_named():
    task = entrywise_task(STEP, T, D, 1, 1, generator())
    layers = initial_layers(D, 1, 1.0, generator())
    for message, call in {
        "d: got 2": lambda: reference_losses(STEP, 2),
        "inputs: got 0": lambda: entrywise_task(STEP, T, D, 0, 1, generator()),
        "fresh: got -1": lambda: entrywise_task(STEP, T, D, 1, -1, generator()),
        "depth: got 0": lambda: initial_layers(D, 0, 1.0, generator()),
        "b: got -1": lambda: initial_layers(D, 1, -1, generator()),
        "rate: got 0": lambda: train(task, layers, Variant(), 0, 1),
        "epochs: got 0": lambda: train(task, layers, Variant(), 0.1, 0),
        "precision: got 'half'": lambda: moved(task, "cpu", "half"),
        "gamma: got 0": lambda: xavier_gap(0),
        "T: got 2": lambda: xavier_gap_at(2, 1.0),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
