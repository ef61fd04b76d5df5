"""lib.gap_free against dense matrices, for every kind of mask, dtype and use, and the module against PyTorch's own."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from torch.utils._python_dispatch import TorchDispatchMode

from lib.gap_free import allowed_mean, gap_free_attention, gap_free_weights
from lib.gap_free_module import GapFreeMultiheadAttention

F64 = torch.float64
MASKS = ("none", "causal", "padding", "causal and padding", "boolean", "per head", "additive", "additive padding")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def make_mask(kind, B, H, L, S, seed=0, dtype=F64):
    """The arguments that describe a mask of that kind; some rows forbid everything."""
    g = generator(100 + seed)
    coin = lambda *shape: torch.rand(*shape, generator=g) < 0.6  # noqa: E731
    additive = lambda allowed: torch.randn(allowed.shape, generator=g, dtype=dtype).masked_fill(~allowed, -math.inf)  # noqa: E731
    mask = {
        "none": lambda: None,
        "causal": lambda: None,
        "padding": lambda: coin(B, 1, 1, S),
        "causal and padding": lambda: coin(B, 1, 1, S),
        "boolean": lambda: coin(L, S),
        "per head": lambda: coin(B, H, L, S),
        "additive": lambda: additive(coin(B, 1, L, S)),
        "additive padding": lambda: additive(coin(B, 1, 1, S)),
    }[kind]()
    return {"attn_mask": mask, "is_causal": kind.startswith("causal")}


def dense(query, key, value, attn_mask=None, is_causal=False, scale=None):
    """(softmax - mask / count) V from the definition, row by row; in float64."""
    query, key, value = query.double(), key.double(), value.double()
    B, H, L, S = *query.shape[:3], key.size(2)
    allowed, bias = torch.ones(B, H, L, S, dtype=torch.bool), torch.zeros(B, H, L, S, dtype=F64)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        allowed = allowed & attn_mask
    elif attn_mask is not None:
        allowed, bias = allowed & (attn_mask > -math.inf), bias + attn_mask.double()
    if is_causal:
        allowed = allowed & (torch.arange(S) <= torch.arange(L)[:, None])
    out = torch.zeros(B, H, L, value.size(-1), dtype=F64)
    for b in range(B):
        for h in range(H):
            for i in range(L):
                keys = allowed[b, h, i].nonzero().flatten()
                if len(keys):
                    scores = key[b, h, keys] @ query[b, h, i] * (scale or query.size(-1) ** -0.5) + bias[b, h, i, keys]
                    out[b, h, i] = (torch.softmax(scores, 0) - 1 / len(keys)) @ value[b, h, keys]
    return out


sizes = st.integers(1, 7)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(MASKS), st.integers(1, 3), st.integers(1, 3), sizes, sizes, sizes, st.integers(0, 10**6))
def test_equals_the_dense_definition(kind, B, H, L, S, E, seed):
    q, k, v = normal(B, H, L, E, seed=seed), normal(B, H, S, E, seed=seed + 1), normal(B, H, S, E + 1, seed=seed + 2)
    mask = make_mask(kind, B, H, L, S, seed)
    expected = dense(q, k, v, scale=0.7, **mask)
    assert (gap_free_attention(q, k, v, scale=0.7, **mask) - expected).abs().max() < 1e-12
    weights = gap_free_weights(q, k, scale=0.7, **mask)
    assert (weights @ v - expected).abs().max() < 1e-12
    assert weights.sum(-1).abs().max() < 1e-12


def test_numbers_by_hand():
    q, k = torch.zeros(1, 1, 2, 1, dtype=F64), torch.zeros(1, 1, 2, 1, dtype=F64)
    q[..., 1, :], k[..., 0, :] = 1.0, math.log(3)
    v = torch.tensor([[[[4.0], [0.0]]]], dtype=F64)
    # Row 1: logits (0, 0), so softmax and mean cancel. Row 2: softmax (3/4, 1/4) less (1/2, 1/2), times (4, 0).
    assert gap_free_attention(q, k, v).flatten().tolist() == pytest.approx([0, 1])
    assert gap_free_weights(q, k).flatten().tolist() == pytest.approx([0, 0, 0.25, -0.25])
    # A causal first row sees itself alone: exactly 0, whatever the query.
    assert gap_free_attention(q + 5, k, v, is_causal=True)[0, 0, 0, 0] == 0


def test_shapes_that_the_original_takes():
    q, k, v = normal(2, 6, 5, 4), normal(2, 2, 7, 4, seed=1), normal(2, 2, 7, 3, seed=2)
    full = [x.repeat_interleave(3, 1) for x in (k, v)]
    for kind in MASKS:
        mask = make_mask(kind, 2, 6, 5, 7)
        grouped = gap_free_attention(q, k, v, enable_gqa=True, **mask)
        assert torch.allclose(grouped, gap_free_attention(q, *full, **mask), atol=1e-14), kind
    one_head = gap_free_attention(q[0, 0], full[0][0, 0], full[1][0, 0], is_causal=True)  # no batch, no heads
    assert torch.allclose(one_head, gap_free_attention(q, *full, is_causal=True)[0, 0])


def test_what_transformers_calls_minus_infinity_forbids_too():
    q, k, v = normal(1, 2, 3, 4), normal(1, 2, 5, 4, seed=1), normal(1, 2, 5, 4, seed=2)
    allowed = torch.rand(1, 1, 3, 5, generator=generator()) < 0.6
    lowest = torch.zeros(1, 1, 3, 5, dtype=F64).masked_fill(~allowed, torch.finfo(F64).min)
    assert torch.allclose(gap_free_attention(q, k, v, lowest), gap_free_attention(q, k, v, allowed))


@pytest.mark.parametrize("kind", MASKS)
def test_gradients(kind):
    inputs = [normal(2, 2, n, 3, seed=n).requires_grad_() for n in (4, 5, 5)]
    mask = make_mask(kind, 2, 2, 4, 5)
    assert torch.autograd.gradcheck(lambda *inputs: gap_free_attention(*inputs, **mask), inputs)


def test_gradient_of_a_learned_bias():
    q, k, v = (normal(2, 2, n, 3, seed=n) for n in (4, 5, 5))
    bias = normal(2, 4, 5, seed=9).requires_grad_()
    assert torch.autograd.gradcheck(lambda bias: gap_free_attention(q, k, v, bias), bias)
    forbidden = make_mask("additive", 2, 2, 4, 5)["attn_mask"].requires_grad_()
    (gradient,) = torch.autograd.grad(gap_free_attention(q, k, v, forbidden).square().sum(), forbidden)
    assert (gradient[forbidden == -math.inf] == 0).all()
    assert gradient.abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_a_query_that_may_attend_to_nothing_gets_zero(dtype):
    q, k, v = (normal(2, 2, 4, 8, seed=n, dtype=dtype).requires_grad_() for n in range(3))
    allowed = torch.ones(4, 4, dtype=torch.bool)
    allowed[2] = False
    additive = torch.zeros(4, 4, dtype=dtype).masked_fill(~allowed, -math.inf)
    padding = torch.tensor([[True, True, False, True], [False] * 4])[:, None, None]
    left = torch.tensor([False, True, True, True])[None]
    for mask, causal, empty in ((allowed, False, (0, 0, 2)), (additive, False, (0, 0, 2)), (padding, False, (1, 0)),
                                (left, True, (0, 0, 0))):  # fmt: skip
        out = gap_free_attention(q, k, v, mask, is_causal=causal)
        assert (out[empty] == 0).all()
        assert out[0, 0, 1 if mask is not left else 2].abs().max() > 0
        for gradient in torch.autograd.grad(out.square().sum(), (q, k, v)):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", MASKS)
def test_half_precision_keeps_its_digits(dtype, kind):
    B, H, T, E = 1, 2, 300, 8
    q, k, v = (normal(B, H, T, E, seed=n).to(dtype) for n in range(3))
    v = v + 3  # a common mean is what the fix takes away
    mask = make_mask(kind, B, H, T, T, dtype=dtype)
    exact = dense(q, k, v, **mask)
    out = gap_free_attention(q, k, v, **mask)
    assert out.dtype == dtype
    # Half precision rounds the softmax, the mean and their difference once each. float32 sums in its own precision.
    roundings = math.sqrt(T) if dtype == torch.float32 else 3
    assert (out.double() - exact).abs().max() < roundings * torch.finfo(dtype).eps * v.double().abs().max()


@pytest.mark.parametrize("kind", ["none", "causal", "padding", "causal and padding", "boolean"])
def test_sums_of_half_precision_values_do_not_overflow(kind):
    T = 4096
    value = torch.full((1, 1, T, 1), 1000.0, dtype=torch.float16)  # their sum is 60 times the largest half
    value[..., ::2, :] = 998.0
    mask = make_mask(kind, 1, 1, 8 if kind == "boolean" else T, T)
    allowed, is_causal = mask["attn_mask"], mask["is_causal"]
    rows = 8 if kind == "boolean" else T
    mean = allowed_mean(value, rows, allowed, is_causal)
    exact = allowed_mean(value.double(), rows, allowed, is_causal)
    seen = exact > 0  # a padded first token has nothing to see
    assert ((mean.double() - exact)[seen].abs() / exact[seen]).max() < 2 * torch.finfo(torch.float16).eps


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returns while this is on, the attention kernel's own apart."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "scaled_dot_product" not in func.name():
            outputs = out if isinstance(out, tuple | list) else (out,)
            self.bytes = max(
                [self.bytes, *(x.untyped_storage().nbytes() for x in outputs if isinstance(x, torch.Tensor))]
            )
        return out


@pytest.mark.parametrize("kind", ["none", "causal", "padding", "additive padding"])
@pytest.mark.parametrize("backward", [False, True])
def test_the_fix_takes_memory_of_the_order_of_the_values(kind, backward):
    B, H, T, E = 2, 2, 512, 16
    q, k, v = (normal(B, H, T, E, seed=n, dtype=torch.float32).requires_grad_(backward) for n in range(3))
    mask = make_mask(kind, B, H, T, T, dtype=torch.float32)
    with Largest() as largest:
        out = gap_free_attention(q, k, v, **mask)
        if backward:
            out.sum().backward()
    assert largest.bytes <= 4 * B * H * T * E  # no tensor is larger than V itself
    with Largest() as largest:
        gap_free_weights(q, k, **mask)
    assert largest.bytes >= 4 * B * H * T * T  # and the instrument sees one that is


def test_dropout_leaves_the_mean_alone():
    q, k, v = normal(1, 1, 2, 4), normal(1, 1, 6, 4, seed=1), normal(1, 1, 6, 3, seed=2)
    torch.manual_seed(0)
    drawn = torch.stack([gap_free_attention(q, k, v, dropout_p=0.3) for _ in range(4000)])
    plain = gap_free_attention(q, k, v)
    assert ((drawn.mean(0) - plain).abs() < 5 * drawn.std(0) / math.sqrt(len(drawn))).all()
    everything = gap_free_attention(q, k, v, dropout_p=1.0)
    assert torch.allclose(everything, -v.mean(-2, keepdim=True).expand_as(everything))


@pytest.mark.parametrize("kind", MASKS)
def test_compiles_to_one_graph(kind):
    torch._dynamo.reset()
    q, k, v = (normal(2, 2, n, 3, seed=n).requires_grad_() for n in (4, 5, 5))
    mask = make_mask(kind, 2, 2, 4, 5)
    compiled = torch.compile(gap_free_attention, fullgraph=True, backend="aot_eager")
    out, expected = compiled(q, k, v, **mask), gap_free_attention(q, k, v, **mask)
    assert torch.allclose(out, expected, atol=1e-14)
    gradients = (torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (out, expected))
    assert all(torch.allclose(a, b, atol=1e-13) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": normal(1, 2, 5, 4)}, "key, value: got lengths 5 and 3"),
        ({"key": normal(1, 2, 0, 4), "value": normal(1, 2, 0, 4)}, "at least 1"),
        ({"query": normal(1, 2, 3, 5)}, "query, key: got 5 and 4 features"),
        ({"query": normal(4)}, "query: need a padded"),
        ({"attn_mask": torch.ones(3, 3, dtype=torch.int64)}, "got torch.int64; use bool"),
        ({"attn_mask": torch.ones(3, 1, dtype=torch.bool)}, "need 3 columns and 3 or 1 rows"),
        ({"attn_mask": torch.ones(3, dtype=torch.bool)}, "attn_mask: got shape \\(3,\\)"),
        ({"attn_mask": torch.ones(3, 3, dtype=torch.bool), "is_causal": True}, "1 row \\(padding\\) with is_causal"),
        ({"attn_mask": causal_lower_right(3, 3)}, "CausalBias"),
        ({"query": normal(1, 3, 3, 4), "enable_gqa": True}, "got \\[3, 2, 2\\] heads"),
    ],
)
def test_bad_input_is_named(arguments, message):
    good = {name: normal(1, 2, 3, 4) for name in ("query", "key", "value")}
    with pytest.raises(ValueError, match=message):
        gap_free_attention(**good | arguments)


# The module, against PyTorch's own of the same weights.

MODULE_MASKS = ("none", "causal", "padding", "causal and padding", "boolean", "per head", "additive")
N, L, S, HEADS, D = 3, 5, 6, 2, 8


def pair(**options):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(D, HEADS, dtype=F64, **options)
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.5)  # biases too, which start at 0
    ours = GapFreeMultiheadAttention(D, HEADS, dtype=F64, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def module_mask(kind, length):
    """Masks as nn.MultiheadAttention takes them, True forbids; every query keeps a key."""
    g = generator(7)
    forbid = torch.rand(N * HEADS, L, length, generator=g) < 0.4
    forbid[..., 0] = False
    causal = ~torch.ones(L, length, dtype=torch.bool).tril()
    padding = forbid[:N, 0]
    return {
        "none": {},
        "causal": {"attn_mask": causal, "is_causal": True},
        "padding": {"key_padding_mask": padding},
        "causal and padding": {"attn_mask": causal, "is_causal": True, "key_padding_mask": padding},
        "boolean": {"attn_mask": forbid[0], "key_padding_mask": padding},
        "per head": {"attn_mask": forbid},
        "additive": {
            "attn_mask": normal(L, length, seed=5).masked_fill(forbid[1], -math.inf),
            "key_padding_mask": padding,
        },
    }[kind]


def uniform_weights(weights):
    """What the fix subtracts: each row of an attention matrix, spread evenly over the keys that it reaches."""
    return (weights > 0).to(F64) / (weights > 0).sum(-1, keepdim=True)


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("own_sizes", [False, True])
@pytest.mark.parametrize("kind", MODULE_MASKS)
def test_module_is_theirs_less_the_mean(kind, own_sizes, bias, batch_first):
    sizes = {"kdim": 3, "vdim": 4} if own_sizes else {}
    theirs, ours = pair(bias=bias, batch_first=batch_first, **sizes)
    assert {n: p.shape for n, p in ours.state_dict().items()} == {n: p.shape for n, p in theirs.state_dict().items()}
    mask = module_mask(kind, S)
    x, y, z = normal(N, L, D), normal(N, S, sizes.get("kdim", D), seed=1), normal(N, S, sizes.get("vdim", D), seed=2)
    inputs = (x, y, z) if batch_first else [a.transpose(0, 1) for a in (x, y, z)]
    out, weights = theirs(*inputs, average_attn_weights=False, **mask)
    fixed, fixed_weights = ours(*inputs, average_attn_weights=False, **mask)
    mean = uniform_weights(weights)  # (N, heads, L, S)
    assert torch.allclose(fixed_weights, weights - mean, atol=1e-14)
    w_v = theirs.v_proj_weight if own_sizes else theirs.in_proj_weight[2 * D :]
    v = nn.functional.linear(z, w_v, theirs.in_proj_bias[2 * D :] if bias else None)
    lost = (mean @ v.unflatten(-1, (HEADS, -1)).transpose(1, 2)).transpose(1, 2).flatten(2) @ theirs.out_proj.weight.T
    expected = out - (lost if batch_first else lost.transpose(0, 1))
    assert fixed.shape == out.shape
    assert (fixed - expected).abs().max() < 1e-12
    again, none = ours(*inputs, need_weights=False, **mask)
    assert none is None
    assert torch.equal(again, fixed)


def test_module_without_a_batch_and_with_averaged_weights():
    _, ours = pair()
    x = normal(L, N, D)
    out, weights = ours(x, x, x)
    one, one_weights = ours(x[:, 1], x[:, 1], x[:, 1])
    assert torch.allclose(out[:, 1], one)
    assert torch.allclose(weights[1], one_weights)
    assert one_weights.shape == (L, L)
    padding = torch.tensor([False, False, True, False, True])
    single = ours(x[:, 1], x[:, 1], x[:, 1], key_padding_mask=padding)[0]
    assert torch.allclose(single, ours(x, x, x, key_padding_mask=padding.expand(N, -1))[0][:, 1])


def test_module_gradients_and_dropout():
    _, ours = pair(batch_first=True)
    x = normal(2, 3, D).requires_grad_()
    parameters = tuple(ours.parameters())

    def f(x, *_):
        return ours(x, x, x, is_causal=True, need_weights=False)[0]

    assert torch.autograd.gradcheck(f, (x, *parameters))
    ours.dropout = 0.5
    assert not torch.equal(f(x), f(x))
    ours.eval()
    assert torch.equal(f(x), f(x))


def set_fix(layer):
    """What a reader does to a layer of PyTorch's."""
    fixed = GapFreeMultiheadAttention(D, HEADS, batch_first=True, dtype=F64)
    fixed.load_state_dict(layer.self_attn.state_dict())
    layer.self_attn = fixed


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layer_does_not_bypass_the_fix_in_evaluation(norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, HEADS, 16, 0.0, batch_first=True, norm_first=norm_first, dtype=F64)
    plain, x, padding = copy.deepcopy(layer).eval(), normal(N, L, D), module_mask("padding", L)["key_padding_mask"]
    set_fix(layer)
    for mask in (
        {},
        {"src_key_padding_mask": padding},
        {"src_mask": ~torch.ones(L, L).bool().tril(), "is_causal": True},
    ):
        trained = layer.train()(x, **mask)  # no dropout: training and evaluation agree
        with torch.no_grad():
            assert torch.allclose(layer.eval()(x, **mask), trained)
            assert not torch.allclose(plain(x, **mask), trained, atol=1e-3)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoder_patched_after_it_was_built():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, HEADS, 16, 0.0, batch_first=True, dtype=F64), 2)
    for layer in encoder.layers:
        set_fix(layer)
    x = normal(N, L, D)
    padding = torch.arange(L) >= torch.tensor([[5], [3], [1]])  # padding on the right makes the encoder nest its input
    trained = encoder.train()(x, src_key_padding_mask=padding).masked_fill(padding[..., None], 0)
    with torch.no_grad():
        nested = encoder.eval()(x, src_key_padding_mask=padding)
    assert torch.allclose(nested, trained)


