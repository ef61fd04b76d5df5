"""A small pre-LN transformer on real data, with its attention watched while it learns.

Two tasks of ``T`` tokens: the class of a handwritten digit, one pixel a token, and the next character of a book, with a
causal mask. A network and its twin with the fix share every initial weight and every batch, so that what differs
between them is the fix. Shapes: ``B`` inputs, ``H`` heads, ``T`` tokens of dimension ``d``, ``L`` layers.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.gap_free import gap_free_attention, gap_free_weights
from lib.sequence_tasks import Task


class Block(nn.Module):
    """``X + Attention(LN(X))``, then ``X + MLP(LN(X))``; ``skip=False`` leaves out both ``X +``, ``mlp=0`` the MLP."""

    def __init__(self, d: int, heads: int, causal: bool, fix: bool, skip: bool, mlp: int):
        super().__init__()
        self.heads, self.causal, self.fix, self.skip = heads, causal, fix, skip
        self.norm, self.qkv, self.out = nn.LayerNorm(d), nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        layers = (nn.LayerNorm(d), nn.Linear(d, mlp * d), nn.ReLU(), nn.Linear(mlp * d, d)) if mlp else ()
        self.mlp = nn.Sequential(*layers) if mlp else None

    def _heads(self, X: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each (B, H, T, d / H)."""
        return self.qkv(self.norm(X)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def branch(self, X: Tensor) -> Tensor:
        """What attention adds to the tokens: ``concat_h(A_h LN(X) W_V,h) W_O``, (B, T, d)."""
        attention = gap_free_attention if self.fix else F.scaled_dot_product_attention
        return self.out(attention(*self._heads(X), is_causal=self.causal).transpose(1, 2).flatten(2))

    def weights(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """``A`` and ``A_perp``, whichever of the two the block uses, each (B, H, T, T)."""
        q, k, _ = self._heads(X)
        T = X.shape[-2]
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if self.causal:
            scores = scores.masked_fill(~torch.ones(T, T, dtype=torch.bool, device=X.device).tril(), -math.inf)
        return torch.softmax(scores, -1), gap_free_weights(q, k, is_causal=self.causal)

    def forward(self, X: Tensor) -> Tensor:
        X = X + self.branch(X) if self.skip else self.branch(X)
        if self.mlp is None:
            return X
        return X + self.mlp(X) if self.skip else self.mlp(X)


class Transformer(nn.Module):
    """Token and position embedding, ``depth`` blocks, LayerNorm, a linear head on every token or on their mean.

    Weights of linear maps are N(0, 1/fan-in), embeddings N(0, 1), biases 0. Maps that write to the tokens are smaller
    by ``sqrt(2 depth)``, as in GPT-2. Queries and keys are N(0, b/d), so that the logits of independent normalised
    tokens are near N(0, b^2), as for the paper's layers.

    Args:
        task: gives the tokens, the number of outputs and the mask.
        d: token dimension; ``heads`` divides it.
        fix: attention less the mean of the values, in every layer.
        b: 1 in the paper; PyTorch's own initial weights of a linear map have the variance of ``b = 1/3``.
        skip: with residual connections.
        mlp: width of the hidden layer over ``d``; 0 for none.
    """

    def __init__(
        self,
        task: Task,
        *,
        d: int,
        heads: int,
        depth: int,
        generator: torch.Generator,
        fix: bool = False,
        b: float = 1 / 3,
        skip: bool = True,
        mlp: int = 2,
    ):
        if depth < 1:
            raise ValueError(f"depth: got {depth}; a network has at least 1 layer")
        if heads < 1 or d < 1 or d % heads:
            raise ValueError(f"heads: got {heads} for d = {d}; the number of heads divides d")
        if mlp < 0:
            raise ValueError(f"mlp: got {mlp}; the hidden layer is 0 (none) or more times as wide as a token")
        if not (math.isfinite(b) and b >= 0):
            raise ValueError(f"b: got {b}; a variance is finite and >= 0")
        super().__init__()
        self.causal = task.causal
        self.embed = nn.Embedding(task.vocabulary, d) if task.vocabulary else nn.Linear(1, d, bias=False)
        self.position = nn.Parameter(torch.empty(task.x.shape[-1], d))
        self.blocks = nn.ModuleList(Block(d, heads, task.causal, fix, skip, mlp) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, task.outputs)
        writers = {m for block in self.blocks for m in (block.out, block.mlp and block.mlp[-1])} if skip else set()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                scale = 1 / math.sqrt(module.in_features * (2 * depth if module in writers else 1))
                nn.init.normal_(module.weight, 0, scale, generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            for block in self.blocks:
                block.qkv.weight[: 2 * d] *= math.sqrt(b)
        for embedding in (self.embed.weight, self.position):
            nn.init.normal_(embedding, generator=generator)

    def twin(self) -> "Transformer":
        """The same weights with the fix where there was none, and the other way round."""
        other = copy.deepcopy(self)
        for block in other.blocks:
            block.fix = not block.fix
        return other

    def tokens(self, x: Tensor) -> Tensor:
        """``X_0``: (B, T) -> (B, T, d)."""
        return self.position + self.embed(x if isinstance(self.embed, nn.Embedding) else x[..., None])

    def forward(self, x: Tensor) -> Tensor:
        """Logits: (B, T) -> (B, outputs), or (B, T, outputs) with a causal mask."""
        X = self.tokens(x)
        for block in self.blocks:
            X = block(X)
        X = self.norm(X)
        return self.head(X if self.causal else X.mean(-2))


@torch.no_grad()
def spectra(model: Transformer, x: Tensor) -> dict[str, Tensor]:
    """What the chapter is about, per layer, each (L,), as means over the inputs ``x`` (B, T) and the heads.

    - ``gap``: ``s_2(A) / s_1(A)`` of the softmax matrices, with the fix too: what the fix would find or has found;
    - ``left``: ``||A_perp||_2 / ||A||_2``, what the fix leaves; for a causal mask, where ``A_perp = A - M`` with
      ``M_ij = 1 / i`` for ``j <= i``, this says what the gap says without one;
    - ``branch``: ``sr(Y Y^T)`` of what attention adds to the tokens;
    - ``stream``: ``sr(X X^T)`` of the tokens after the layer.
    """
    X, found = model.tokens(x), {"gap": [], "left": [], "branch": [], "stream": []}
    for block in model.blocks:
        # These matrices are small and come in batches: all singular values cost less than finding the top ones.
        s, s_perp = (torch.linalg.svdvals(M.double()) for M in block.weights(X))
        found["gap"].append((s[..., 1] / s[..., 0]).mean())
        found["left"].append((s_perp[..., 0] / s[..., 0]).mean())
        found["branch"].append(_covariance_stable_rank(block.branch(X)).mean())
        X = block(X)
        found["stream"].append(_covariance_stable_rank(X).mean())
    return {name: torch.stack(values) for name, values in found.items()}


def _covariance_stable_rank(X: Tensor) -> Tensor:
    """``sr(X X^T) = sum_i (s_i / s_1)^4``."""
    s = torch.linalg.svdvals(X.double())
    return (s / s[..., :1]).pow(4).sum(-1)


@torch.no_grad()
def held_out(model: Transformer, task: Task, batch: int = 64) -> dict[str, Tensor]:
    """``loss``, the cross-entropy in nats, and ``accuracy``, both per target of the held-out part."""
    loss, right = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for x, y in zip(task.held_out_x.split(batch), task.held_out_y.split(batch), strict=True):
        logits, y = model(x).flatten(0, -2).double(), y.flatten()
        loss += F.cross_entropy(logits, y, reduction="sum").cpu()
        right += (logits.argmax(-1) == y).sum().cpu()
    n = task.held_out_y.numel()
    return {"loss": loss / n, "accuracy": right / n}


def learn(
    model: Transformer, task: Task, batches: Tensor, *, rate: float, at: Sequence[int], look: int = 4
) -> dict[str, Tensor]:
    """Train with Adam; returns :func:`held_out` and :func:`spectra` after each number of steps in ``at``.

    The rate rises to ``rate`` over the first tenth of the steps and falls to 0 over the rest, both linearly.

    Args:
        batches: from :func:`draw_batches`; the network and its twin get the same.
        rate: the highest learning rate.
        at: increasing, between 0 (untrained) and the number of steps.
        look: held-out inputs whose spectra are taken.

    Returns:
        Each value with a first axis of ``len(at)``.

    Raises:
        ValueError: ``at`` or ``rate`` out of range, before any step.
    """
    steps = len(batches)
    if not at or list(at) != sorted(set(at)) or at[0] < 0 or at[-1] > steps:
        raise ValueError(f"at: got {list(at)}; need increasing numbers of steps from 0 to {steps}")
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"rate: got {rate}; a learning rate is finite and >= 0")
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
    warm = max(1, steps // 10)
    found = []
    for step in range(steps + 1):
        if step in at:
            found.append(held_out(model, task) | spectra(model, task.held_out_x[:look]))
        if step == steps:
            break
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / warm, (steps - step) / (steps - warm + 1))
        i = batches[step].to(task.x.device)
        loss = F.cross_entropy(model(task.x[i]).flatten(0, -2), task.y[i].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: torch.stack([values[name].cpu() for values in found]) for name in found[0]}
