"""Do a notebook's claims hold for nearly every seed, and do their controls fail?

    python benchmarks/audit.py attention/spectral_gap --seeds 100 --workers 2

Runs the notebook's code once for each seed and counts. The exit status is 1 when a claim does not come out as the book
says for 99 % of the seeds, or its control does not fail for 99 %. A killed audit goes on where it was.
"""

import argparse
import ast
import io
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import joblib  # noqa: E402
from tqdm import tqdm  # noqa: E402

from tools.kernels import ONE_THREAD  # noqa: E402
from tools.keys import code_cells, notebook_key  # noqa: E402
from tools.layout import Book, BookError, read, write  # noqa: E402
from tools.parameters import TAG, defaults  # noqa: E402

ENOUGH = 0.99


def claims_at(path: Path, root: Path, seed: int) -> list[dict[str, Any]]:
    """Run the notebook's cells in this process with that seed; what it shows is dropped, its claims are returned."""
    os.environ.update(ONE_THREAD, MPLBACKEND="Agg")
    os.environ.pop("BOOK_SWEEPS", None)
    if sys.path[0] != str(root):
        sys.path.insert(0, str(root))
    os.chdir(path.parent)
    import matplotlib.pyplot as plt
    import torch

    from lib.claims import Claims

    torch.set_num_threads(1)
    plt.show = lambda *args, **kwargs: plt.close("all")
    namespace: dict[str, Any] = {"__name__": "__main__", "display": lambda *args, **kwargs: None}
    shown = []
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        for number, cell in enumerate(code_cells(read(path)), 1):
            shown.append(_run(cell.source, f"cell [{number}]", namespace))
            if TAG in cell.metadata.get("tags", []):
                namespace["seed"] = seed
    plt.close("all")
    found = {c.key: c for value in (*shown, *namespace.values()) if isinstance(value, Claims) for c in value}
    return [
        {"key": c.key, "held": c.as_stated, "rejected": c.control["fails"] if c.control else None}
        for c in found.values()
        if c.status != "not attempted"
    ]


def _run(source: str, where: str, namespace: dict[str, Any]) -> Any:
    """Run a cell; returns the value of its last line, which a notebook would show."""
    tree = ast.parse(source, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, where, "exec"), namespace)
    return eval(compile(ast.Expression(last.value), where, "eval"), namespace) if last else None


def audit_seed(path: Path, root: Path, seed: int, file: Path) -> dict[str, Any]:
    """One seed's claims or its error, from ``file`` if they are there."""
    if file.exists():
        return json.loads(file.read_text())
    try:
        result = {"seed": seed, "claims": claims_at(path, root, seed), "error": ""}
    except Exception:
        result = {"seed": seed, "claims": [], "error": traceback.format_exc(limit=-3)}
    if not result["error"]:  # an error may have come from outside, such as a full disk
        write(file, json.dumps(result))
    return result


def audit(book: Book, name: str, seeds: range, workers: int) -> list[dict[str, Any]]:
    """All seeds, in order."""
    (name,) = book.select(name)
    if "seed" not in defaults(read(book.path(name))):
        raise BookError(f"{name}: its parameters have no seed")
    folder = book.build / "audit" / name / notebook_key(book, name)
    jobs = (joblib.delayed(audit_seed)(book.path(name), book.root, s, folder / f"{s}.json") for s in seeds)
    results = joblib.Parallel(n_jobs=workers, return_as="generator")(jobs)
    return list(tqdm(results, total=len(seeds), desc=name, disable=None))


def table(results: list[dict[str, Any]]) -> tuple[list[tuple[str, ...]], bool]:
    """Rows (claim, held, control failed, seeds where not), and whether all is well; an error counts against all."""
    rows, good = [("claim", "held", "control failed", "not for seeds")], True
    for key in dict.fromkeys(claim["key"] for result in results for claim in result["claims"]):
        found = {r["seed"]: next((c for c in r["claims"] if c["key"] == key), None) for r in results}
        held = [seed for seed, claim in found.items() if claim and claim["held"]]
        rejected = [seed for seed, claim in found.items() if claim and claim["rejected"] is not False]
        controlled = any(claim and claim["rejected"] is not None for claim in found.values())
        missed = sorted(set(found) - (set(held) & set(rejected)))
        good &= min(len(held), len(rejected)) >= ENOUGH * len(results)
        control = f"{len(rejected)}/{len(results)}" if controlled else "–"
        rows.append((key, f"{len(held)}/{len(results)}", control, " ".join(map(str, missed))))
    return rows, good and len(rows) > 1


def aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Rows as lines of equal columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the audit and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", help="such as attention/spectral_gap")
    parser.add_argument("--seeds", type=int, default=100, help="how many (100)")
    parser.add_argument("--first-seed", type=int, default=1, help="the first of them (1)")
    parser.add_argument("--workers", type=int, default=-1, help="processes (one per core)")
    parser.add_argument("--root", type=Path, default=ROOT, help="the book's folder")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: need at least 1")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    try:
        results = audit(Book(options.root.resolve()), options.notebook, seeds, options.workers)
    except BookError as error:
        parser.error(str(error))
    rows, good = table(results)
    print("\n".join(aligned(rows)))
    for result in results:
        if result["error"]:
            print(f"seed {result['seed']} ended with an error:\n{result['error']}")
    print(f"{options.notebook}: {'every claim is good' if good else 'NOT GOOD'} at {ENOUGH:.0%} of {len(seeds)} seeds")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
