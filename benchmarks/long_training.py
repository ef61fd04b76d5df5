"""Networks with and without the fix, trained longer than a page may take: writes the record that the page draws.

    python benchmarks/long_training.py

Every pair shares its initial weights and batches. Each rate is run for both networks of a pair, so that each may have
its own best one. A killed run goes on where it was. On two cores it takes about twenty minutes.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from datetime import date
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from lib.sequence_tasks import TASKS, draw_batches  # noqa: E402
from lib.small_transformer import Transformer, learn  # noqa: E402
from lib.sweeps import sweep  # noqa: E402
from tools.layout import write  # noqa: E402

RECORD = ROOT / "chapters" / "attention" / "data" / "long_training.json"
BATCH = {"digits": 16, "text": 16}
NAMES = ("loss", "accuracy", "gap", "left", "branch")


def pair(generator, task, depth, rate, steps, at, d, heads):
    """A network and its twin with the fix, on the same batches; means over layers, axes (without or with, at)."""
    data = TASKS[task]()
    model = Transformer(data, d=d, heads=heads, depth=depth, generator=generator)
    batches = draw_batches(data, steps, BATCH[task], generator)
    curves = [learn(net, data, batches, rate=rate, at=at) for net in (model, model.twin())]
    return {n: torch.stack([c[n] if c[n].ndim == 1 else c[n].mean(-1) for c in curves]) for n in NAMES}


def main() -> None:
    """Run the grid and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="of Adam")
    parser.add_argument("--draws", type=int, default=3, help="pairs for each depth and rate")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.002, 0.005])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=-1)
    options = parser.parse_args()
    at = sorted({0, *(options.steps * k // 10 for k in (1, 2, 4, 6, 8, 10))})
    grid = {"task": list(TASKS), "rate": options.rates, "depth": options.depths}
    fixed = {"steps": [options.steps], "at": [at], "d": [32], "heads": [2]}

    began = time.monotonic()
    store = ROOT / "_build" / "long_training"
    runs = sweep(pair, grid | fixed, draws=options.draws, seed=options.seed, workers=options.workers, store=store)
    axes = ["task", "rate", "depth", "draw", "fix", "at"]
    shape = [len(v) for v in grid.values()] + [options.draws, 2, len(at)]
    record = {
        "provenance": {
            "command": shlex.join(
                ["python", *(os.path.relpath(a, ROOT) if a.endswith(".py") else a for a in sys.argv)]
            ),
            "date": date.today().isoformat(),
            "device": f"{platform.machine()} CPU",
            "seconds": round(time.monotonic() - began),
            "seed": options.seed,
            "versions": {name: metadata.version(name) for name in ("torch", "numpy", "scikit-learn")},
        },
        "axes": axes,
        "grid": grid | {"at": at, "steps": options.steps, "batch": BATCH},
        # Four digits: training at single precision has no more to say.
        "values": {n: [float(f"{v:.4g}") for v in runs[n].reshape(shape).flatten().tolist()] for n in NAMES},
    }
    RECORD.parent.mkdir(exist_ok=True)
    write(RECORD, json.dumps(record) + "\n")
    print(f"{RECORD.relative_to(ROOT)}: {record['provenance']['seconds']} s")


if __name__ == "__main__":
    main()
