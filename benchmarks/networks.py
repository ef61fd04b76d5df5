"""How much faster are networks drawn through Gram matrices than through their weights, in one run on one thread?

    python benchmarks/networks.py [--networks 10000] [--explicit 30] [--width 300] [--layers 7] [--repeats 3]

The first table: all layers at two inputs, float32, per network. "Explicit" draws every matrix of the definition and
multiplies; it runs for a few networks, since ten thousand would take minutes. The second table: how the cost of the
implicit sampler grows with the width.
"""

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from timing import seconds
from torch import Tensor

from lib.ensembles import FAMILIES, rank_of
from lib.wide_networks import preactivations

SIGMA_W, INPUTS = 2.0, 9  # the paper's scale of the weights, and inputs on a sphere in nine dimensions
BATCHES = 30_000, 250_000  # neurons of one batch; the faster counts: small ones fit a cache, large ones save calls

Matrix = Callable[[int, torch.Generator], Tensor]


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def haar(m: int, k: int, generator: torch.Generator) -> Tensor:
    Q, R = torch.linalg.qr(normal(m, k, generator=generator))
    return Q * R.diagonal().sign()


def low_rank(n: int, g: torch.Generator) -> Tensor:
    r = rank_of(FAMILIES["low rank"].rank, n)
    return haar(n, r, g) @ normal(r, n, generator=g) / math.sqrt(r)


def product(n: int, g: torch.Generator) -> Tensor:
    r = rank_of(FAMILIES["product"].rank, n)
    return normal(n, r, generator=g) @ normal(r, n, generator=g) / math.sqrt(r * n)


def block_sparse(n: int, g: torch.Generator) -> Tensor:
    blocks = FAMILIES["block sparse"].blocks
    b = n // blocks
    mask = torch.kron(torch.eye(blocks), torch.ones(b, b))
    W = mask * normal(n, n, generator=g) / math.sqrt(b)
    return W[torch.randperm(n, generator=g)][:, torch.randperm(n, generator=g)]


EXPLICIT: dict[str, Matrix] = {
    "i.i.d.": lambda n, g: normal(n, n, generator=g) / math.sqrt(n),
    "orthogonal": lambda n, g: haar(n, n, g),
    "low rank": low_rank,
    "product": product,
    "block sparse": block_sparse,
}


def explicit_network(matrix: Matrix, X: Tensor, n: int, layers: int, g: torch.Generator) -> Tensor:
    """The last pre-activations of one network, weights and all, shape (k, n)."""
    Z = SIGMA_W / math.sqrt(X.shape[1]) * X @ normal(X.shape[1], n, generator=g)
    for _ in range(layers - 1):
        Z = SIGMA_W * torch.tanh(Z) @ matrix(n, g).T
    return Z


def implicit_networks(
    family: str, X: Tensor, n: int, layers: int, networks: int, neurons: int, g: torch.Generator
) -> None:
    """All layers of that many networks, in batches of that many neurons."""
    batch = max(1, neurons // n)
    for start in range(0, networks, batch):
        count = min(batch, networks - start)
        for _ in preactivations(
            FAMILIES[family],
            X,
            [n] * layers,
            torch.tanh,
            g,
            sigma_w=SIGMA_W,
            networks=count,
            shuffled=False,
            dtype=torch.float32,
        ):
            pass


def main() -> None:
    """Time every family and print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=10_000, help="implicit networks (10000)")
    parser.add_argument("--explicit", type=int, default=30, help="explicit networks (30)")
    parser.add_argument("--width", type=int, default=300, help="width n, a multiple of 3 (300)")
    parser.add_argument("--layers", type=int, default=7, help="layers L (7)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each (3)")
    parser.add_argument("--scaling", type=int, nargs="*", default=[300, 3000, 30_000, 99_999], help="widths")
    options = parser.parse_args()
    if min(options.networks, options.explicit, options.layers, options.repeats) < 1:
        parser.error("--networks, --explicit, --layers and --repeats need at least 1")
    if wrong := [n for n in (options.width, *options.scaling) if n < 3 or n % 3]:
        parser.error(f"--width, --scaling: got {wrong}; the mask of three blocks needs multiples of 3")
    torch.set_num_threads(1)
    g, n, layers = torch.Generator().manual_seed(0), options.width, options.layers
    X = normal(2, INPUTS, generator=g)
    print(f"n = {n}, {layers} layers, 2 inputs, float32, one thread, median of {options.repeats}\n")
    print(f"{'':<14}{f'{options.networks} implicit':>17}{'per network':>14}{'explicit':>12}{'ratio':>8}")
    for family, matrix in EXPLICIT.items():
        runs = [partial(implicit_networks, family, X, n, layers, options.networks, batch, g) for batch in BATCHES]
        total = min(seconds(run, options.repeats) for run in runs)
        ours = total / options.networks
        naive = (
            seconds(
                lambda w=matrix: [explicit_network(w, X, n, layers, g) for _ in range(options.explicit)],
                options.repeats,
            )
            / options.explicit
        )
        line = f"{family:<14}{total:15.2f} s{1e3 * ours:11.4f} ms{1e3 * naive:9.2f} ms{naive / ours:7.0f}x"
        print(line, flush=True)
    if len(options.scaling) < 2:
        return
    head = "".join(f"{f'n = {n}':>12}" for n in options.scaling)
    print(f"\nms per network{head}{'slope':>8}")
    for family in EXPLICIT:
        times = []
        for n in options.scaling:
            count = max(4, 3_000_000 // n)
            run = partial(implicit_networks, family, X, n, layers, count, BATCHES[-1], g)
            times.append(seconds(run, options.repeats) / count)
        slope = np.polyfit(np.log(options.scaling), np.log(times), 1)[0]
        print(f"{family:<14}{''.join(f'{1e3 * t:12.4f}' for t in times)}{slope:8.2f}", flush=True)


if __name__ == "__main__":
    main()
