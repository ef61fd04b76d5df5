"""The small transformer and its tasks: against naive versions, the fix against its definition, learning by hand."""

import math

import pytest
import torch
from sklearn.datasets import load_digits

from lib.attention import remove_gap
from lib.sequence_tasks import TASKS, Task, characters, digits, draw_batches
from lib.small_transformer import Block, Transformer, held_out, learn, spectra
from lib.spectra import covariance_stable_rank
from lib.text import alice

SIZES = {"d": 8, "heads": 2}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(causal=False, n=6, T=5):
    """A task of random tokens: real numbers and classes, or letters and the letters after them."""
    g = generator()
    tokens = torch.randint(4, (n, T), generator=g) if causal else torch.randn(n, T, generator=g)
    targets = torch.randint(4, (n, T) if causal else (n,), generator=g)
    return Task(tokens, targets, tokens, targets, vocabulary=4 if causal else 0, outputs=4, causal=causal)


def network(task, **kwargs):
    return Transformer(task, **{"depth": 2, "generator": generator(1)} | SIZES | kwargs)


def test_digits_are_the_images():
    task, data = digits(), load_digits()
    assert task.x.shape == (1500, 64)
    assert task.held_out_x.shape == (297, 64)
    assert float(task.x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(task.x.std()) == pytest.approx(1, abs=1e-5)
    pixels = torch.cat([task.x, task.held_out_x]).double()
    assert torch.corrcoef(torch.stack([pixels.flatten(), torch.from_numpy(data.data).flatten()]))[0, 1] > 1 - 1e-9
    assert torch.cat([task.y, task.held_out_y]).tolist() == data.target.tolist()


def test_characters_are_the_book():
    task, book = characters(10), alice()
    letters = sorted(set(book))
    assert task.vocabulary == task.outputs == len(letters)

    def text(codes):
        return "".join(letters[i] for i in codes)

    assert text(task.x[7]) == book[7:17]
    assert text(task.y[7]) == book[8:18]
    n = len(book) * 9 // 10
    assert len(task.x) == n - 10
    assert task.held_out_x.shape == (64, 10)
    assert text(task.held_out_x[0]) == book[n : n + 10]
    assert text(task.held_out_y[0]) == book[n + 1 : n + 11]
    assert text(task.held_out_y[-1]) in book[-300:]


@pytest.mark.parametrize("name", TASKS)
def test_shuffling_moves_training_targets_only(name):
    task, shuffled = TASKS[name](), TASKS[name](shuffle=generator())
    assert torch.equal(task.held_out_x, shuffled.held_out_x)
    assert torch.equal(task.held_out_y, shuffled.held_out_y)
    assert not torch.equal(task.y, shuffled.y)
    # The same targets in another order: a digit's label each, and every character of the text as often as before.
    ends = (t.y if t.y.ndim == 1 else torch.cat([t.x[:, 0], t.x[-1, 1:], t.y[-1, -1:]]) for t in (task, shuffled))
    first, second = (end.bincount(minlength=task.outputs) for end in ends)
    assert torch.equal(first, second)


def naive_block(block, X, perp):
    """One input, one head after the other, with the attention matrix formed and the fix taken from its definition."""
    T, d = X.shape
    W, step = block.qkv.weight.mT, d // block.heads
    Z, heads = block.norm(X), []
    for h in range(block.heads):
        q, k, v = (Z @ W[:, j * d + h * step : j * d + (h + 1) * step] for j in range(3))
        logits = q @ k.mT / math.sqrt(step)
        M = torch.ones(T, T, dtype=X.dtype)
        if block.causal:
            M = M.tril()
            logits = torch.where(M > 0, logits, -math.inf)
        A = torch.softmax(logits, -1)
        heads.append((A - M / M.sum(-1, keepdim=True) if perp else A) @ v)
    return torch.cat(heads, -1) @ block.out.weight.mT


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("fix", [False, True])
def test_block_is_the_naive_one(causal, fix):
    torch.manual_seed(0)
    block = Block(8, 2, causal, fix, skip=True, mlp=2).double()
    X = torch.randn(3, 5, 8, dtype=torch.float64, generator=generator())
    naive = torch.stack([naive_block(block, x, fix) for x in X])
    assert torch.allclose(block.branch(X), naive)
    Y = X + naive
    norm, wide, relu, narrow = block.mlp
    assert torch.allclose(block(X), Y + narrow(relu(wide(norm(Y)))))
    A, perp = block.weights(X)
    assert A.shape == perp.shape == (3, 2, 5, 5)
    assert torch.allclose(A.sum(-1), torch.ones((), dtype=torch.float64))
    if causal:
        assert torch.allclose(perp[..., 2, :3], A[..., 2, :3] - 1 / 3)
        assert (perp[..., 2, 3:] == 0).all()
    else:
        assert torch.allclose(perp, remove_gap(A))


def test_without_skip_or_mlp():
    block = Block(8, 2, False, False, skip=False, mlp=0)
    X = torch.randn(1, 5, 8, generator=generator())
    assert torch.equal(block(X), block.branch(X))
    block = Block(8, 2, False, False, skip=False, mlp=2)
    assert torch.equal(block(X), block.mlp(block.branch(X)))


@pytest.mark.parametrize("causal", [False, True])
def test_network_puts_its_parts_together(causal):
    task = small(causal)
    model = network(task, depth=1)
    X = model.position + torch.stack([model.embed(t if causal else t[:, None]) for t in task.x])
    X = model.norm(model.blocks[0](X))
    logits = model.head(X) if causal else model.head(X.mean(1))
    assert torch.allclose(model(task.x), logits, atol=1e-6)


def test_a_causal_network_sees_no_later_token():
    task = small(causal=True)
    for fix in (False, True):
        model, x = network(task, fix=fix), task.x.clone()
        before = model(x)
        x[:, 3:] = (x[:, 3:] + 1) % 4
        assert torch.equal(model(x)[:, :3], before[:, :3])
        assert not torch.allclose(model(x)[:, 3:], before[:, 3:])


def test_initial_weights():
    task = small()
    model = network(task, d=64, heads=4, depth=8, b=0.25)
    block, d = model.blocks[3].requires_grad_(False), 64
    assert float(block.qkv.weight[: 2 * d].var()) == pytest.approx(0.25 / d, rel=0.1)
    assert float(block.qkv.weight[2 * d :].var()) == pytest.approx(1 / d, rel=0.1)
    assert float(block.out.weight.var()) == pytest.approx(1 / d / 16, rel=0.1)
    assert float(block.mlp[1].weight.var()) == pytest.approx(1 / d, rel=0.1)
    assert float(block.mlp[3].weight.var()) == pytest.approx(1 / (2 * d) / 16, rel=0.1)
    plain = network(task, d=64, skip=False).requires_grad_(False)
    assert float(plain.blocks[0].out.weight.var()) == pytest.approx(1 / d, rel=0.1)
    # The logits of independent normalised tokens have the variance b^2.
    q, k, _ = block._heads(torch.randn(20, 50, d, generator=generator()))
    assert float((q @ k.mT / 4).var()) == pytest.approx(0.25**2, rel=0.15)


def test_draws_come_from_the_generator_alone():
    task = small()
    torch.manual_seed(1)
    first = network(task).state_dict()
    torch.manual_seed(2)
    again = network(task).state_dict()
    other = network(task, generator=generator(9)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["position"], other["position"])


def test_twin_shares_weights_and_not_memory():
    task = small()
    model = network(task)
    twin = model.twin()
    assert [block.fix for block in (*model.blocks, *twin.blocks)] == [False, False, True, True]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    assert not torch.allclose(model(task.x), twin(task.x))
    assert torch.equal(twin.twin()(task.x), model(task.x))
    with torch.no_grad():
        twin.position += 1
    assert not torch.equal(model.position, twin.position)


@pytest.mark.parametrize("causal", [False, True])
def test_spectra_against_their_definitions(causal):
    task = small(causal)
    model = network(task, depth=2)
    found = spectra(model, task.x[:3])
    assert {name: value.shape for name, value in found.items()} == dict.fromkeys(
        ("gap", "left", "branch", "stream"), (2,)
    )
    X = model.blocks[0](model.tokens(task.x[:3])).detach()
    A, perp = (M.detach().double() for M in model.blocks[1].weights(X))
    s = torch.linalg.svdvals(A)
    assert float(found["gap"][1]) == pytest.approx(float((s[..., 1] / s[..., 0]).mean()))
    left = torch.linalg.matrix_norm(perp, 2) / torch.linalg.matrix_norm(A, 2)
    assert float(found["left"][1]) == pytest.approx(float(left.mean()))
    branch, stream = model.blocks[1].branch(X).detach().double(), model.blocks[1](X).detach().double()
    assert float(found["branch"][1]) == pytest.approx(float(covariance_stable_rank(branch).mean()), rel=1e-6)
    assert float(found["stream"][1]) == pytest.approx(float(covariance_stable_rank(stream).mean()), rel=1e-6)


def test_uniform_attention_by_hand():
    # b = 0: every logit is 0. Without a mask A is the mean, and the fix leaves nothing.
    task = small()
    model = network(task, b=0.0)
    found = spectra(model, task.x)
    assert float(found["gap"].max()) < 1e-6
    assert float(found["left"].max()) < 1e-6
    assert torch.allclose(found["branch"], torch.ones((), dtype=torch.float64))  # all tokens get the same row
    assert float(model.twin().blocks[0].branch(model.tokens(task.x)).abs().max()) < 1e-6
    # With a causal mask row i is the mean of i tokens, which has no gap: 2 x 2, s^2 are the roots of x^2 - 3x/2 + 1/4.
    causal = small(causal=True, T=2)
    found = spectra(network(causal, b=0.0), causal.x)
    roots = [(1.5 + sign * math.sqrt(1.5**2 - 1)) / 2 for sign in (1, -1)]
    assert float(found["gap"][0]) == pytest.approx(math.sqrt(roots[1] / roots[0]), rel=1e-5)
    assert float(found["left"].max()) < 1e-6


@pytest.mark.parametrize("causal", [False, True])
def test_held_out_by_hand(causal):
    task = small(causal, n=7)
    model = network(task)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.0, 2.0, 0.0, 0.0]))  # says 1, with probability e^2 / (e^2 + 3)
    found = held_out(model, task, batch=3)
    ones = float((task.y == 1).double().mean())
    assert float(found["accuracy"]) == pytest.approx(ones)
    assert float(found["loss"]) == pytest.approx(math.log(math.e**2 + 3) - 2 * ones)