@pytest.mark.parametrize("kind", ["none", "causal", "boolean"])
def test_module_under_autocast_returns_what_theirs_does(kind):
    theirs, ours = pair(batch_first=True)
    x, mask = normal(N, L, D, dtype=torch.float32), module_mask(kind, L)
    exact = ours(x.double(), x.double(), x.double(), need_weights=False, **mask)[0]
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = (m.float()(x, x, x, need_weights=False, **mask)[0] for m in (ours, theirs))
    assert out.dtype == expected.dtype == torch.bfloat16
    assert (out.double() - exact).abs().max() < 6 * torch.finfo(torch.bfloat16).eps * exact.abs().max()


def test_decoder_layer_and_compiled_module():
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(D, HEADS, 16, 0.0, batch_first=True, dtype=F64)
    set_fix(layer)
    x, memory, causal = normal(N, L, D), normal(N, S, D, seed=1), ~torch.ones(L, L).bool().tril()
    out = layer(x, memory, tgt_mask=causal, tgt_is_causal=True)
    assert torch.allclose(out, layer(x, memory, tgt_mask=causal))
    torch._dynamo.reset()
    module = layer.self_attn
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, x, x, is_causal=True)[0], module(x, x, x, attn_mask=causal)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: GapFreeMultiheadAttention(8, 3), "num_heads: got 3 for embed_dim 8"),
        (lambda m, x: GapFreeMultiheadAttention(8, 0), "num_heads: got 0"),
        (lambda m, x: GapFreeMultiheadAttention(8, 2, add_zero_attn=True), "add_zero_attn"),
        (lambda m, x: m(x[..., :4], x, x), "query: got shape \\(3, 5, 4\\)"),
        (lambda m, x: m(x, x[:2], x[:2]), "key: got shape \\(2, 5, 8\\)"),
        (lambda m, x: m(x[0], x, x), "got 2, 3 and 3 axes"),
        (lambda m, x: m(x, x, x, attn_mask=torch.zeros(5, 4)), "need \\(5, 5\\) or \\(6, 5, 5\\)"),
        (lambda m, x: m(x, x, x, key_padding_mask=torch.zeros(5, 3).bool()), "key_padding_mask: got shape \\(5, 3\\)"),
        (lambda m, x: m(x, x, x, attn_mask=torch.zeros(5, 5).int()), "got torch.int32; use bool \\(True forbids\\)"),
    ],
)
def test_bad_input_to_the_module_is_named(call, message):
    _, ours = pair(batch_first=True)
    with pytest.raises(ValueError, match=message):
        call(ours, normal(N, L, D))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_where_they_cannot_work():
    _, ours = pair(batch_first=True)
    nested = torch.nested.nested_tensor([normal(3, D), normal(2, D)])
    with pytest.raises(ValueError, match="enable_nested_tensor=False"):
        ours(nested, nested, nested)
    with pytest.raises(ValueError, match="not nested"):
        gap_free_attention(nested, nested, nested)
