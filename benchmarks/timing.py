"""The stopwatch of the benchmarks."""

import statistics
import time
from collections.abc import Callable


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall time, after one run that warms up."""
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