def test_learning_is_adam_with_this_schedule():
    task = small()
    batches = draw_batches(task, 20, 3, generator())
    model, naive = network(task), network(task)
    optimizer = torch.optim.Adam(naive.parameters(), lr=1, betas=(0.9, 0.99))
    for step, batch in enumerate(batches):
        # 2 of 20 steps of warm-up; then from the full rate down to 1/19 of it.
        optimizer.param_groups[0]["lr"] = 0.01 * (0.5 if step == 0 else 1 if step == 1 else (20 - step) / 19)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(naive(task.x[batch]), task.y[batch]).backward()
        optimizer.step()
    learn(model, task, batches, rate=0.01, at=[20])
    assert torch.allclose(model(task.x), naive(task.x), atol=1e-4)


def test_it_learns_and_says_when():
    task = small(causal=True)
    batches = draw_batches(task, 60, 6, generator())
    curves = learn(network(task), task, batches, rate=0.02, at=[0, 30, 60], look=2)
    assert {name: value.shape for name, value in curves.items()} == {
        "loss": (3,),
        "accuracy": (3,),
        "gap": (3, 2),
        "left": (3, 2),
        "branch": (3, 2),
        "stream": (3, 2),
    }
    assert curves["loss"][2] < 0.7 * curves["loss"][0]
    untrained = held_out(network(task), task)
    assert curves["loss"][0] == untrained["loss"]
    still = learn(network(task), task, batches, rate=0.0, at=[0, 60])
    assert still["loss"][0] == still["loss"][1]


