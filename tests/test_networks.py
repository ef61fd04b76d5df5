"""lib.networks and lib.token_kernel: the theory without any network, then networks against naive code and theory."""

import importlib.util
import math
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import gelu

from lib import networks
from lib.spectra import covariance_stable_rank_excess, top_singular_values
from lib.text import alice
from lib.token_kernel import (
    ARCHITECTURES,
    Architecture,
    _gelu_kernel,
    common_share,
    second_singular_limit,
    second_singular_value,
    stable_rank_excess,
    token_cosines,
    top_singular_value,
    uniform_attention,
    without_types,
)

BERT = Architecture("small", "bert", d=96, layers=2, heads=4, d_inner=192)
ROBERTA, GPT2 = replace(BERT, family="roberta"), replace(BERT, family="gpt2")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def test_cosines_of_the_input_by_hand():
    ids = torch.tensor([7, 8, 7])
    assert (3 * token_cosines(ids, BERT)[0]).tolist() == pytest.approx(
        torch.tensor([[3, 1, 2], [1, 3, 1], [2, 1, 3]]).double()
    )
    half = torch.tensor([[1, 0, 0.5], [0, 1, 0], [0.5, 0, 1]]).double()
    torch.testing.assert_close(token_cosines(ids, GPT2)[0], half)
    torch.testing.assert_close(without_types(ids, BERT), half)


def test_gelu_kernel_against_the_integral():
    u, v = gaussian(2, 4_000_000)
    for c in (0.0, 0.4, 1.0):
        other = c * u + math.sqrt(1 - c**2) * v
        simulated = (gelu(0.6 * u) * gelu(0.6 * other)).mean()
        assert float(_gelu_kernel(torch.tensor([[c]]).double(), 0.36)) == pytest.approx(float(simulated), abs=4e-4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("fix", [False, True])
def test_attention_kernel_against_random_weights(causal, fix):
    """One block of attention with d = d_h: its covariance, averaged over weights, is the recursion's."""
    T, d, s = 5, 32, 0.03
    a = Architecture("x", "gpt2" if causal else "bert", d=d, layers=1, heads=1, d_inner=1, s=s)
    X, U = gaussian(T, d, seed=1), uniform_attention(T, causal)
    X = math.sqrt(d) * X / X.norm(dim=-1, keepdim=True)
    G = X @ X.mT / d
    W_Q, W_K, W_V = s * gaussian(3, 4000, d, d)
    S = (X @ W_Q) @ (X @ W_K).mT / math.sqrt(d)
    if causal:
        S = S.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -math.inf)
    out = (torch.softmax(S, -1) - (U if fix else 0)) @ X @ W_V
    measured = (out @ out.mT / d).mean(0)
    square = G.square()
    rows, mean = U @ G, U @ G @ U.T
    noise = U @ square @ U.T - rows.square() @ U.T - U @ rows.square().T + mean.square()
    predicted = d * s**2 * (a.b**2 * G * noise + (0 if fix else mean))
    torch.testing.assert_close(measured, predicted, atol=0.05 * float(predicted.diagonal().max()), rtol=0.05)


def test_common_share():
    X = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    assert float(common_share(X)) == pytest.approx(1)
    assert float(common_share(torch.eye(4))) == pytest.approx(1 / 4)
    Y = gaussian(3, 7, 5)
    unit = Y / Y.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(common_share(unit), (unit @ unit.mT).mean((-2, -1)))


def test_stable_rank_against_gaussian_tokens():
    T, d = 120, 400
    G = token_cosines(torch.randint(60, (T,), generator=generator()), BERT)[0]
    C = torch.linalg.cholesky(G)
    values = torch.stack([covariance_stable_rank_excess(C @ gaussian(T, d, seed=k)) for k in range(40)])
    assert float(values.mean()) == pytest.approx(stable_rank_excess(G, d), rel=0.06)


