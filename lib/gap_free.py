"""The fix as a drop-in: attention less the mean of the values, on top of fused scaled dot-product attention.

``A_perp V = A V - (mean of V over the allowed keys)``, so no ``L x S`` matrix is formed: the fix costs ``O(S d)`` where
attention costs ``O(L S d)``. ``L`` queries, ``S`` keys, ``E`` the dimension of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import CausalBias


def gap_free_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``softmax(Q K^T scale + mask) V - M V``, ``M_ij = 1 / #{keys that i may attend to}`` on those keys, 0 elsewhere.

    Takes the arguments of :func:`torch.nn.functional.scaled_dot_product_attention`, which does the first part with
    whatever fused kernel it has. The second part costs ``O(S E)`` for no mask, ``is_causal`` (a running mean) and a
    padding mask of shape (..., 1, S); a general mask is multiplied with ``V`` once.

    Args:
        query: shape (..., H, L, E).
        key: shape (..., H, S, E).
        value: shape (..., H, S, E_v).
        attn_mask: broadcasts to (..., H, L, S), its last axis is ``S``. Boolean: True where a query may attend.
            Floating: added to the logits; ``-inf`` and the smallest number of its dtype forbid a key, every other
            value is a bias on an allowed one.
        dropout_p: of the entries of the softmax. The mean is subtracted whole, so the expectation is that without
            dropout.
        is_causal: query ``i`` sees keys ``0, ..., i``, also where ``L != S``. Unlike the original, it may be combined
            with a padding mask, of shape (..., 1, S).
        scale: ``1 / sqrt(E)`` unless given.
        enable_gqa: ``key`` and ``value`` may have fewer heads, a divisor of the query's.

    Returns:
        Shape (..., H, L, E_v). A query that may attend to nothing gets 0, with gradient 0.

    Raises:
        ValueError: shapes or masks that do not fit, before anything is computed.
    """
    _check(query, key, value, attn_mask, is_causal, enable_gqa)
    L = query.size(-2)
    mask, some = _open(attn_mask, L, is_causal)
    out = F.scaled_dot_product_attention(
        query, key, value, mask, dropout_p, is_causal and mask is None, scale=scale, enable_gqa=enable_gqa
    )
    if enable_gqa:
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    allowed = None if attn_mask is None else _allowed(attn_mask)
    out = out - allowed_mean(value, L, allowed, is_causal).to(out.dtype)
    return out if some is None else out.masked_fill(~some, 0)


def allowed_mean(value: Tensor, queries: int, allowed: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """``M V``: for each query the mean of ``value`` over the keys that it may attend to, 0 where there is none.

    Sums of half-precision values run in float32: neither overflow nor the length of the sum costs accuracy.

    Args:
        value: shape (..., S, E).
        queries: ``L``.
        allowed: boolean, broadcasts to (..., L, S); with ``is_causal`` of shape (..., 1, S).
        is_causal: query ``i`` sees only keys ``0, ..., i``.

    Returns:
        Broadcasts to (..., L, E): where all queries share a mean, the axis of queries has size 1.
    """
    exact = torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype
    if is_causal:
        rows = min(queries, value.size(-2))
        if allowed is None:
            count = torch.arange(1, rows + 1, device=value.device)[:, None]
        else:
            value = value.masked_fill(~allowed.mT, 0)
            count = allowed.mT[..., :rows, :].cumsum(-2).clamp(min=1)
        mean = value[..., :rows, :].cumsum(-2, dtype=exact).div_(count)
        last = mean[..., -1:, :]  # queries beyond the last key see all keys
        return torch.cat([mean, last.expand(*last.shape[:-2], queries - rows, -1)], -2) if queries > rows else mean
    if allowed is None:
        return value.mean(-2, keepdim=True, dtype=exact)
    weights = allowed.to(exact) / allowed.sum(-1, keepdim=True).clamp(min=1)
    # einsum folds the heads that share a mask into the columns of V, where matmul would copy the mask for each.
    return torch.einsum("...ls,...se->...le", weights.to(value.dtype), value)


def gap_free_weights(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """``A_perp = softmax(Q K^T scale + mask) - M`` itself, dense, shape (..., L, S); its rows sum to 0.

    To look at. Its product with ``value`` is :func:`gap_free_attention`; the arguments are described there.
    """
    _check(query, key, key, attn_mask, is_causal, False)
    L, S = query.size(-2), key.size(-2)
    scores = query @ key.mT * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
    if is_causal and attn_mask is None:
        attn_mask = torch.ones(1, S, dtype=torch.bool, device=query.device)
    mask, some = _open(attn_mask, L, is_causal)
    if mask is None:
        return torch.softmax(scores, -1) - 1 / S
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    allowed = _allowed(mask)
    weights = torch.softmax(scores, -1) - allowed / allowed.sum(-1, keepdim=True).to(scores.dtype)
    return weights.masked_fill(~some, 0)


def _allowed(mask: Tensor) -> Tensor:
    """Where a mask lets a query attend: True, or more than the smallest number of the dtype."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min


def _open(mask: Tensor | None, L: int, is_causal: bool) -> tuple[Tensor | None, Tensor | None]:
    """The mask for the kernel, and which queries may attend to something, shape (..., L, 1).

    Rows that forbid everything are opened, and the caller sets their results to 0. What a kernel would make of them,
    NaN or 0, depends on the kernel, and a NaN would come back in the gradient.
    """
    if mask is None:
        return None, None
    boolean = mask.dtype == torch.bool
    if is_causal:
        causal = torch.ones(L, mask.size(-1), dtype=torch.bool, device=mask.device).tril()
        mask = mask & causal if boolean else mask.masked_fill(~causal, -math.inf)
    some = _allowed(mask).any(-1, keepdim=True)
    return (mask | ~some if boolean else mask.masked_fill(~some, 0)), some


def _check(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, enable_gqa: bool
) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.is_nested or x.dim() < 2:
            raise ValueError(f"{name}: need a padded, not nested tensor of shape (..., length, features)")
    S = key.size(-2)
    if value.size(-2) != S or S == 0:
        raise ValueError(f"key, value: got lengths {S} and {value.size(-2)}; they are equal, and at least 1")
    if query.size(-1) != key.size(-1):
        raise ValueError(f"query, key: got {query.size(-1)} and {key.size(-1)} features; they are equal")
    if enable_gqa:
        heads = [x.size(-3) if x.dim() > 2 else 0 for x in (query, key, value)]
        if 0 in heads or heads[1] != heads[2] or heads[0] % heads[1]:
            raise ValueError(f"enable_gqa: got {heads} heads; key and value have as many, a divisor of the query's")
    if attn_mask is None:
        return
    if isinstance(attn_mask, CausalBias):
        raise ValueError("attn_mask: got a CausalBias, which holds no mask; pass is_causal=True or a tensor")
    if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
        raise ValueError(f"attn_mask: got {attn_mask.dtype}; use bool (True may attend) or floating (added to logits)")
    rows = (1,) if is_causal else (1, query.size(-2))
    if attn_mask.dim() < 2 or attn_mask.size(-1) != S or attn_mask.size(-2) not in rows:
        need = f"{rows[-1]} or 1 rows" if not is_causal else "1 row (padding) with is_causal, or is_causal=False"
        raise ValueError(f"attn_mask: got shape {tuple(attn_mask.shape)}; need {S} columns and {need}")