def test_the_same_batches_give_the_same_curve():
    task = small()
    batches = draw_batches(task, 10, 4, generator())
    runs = [learn(network(task), task, batches, rate=0.01, at=[10])["loss"] for _ in range(2)]
    assert torch.equal(*runs)


def test_bad_input_is_refused():
    task = small()
    batches = draw_batches(task, 3, 2, generator())
    with pytest.raises(ValueError, match=r"heads: got 3 for d = 8"):
        network(task, heads=3)
    with pytest.raises(ValueError, match="depth: got 0"):
        network(task, depth=0)
    with pytest.raises(ValueError, match="mlp: got -1"):
        network(task, mlp=-1)
    with pytest.raises(ValueError, match="b: got -1"):
        network(task, b=-1.0)
    with pytest.raises(ValueError, match="T: got 0"):
        characters(0)
    with pytest.raises(ValueError, match="smaller T"):
        characters(10**5)
    for at in ([], [2, 1], [-1], [4]):
        with pytest.raises(ValueError, match="increasing numbers of steps from 0 to 3"):
            learn(network(task), task, batches, rate=0.1, at=at)
    with pytest.raises(ValueError, match="rate: got nan"):
        learn(network(task), task, batches, rate=math.nan, at=[3])


def test_a_task_moves_as_a_whole():
    moved = small().to("meta")
    assert {moved.x.device.type, moved.held_out_y.device.type} == {"meta"}
