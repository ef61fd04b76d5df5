"""How much faster than the naive version, in one run on one thread?

    python benchmarks/speed.py [--size 1000] [--repeats 5] [--jacobian 20 60]

Each line is the median time of the naive version over that of the library's, on the same matrices or for the same law.
The second table is about gradients, ||dX_L / dW_1||_F for all L = 1, ..., 10 at once: the naive version forms the
Jacobians with torch.func.jacrev, once; at T = 60 that takes a minute and 2 GB.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from timing import seconds

from lib.attention import (
    isometric_attention,
    isometric_tokens,
    key_query_attention,
    lognormal,
    markov_matrix,
    remove_gap,
    token_factors,
)
from lib.attention_blocks import Variant, Weights, key_query_weights, markov_weights, run
from lib.attention_gradients import estimate_log_norms, kronecker_log_norms
from lib.spectra import covariance_stable_rank, top_singular_values


def dense_stable_rank(X: torch.Tensor) -> torch.Tensor:
    s = torch.linalg.svdvals(X @ X.mT)
    return s.square().sum() / s[0] ** 2


def dense_networks(attention: list[torch.Tensor], d: int, g: torch.Generator) -> torch.Tensor:
    """Tokens with the fix and without it, value matrices and all."""
    X = fixed = isometric_tokens(attention[0].shape[0], d, g)
    for A in attention:
        W = torch.randn(d, d, dtype=torch.float64, generator=g) / math.sqrt(d)
        X, fixed = A @ X @ W, remove_gap(A) @ fixed @ W
    return X


def cases(T: int) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Name -> (naive, library's)."""
    g = torch.Generator().manual_seed(0)
    A, d = markov_matrix(T, lognormal(), g), 4 * T
    attention = [A, A, A]
    return {
        "s_1, s_2 of a Markov matrix": (lambda: torch.linalg.svdvals(A)[:2], lambda: top_singular_values(A, 2)),
        "sr(X X^T)": (lambda: dense_stable_rank(A), lambda: covariance_stable_rank(A)),
        "key-query attention, gamma = 1/4": (
            lambda: key_query_attention(isometric_tokens(T, d, g), 0.5, g),
            lambda: isometric_attention(T, d, 0.5, g),
        ),
        "three layers, both networks, gamma = 1/4": (
            lambda: dense_networks(attention, d, g),
            lambda: token_factors(attention, d, g),
        ),
    }


def formed_jacobians(X: torch.Tensor, weights: list[Weights]) -> list[torch.Tensor]:
    """Norms of dX_L / dW_1, each Jacobian in memory."""

    def tokens(V: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(t.Y for t in run(X, [weights[0]._replace(V=V), *weights[1:]], Variant()))

    # In one piece, 36000 cotangents at T = 60 would not fit a laptop.
    return [J.norm() for J in torch.func.jacrev(tokens, chunk_size=1024)(weights[0].V)]


def gradients(T: int, repeats: int, layers: int = 10, probes: int = 32) -> None:
    """Two lines of the second table; the estimator's is followed by its largest standard error."""
    g = torch.Generator().manual_seed(0)
    X = isometric_tokens(T, T, g)
    fixed, key_query = markov_weights(T, T, layers, lognormal(), g), key_query_weights(T, layers, 1.0, g)
    estimate = lambda: estimate_log_norms(X, key_query, Variant(), generator=g, probes=probes)  # noqa: E731
    error = float(estimate().stderr.max())
    for name, weights, ours, note in (
        ("fixed A, closed form", fixed, lambda: kronecker_log_norms(X, fixed), "exact"),
        ("A(X), estimator", key_query, estimate, f"standard error {error:.1%}"),
    ):
        began = time.perf_counter()
        formed_jacobians(X, weights)
        naive, fast = time.perf_counter() - began, seconds(ours, repeats)
        print(f"{f'T = {T}, {name}':<42}{naive:8.3f}s{fast:8.4f}s{naive / fast:9.0f}x  {note}", flush=True)


def main() -> None:
    """Time every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1000, help="number of tokens T (1000)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (5)")
    parser.add_argument("--jacobian", type=int, nargs="*", default=[20, 60], help="T = d of the gradients (20 60)")
    options = parser.parse_args()
    if min(options.size, options.repeats, *options.jacobian) < 1:
        parser.error("--size, --repeats and --jacobian need at least 1")
    torch.set_num_threads(1)
    print(f"T = {options.size}, one thread, median of {options.repeats}\n{'':<42}{'naive':>9}{'lib':>9}{'ratio':>8}")
    for name, (naive, ours) in cases(options.size).items():
        a, b = seconds(naive, options.repeats), seconds(ours, options.repeats)
        print(f"{name:<42}{a:8.3f}s{b:8.3f}s{a / b:7.1f}x", flush=True)
    if options.jacobian:
        print(f"\n{'||dX_L / dW_1||_F, L = 1, ..., 10':<42}{'formed':>9}{'lib':>9}{'ratio':>10}")
    for T in options.jacobian:
        gradients(T, options.repeats)


if __name__ == "__main__":
    main()
