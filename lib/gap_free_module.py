"""The fix as a module: ``nn.MultiheadAttention`` with gap-free heads, for a transformer that is there already."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.gap_free import gap_free_attention, gap_free_weights


class GapFreeMultiheadAttention(nn.MultiheadAttention):
    """:class:`torch.nn.MultiheadAttention` with :func:`gap_free_attention` in every head.

    Same constructor, same arguments, same ``state_dict``: trained weights load, and
    ``layer.self_attn = GapFreeMultiheadAttention(...)`` works in a ``nn.TransformerEncoderLayer`` or its decoder twin,
    in training and in evaluation. Masks follow ``nn.MultiheadAttention``: True *forbids* a key.

    What differs: the weights returned are those of ``A_perp``, whose rows sum to 0, without dropout;
    ``is_causal=True`` needs no ``attn_mask``; a query that may attend to nothing passes on the bias of ``out_proj``
    alone, not NaN; ``add_bias_kv`` and ``add_zero_attn`` are refused.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dim``, or an option that is refused.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if add_bias_kv or add_zero_attn:
            raise ValueError("add_bias_kv, add_zero_attn: keys without a token have no place in the mean; leave False")
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            raise ValueError(f"num_heads: got {num_heads} for embed_dim {embed_dim}; it must divide embed_dim")
        super().__init__(
            embed_dim, num_heads, dropout, bias, False, False, kdim, vdim, batch_first, device=device, dtype=dtype
        )
        # In evaluation nn.TransformerEncoderLayer hands the weights to a fused kernel and does not call forward. The
        # fix would be gone without a word. It keeps off where this flag, which nothing here reads, is False.
        self._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`torch.nn.MultiheadAttention.forward`; pass ``need_weights=False`` where speed matters.

        Args:
            query: shape (L, N, embed_dim); (N, L, embed_dim) with ``batch_first``; (L, embed_dim) without a batch.
            key: the same with ``S`` in place of ``L``, and ``kdim``.
            value: the same with ``S`` and ``vdim``.
            key_padding_mask: shape (N, S) or (S,); boolean, True forbids the key, or floating, added to the logits.
            attn_mask: shape (L, S) or (N * num_heads, L, S); as above.
            is_causal: the mask is the causal one; ``attn_mask`` is then not read and may be left out.

        Returns:
            Output of the shape of ``query``, and ``A_perp`` of shape (N, L, S), or (N, num_heads, L, S) without
            averaging over heads, or None.
        """
        if query.is_nested:
            return self._forward_nested(query, key, value, key_padding_mask, need_weights, attn_mask, is_causal)
        unbatched, batch = query.dim() == 2, 0 if self.batch_first else 1
        if not query.dim() == key.dim() == value.dim() or query.dim() not in (2, 3):
            axes = f"{query.dim()}, {key.dim()} and {value.dim()}"
            raise ValueError(f"query, key, value: got {axes} axes; each has 3, or 2 without a batch")
        self_attention = query is key and key is value
        if unbatched:
            query, key, value = (x.unsqueeze(batch) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._heads(query, key, value, self_attention)  # each (N, heads, L or S, head_dim)
        mask = self._mask(q, k, key_padding_mask, None if is_causal else attn_mask)
        out = gap_free_attention(q, k, v, mask, self.dropout if self.training else 0.0, is_causal)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        weights = gap_free_weights(q, k, mask, is_causal) if need_weights else None
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not self.batch_first:
            out = out.transpose(0, 1)
        if unbatched:
            out, weights = out.squeeze(batch), None if weights is None else weights.squeeze(0)
        return out, weights

    def _heads(self, query: Tensor, key: Tensor, value: Tensor, self_attention: bool) -> list[Tensor]:
        """Project and split: (N, L, embed_dim) -> (N, heads, L, head_dim), for each of the three."""
        for name, x, size in (("query", query, self.embed_dim), ("key", key, self.kdim), ("value", value, self.vdim)):
            if x.size(-1) != size or x.size(0) != query.size(0):
                need = f"{size} features, and N = {query.size(0)} as in query"
                raise ValueError(f"{name}: got shape {tuple(x.shape)} as (N, length, features); need {need}")
        if self_attention and self.in_proj_weight is not None:
            projected = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if self.in_proj_weight is not None:
                weights = self.in_proj_weight.chunk(3)
            biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            projected = [F.linear(*args) for args in zip((query, key, value), weights, biases, strict=True)]
        return [x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in projected]

    def _mask(self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
        """Both masks in the convention of :func:`gap_free_attention`: boolean if both are, else additive."""
        N, heads, L, S = *q.shape[:3], k.size(2)
        masks = []
        if key_padding_mask is not None:
            if key_padding_mask.shape != (N, S):
                raise ValueError(f"key_padding_mask: got shape {tuple(key_padding_mask.shape)}; need {(N, S)}")
            masks.append(key_padding_mask[:, None, None])
        if attn_mask is not None:
            shapes = (L, S), (N * heads, L, S)
            if attn_mask.shape not in shapes:
                raise ValueError(f"attn_mask: got shape {tuple(attn_mask.shape)}; need {shapes[0]} or {shapes[1]}")
            masks.append(attn_mask if attn_mask.dim() == 2 else attn_mask.unflatten(0, (N, heads)))
        for mask in masks:
            if mask.dtype != torch.bool and not mask.is_floating_point():
                raise ValueError(f"key_padding_mask, attn_mask: got {mask.dtype}; use bool (True forbids) or floating")
        if all(mask.dtype == torch.bool for mask in masks):
            return ~(masks[0] | masks[-1]) if masks else None
        return sum(q.new_zeros(()).masked_fill(m, -math.inf) if m.dtype == torch.bool else m.to(q.dtype) for m in masks)

    def _forward_nested(self, query, key, value, key_padding_mask, need_weights, attn_mask, is_causal):
        """Sequences of several lengths, as ``nn.TransformerEncoder`` passes them on in evaluation: pad, run, unpad."""
        masked = key_padding_mask is not None or attn_mask is not None
        if query is not key or key is not value or masked or need_weights:
            raise ValueError(
                "query: a nested tensor goes with key and value the same, no mask, and need_weights=False; "
                "else pad it, or give nn.TransformerEncoder enable_nested_tensor=False"
            )
        lengths = [len(x) for x in query.unbind()]
        padded = query.to_padded_tensor(0.0)  # (N, longest, embed_dim)
        ends = torch.tensor(lengths, device=padded.device)[:, None]
        padding = torch.arange(padded.size(1), device=padded.device) >= ends
        if not self.batch_first:
            padded = padded.transpose(0, 1)
        out, _ = self(padded, padded, padded, padding, need_weights=False, is_causal=is_causal)
        out = out if self.batch_first else out.transpose(0, 1)
        return torch.nested.as_nested_tensor([x[:n] for x, n in zip(out, lengths, strict=True)]), None
