"""What does the fix cost? Time of attention with the fix over that of plain attention, as a Markdown table.

    python benchmarks/gap_free.py [--sizes 256 512 1024 2048 4096] [--device cuda] [--dtype bfloat16] [--repeats 21]

Runs alternate, plain and fixed and plain and fixed, so that a machine that slows down slows both. Each ratio is the
median over the pairs of neighbours, with a 95 % interval from the order statistics.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from scipy import stats
from torch.nn.functional import scaled_dot_product_attention

from lib.gap_free import gap_free_attention

PASSES = ("forward", "forward and backward")


def runner(
    attention: Callable, T: int, options: argparse.Namespace, causal: bool, backward: bool
) -> Callable[[], None]:
    """A call of ``attention`` on fixed inputs of shape (B, H, T, E)."""
    generator = torch.Generator(options.device).manual_seed(0)
    shape = (options.batch, options.heads, T, options.head_dim)
    kind = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    q, k, v, grad = (torch.randn(shape, generator=generator, **kind) for _ in range(4))
    inputs = [x.requires_grad_(backward) for x in (q, k, v)]

    def run() -> None:
        out = attention(*inputs, is_causal=causal)
        if backward:
            torch.autograd.grad(out, inputs, grad)

    return run


def seconds(run: Callable[[], None], calls: int, device: str) -> float:
    """Wall time of that many calls, the device's work included."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    wait()
    began = time.perf_counter()
    for _ in range(calls):
        run()
    wait()
    return (time.perf_counter() - began) / calls


def compare(plain: Callable[[], None], fixed: Callable[[], None], options: argparse.Namespace) -> tuple[float, ...]:
    """Median seconds of ``plain``; median of the paired ratios fixed / plain and the ends of its interval."""
    for run in (plain, fixed):
        seconds(run, 2, options.device)  # warm up: kernels are chosen, memory is taken
    calls = max(1, math.ceil(0.005 / seconds(plain, 1, options.device)))  # the clock and the queue need some 5 ms
    pairs = [[seconds(run, calls, options.device) for run in (plain, fixed)] for _ in range(options.repeats)]
    ratios = sorted(b / a for a, b in pairs)
    n = len(ratios)
    low = int(stats.binom.ppf(0.025, n, 0.5))  # the order statistics that hold the median in 95 % of runs
    return statistics.median(a for a, _ in pairs), statistics.median(ratios), ratios[max(low - 1, 0)], ratios[n - low]


def main() -> None:
    """Time every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096], help="numbers of tokens T"
    )
    parser.add_argument("--batch", type=int, default=1, help="sequences (1)")
    parser.add_argument("--heads", type=int, default=12, help="heads (12)")
    parser.add_argument("--head-dim", type=int, default=64, help="dimension of a head (64)")
    parser.add_argument("--repeats", type=int, default=21, help="pairs of runs, at least 6 for an interval (21)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (as torch sets them)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="bfloat16 on a GPU, else float32")
    parser.add_argument("--compile", action="store_true", help="both through torch.compile")
    options = parser.parse_args()
    if min(*options.sizes, options.batch, options.heads, options.head_dim, options.threads) < 1 or options.repeats < 6:
        parser.error("sizes are at least 1, and --repeats at least 6")
    on_gpu = options.device.startswith("cuda")
    options.dtype = options.dtype or ("bfloat16" if on_gpu else "float32")
    torch.set_num_threads(options.threads)
    machine = torch.cuda.get_device_name(options.device) if on_gpu else f"CPU, {options.threads} thread(s)"
    compiled = ", compiled" if options.compile else ""
    print(
        f"{machine}; torch {torch.__version__}; {options.dtype}{compiled}; B = {options.batch}, H = {options.heads}, "
    )
    print(f"head dimension {options.head_dim}; median of {options.repeats} pairs, 95 % interval\n")
    print("| T | mask | pass | plain, ms | fixed / plain |\n| ---: | --- | --- | ---: | --- |")
    wrap = torch.compile if options.compile else (lambda f: f)
    for T in options.sizes:
        for causal in (False, True):
            for name in PASSES:
                runs = [
                    runner(wrap(f), T, options, causal, name != PASSES[0])
                    for f in (scaled_dot_product_attention, gap_free_attention)
                ]
                plain, ratio, low, high = compare(*runs, options)
                mask = "causal" if causal else "none"
                print(
                    f"| {T} | {mask} | {name} | {1000 * plain:.3g} | {ratio:.3f} ({low:.3f} to {high:.3f}) |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