@pytest.mark.parametrize(("heads", "T"), [(4, 60), (4, 150), (1, 100)])
def test_second_singular_value_against_simulated_logits(heads, T):
    a = replace(BERT, d=192, heads=heads)
    ids = torch.randint(T // 2, (T,), generator=generator())  # words repeat
    G = token_cosines(ids, a)[0]
    C, found, top = torch.linalg.cholesky(G), [], []
    for k in range(40):
        X = C @ gaussian(T, a.d, seed=k)
        X = X * math.sqrt(a.d) / X.norm(dim=-1, keepdim=True)
        W_Q, W_K = a.s * gaussian(2, a.d, a.d_h, seed=1000 + k)
        s = top_singular_values(torch.softmax((X @ W_Q) @ (X @ W_K).T / math.sqrt(a.d_h), -1), 2)
        found.append(s[1])
        top.append(s[0] ** 2 - 1)
    assert float(torch.stack(found).mean()) == pytest.approx(second_singular_value(G, a), rel=0.03)
    assert float(torch.stack(top).mean()) == pytest.approx(top_singular_value(G, a) ** 2 - 1, rel=0.2)


def test_limit_of_long_texts():
    one = replace(BERT, d=2**14, heads=1, s=2**-7)
    assert second_singular_limit(0.0, one) == pytest.approx(3 * math.sqrt(3) / 2 / 2**7)
    a = replace(BERT, d=240, heads=4)
    values = [second_singular_value(torch.full((T, T), 0.2).double() + 0.8 * torch.eye(T), a) for T in (400, 800)]
    assert values[0] > values[1]
    # The next order in 1/T is extrapolated; the Tracy-Widom shift of a head of 60 remains, a few per cent downwards.
    assert 0.93 < (2 * values[1] - values[0]) / second_singular_limit(0.2, a) < 1


def test_the_fix_takes_at_most_one():
    A = torch.softmax(3 * gaussian(20, 30, 30), -1)
    s, fixed = networks.top_values(A)[:, 0], networks.top_values(A - 1 / 30, 1)[:, 0]
    assert (s**2 - 1 <= fixed**2 + 1e-9).all()
    assert (fixed <= s + 1e-9).all()


def test_centred_logits_come_back():
    S = gaussian(3, 6, 6)
    P = torch.eye(6).double() - 1 / 6
    torch.testing.assert_close(networks.centred_logits(torch.softmax(S, -1)), P @ S @ P)
    with pytest.raises(ValueError, match="attention: 15 entries are not > 0"):
        networks.centred_logits(uniform_attention(6, causal=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: replace(BERT, family="t5"), "family: got 't5'"),
        (lambda: replace(BERT, heads=5), "heads: got 5 for d = 96"),
        (lambda: token_cosines(torch.zeros(2, 3).long(), BERT), "ids: got torch.int64 of shape"),
        (lambda: uniform_attention(0, True), "T: got 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_module_imports_without_the_packages(monkeypatch):
    for name in networks.PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it now fails
    spec = importlib.util.spec_from_file_location("networks_alone", networks.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert all(name.replace("_", "-") in module.missing() for name in networks.PACKAGES)


@pytest.mark.parametrize("package", networks.PACKAGES)
def test_a_missing_package_is_named(package, monkeypatch):
    real = importlib.util.find_spec
    present = {name: real(name) or True for name in networks.PACKAGES}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else present[name])
    assert package.replace("_", "-") in networks.missing()
    assert "pip install" in networks.missing()
    for call in (lambda: networks.initialised(BERT, generator()), lambda: networks.tokens("no such text", "bert")):
        with pytest.raises(ModuleNotFoundError, match="extra `networks` is not installed"):
            call()


def test_another_file_of_weights_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert networks.checked(file, sha256) == b"abc"
    with pytest.raises(ValueError, match="reinstall the package"):
        networks.checked(file, sha256[::-1])


# What follows runs networks.
needs_networks = pytest.mark.skipif(networks.missing() is not None, reason=str(networks.missing()))


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@needs_networks
def test_tokens_and_passages():
    text = alice()[:20000]
    ids = networks.tokens(text, "gpt2")
    networks.tokens.cache_clear()
    assert torch.equal(ids, networks.tokens(text, "gpt2"))  # training is deterministic
    assert torch.equal(ids, networks.tokens(text, "roberta"))
    assert int(ids.min()) >= 5  # no special token
    assert networks.passages(text, "gpt2", 50, 3)[1].tolist() == ids[len(ids) // 3 :][:50].tolist()
    found = networks.passages(text, "bert", 50, 3)
    assert found.shape == (3, 50)
    assert found[:, 0].tolist() == [101] * 3
    assert found[:, -1].tolist() == [102] * 3
    with pytest.raises(ValueError, match="T, count: got 50, 4000"):
        networks.passages(text, "bert", 50, 4000)
    with pytest.raises(ValueError, match="family: got 't5'"):
        networks.tokens(text, "t5")


@needs_networks
@pytest.mark.parametrize("architecture", [BERT, ROBERTA, GPT2], ids=lambda a: a.family)
def test_random_weights_descend_from_the_generator(architecture, offline, capfd):
    state = torch.random.get_rng_state()
    first, again, other = (networks.initialised(architecture, generator(seed), 40) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    weights = [dict(m.named_parameters()) for m in (first, again, other)]
    assert all(torch.equal(w, weights[1][name]) for name, w in weights[0].items())
    differ = [name for name, w in weights[0].items() if not torch.equal(w, weights[2][name])]
    assert len(differ) >= 10
    last = architecture.s / math.sqrt(2 * architecture.layers)
    for name, w in weights[0].items():  # nothing is left as it was allocated
        if "token_type" in name:
            assert 0 < float(w.detach().std()) < 2 * architecture.s
        elif w.ndim == 2:
            small = architecture.causal and name.endswith("c_proj.weight")
            assert float(w.detach().std()) == pytest.approx(last if small else architecture.s, rel=0.2), name
        else:
            assert float(w.detach().std()) == 0, name
    assert capfd.readouterr() == ("", "")


def naive_bert_layer(layer, X, fix):
    """A block of BERT in float64, map by map; also its maps."""
    heads, f = layer.attention.self, layer.attention.output
    T, d_h = len(X), heads.attention_head_size
    q, k, v = (m(X).reshape(T, -1, d_h).transpose(0, 1) for m in (heads.query, heads.key, heads.value))
    A = torch.softmax(q @ k.mT / math.sqrt(d_h), -1)
    mixed = ((A - 1 / T if fix else A) @ v).transpose(0, 1).reshape(T, -1)
    X = f.LayerNorm(f.dense(mixed) + X)
    return layer.output.LayerNorm(layer.output.dense(gelu(layer.intermediate.dense(X))) + X), A


@needs_networks
@pytest.mark.parametrize("fix", [False, True])
@pytest.mark.parametrize("architecture", [BERT, ROBERTA], ids=lambda a: a.family)
def test_recording_of_an_encoder_against_naive_code(architecture, fix, offline):
    model = networks.initialised(replace(architecture, s=0.2), generator(), 40).double()
    ids = torch.randint(5, 100, (30,), generator=generator())
    run = networks.record(model, ids, fix=fix)
    with torch.no_grad():
        X = model.embeddings(ids[None])[0]
        torch.testing.assert_close(run.tokens[0], X)
        for l, layer in enumerate(model.encoder.layer):
            X, A = naive_bert_layer(layer, X, fix)
            torch.testing.assert_close(run.tokens[l + 1], X)
            if not fix:
                torch.testing.assert_close(run.attention[l], A)
    assert (run.attention is None) == fix


@needs_networks
@pytest.mark.parametrize("fix", [False, True])
def test_recording_of_a_causal_network_against_naive_code(fix, offline):
    model = networks.initialised(replace(GPT2, s=0.2), generator(), 40).double()
    ids = torch.randint(5, 100, (30,), generator=generator())
    run = networks.record(model, ids, fix=fix)
    T, d, U = len(ids), GPT2.d, uniform_attention(30, causal=True)
    with torch.no_grad():
        X = model.wte(ids) + model.wpe.weight[:T]
        for l, block in enumerate(model.h):
            Y = block.ln_1(X)
            torch.testing.assert_close(run.tokens[l], Y)
            q, k, v = (m.reshape(T, -1, GPT2.d_h).transpose(0, 1) for m in block.attn.c_attn(Y).split(d, -1))
            S = (q @ k.mT / math.sqrt(GPT2.d_h)).masked_fill(U == 0, -math.inf)
            A = torch.softmax(S, -1)
            if not fix:
                torch.testing.assert_close(run.attention[l], A)
            X = X + block.attn.c_proj(((A - U if fix else A) @ v).transpose(0, 1).reshape(T, d))
            X = X + block.mlp(block.ln_2(X))
        torch.testing.assert_close(run.tokens[-1], model.ln_f(X))


@needs_networks
def test_input_without_types():
    model = networks.initialised(BERT, generator(), 40)
    ids = torch.arange(5, 25)
    tokens, plain = networks.input_without_types(model, ids), networks.record(model, ids).tokens[0]
    sum_ = model.embeddings.word_embeddings.weight[ids] + model.embeddings.position_embeddings.weight[:20]
    torch.testing.assert_close(tokens.float(), torch.nn.functional.layer_norm(sum_, (96,), eps=1e-12))
    assert not torch.allclose(tokens, plain)
    torch.testing.assert_close(networks.record(model, ids).tokens[0], plain)  # and the network is as it was


@needs_networks
@pytest.mark.parametrize("fix", [False, True])
@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_shares_of_random_networks_follow_the_recursion(family, fix):
    a = Architecture("x", family, d=96, layers=2, heads=4, d_inner=384, s=0.06)
    ids = torch.randint(5, 60, (48,), generator=generator())
    cosines = token_cosines(ids, a, fix=fix)
    shares = []
    for k in range(40):
        model = networks.initialised(a, generator(k), 48)
        shares.append(common_share(networks.record(model, ids, fix=fix).tokens))
    shares = torch.stack(shares)
    error = shares.std(0) / math.sqrt(len(shares))
    predicted = torch.tensor([float(G.mean()) for G in cosines])
    assert ((shares.mean(0) - predicted).abs() < 4 * error + predicted * 2 / a.d).all()
    other = torch.tensor([float(G.mean()) for G in token_cosines(ids, a, fix=not fix)])
    assert float((shares.mean(0) - other).abs()[-1]) > 4 * float(error[-1])


@needs_networks
def test_the_trained_network(offline, capfd):
    ids = networks.passages(alice(), "bert", 64, 2)[1]
    run = networks.record(networks.minilm(), ids)
    assert run.attention.shape == (6, 12, 64, 64)
    torch.testing.assert_close(run.attention.sum(-1), torch.ones(6, 12, 64).double(), atol=1e-5, rtol=0)
    weights = networks.minilm().state_dict()["embeddings.word_embeddings.weight"]
    assert weights.shape == (30522, 384)
    assert capfd.readouterr() == ("", "")
    s = networks.top_values(run.attention)
    assert float((s[..., 1] / s[..., 0]).mean()) > 0.2
    dense = torch.linalg.svdvals(run.attention)[..., :2]
    torch.testing.assert_close(s, dense, atol=0, rtol=1e-6)
    assert ARCHITECTURES["MiniLM"].d == 384


def test_the_page_without_the_packages(monkeypatch, capsys):
    """A reader without the extra gets a sentence and claims that were not attempted, never a traceback."""
    import matplotlib.pyplot as plt
    import nbformat

    monkeypatch.setattr(networks, "missing", lambda: "the extra is not installed")
    monkeypatch.setattr(plt, "show", lambda: None)
    page = Path(__file__).parent.parent / "chapters" / "attention" / "real_networks.ipynb"
    monkeypatch.chdir(page.parent)
    names = {}
    for cell in nbformat.read(page, 4).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    assert "the extra is not installed" in capsys.readouterr().out
    assert [c.status for c in names["claims"]] == ["not attempted"] * 2
    assert not plt.get_fignums()
