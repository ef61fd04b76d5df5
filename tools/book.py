"""``make book``: run what has changed, merge the results into a copy of the source, build the site."""

import os
import time
from collections.abc import Iterable

import nbformat

from tools.execute import Job, Outcome, execute, report, without_outputs
from tools.keys import code_cells, notebook_key
from tools.layout import Book, BookError, read, write
from tools.stage import build_site, stage


def make_book(book: Book) -> None:
    """Execute, stage and build; notebooks that did not change keep their last results."""
    began = time.monotonic()
    names = book.notebooks()
    keys = {name: notebook_key(book, name) for name in names}
    stale = [name for name in names if _cached(book, name, keys[name]) is None]
    print(f"Book: {len(names)} notebook(s), {len(stale)} to run, {len(names) - len(stale)} up to date", flush=True)
    failed = _execute(book, stale, keys)
    ran = time.monotonic()
    if failed:
        done = len(stale) - len(failed)
        raise BookError(f"{report(failed)}\n{len(failed)} notebook(s) failed, {done} finished and kept; site not built")

    merged = {name: _merge(book, name, _cached(book, name, keys[name])) for name in names}
    staged = stage(book, book.build / "stage", merged)
    index, built = build_site(staged, book.build / "site", log=book.build / "site.log")
    ended = time.monotonic()
    print(f"Notebooks {ran - began:.1f} s, site {ended - ran:.1f} s{'' if built else ' (up to date)'}")
    print(f"Read it:  {index.as_uri()}\n     or:  make serve")


def _execute(book: Book, names: Iterable[str], keys: dict[str, str]) -> list[Outcome]:
    """Run notebooks, the costliest first, keep those that succeed, and return those that do not."""

    def keep(outcome: Outcome) -> None:
        name = outcome.job.name
        if not outcome.errors:
            remember(book, name, outcome.seconds)
            path = _cache(book, name) / f"{keys[name]}.ipynb"
            write(path, nbformat.writes(outcome.job.notebook) + "\n")
            for old in path.parent.glob("*.ipynb"):
                if old != path:
                    old.unlink()

    ordered = sorted(names, key=lambda name: cost(book, name), reverse=True)
    outcomes = execute(book, [job(book, name, keys[name]) for name in ordered], workers=cores(), keep=keep)
    return [outcome for outcome in outcomes if outcome.errors]


def job(book: Book, name: str, key: str) -> Job:
    """A committed notebook, to be run at its own parameters."""
    return Job(name, without_outputs(read(book.path(name))), book.build / "sweeps" / "book" / name / key)


def cores() -> int:
    """Cores this process may use, which in a container is not how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cost(book: Book, name: str) -> float:
    """Seconds of the last run here; before there is one, the coarse cost that `make refresh` has noted."""
    try:
        return float((_cache(book, name) / "seconds").read_text())
    except (FileNotFoundError, ValueError):
        return float(read(book.path(name)).metadata.get("book", {}).get("cost_seconds", 0))


def remember(book: Book, name: str, seconds: float) -> None:
    """Note what a run took, for the order of the next."""
    write(_cache(book, name) / "seconds", f"{seconds:.2f}\n")


def _cache(book: Book, name: str) -> os.PathLike:
    return book.build / "executed" / name


def _cached(book: Book, name: str, key: str) -> nbformat.NotebookNode | None:
    """The results of an earlier run of exactly this, if there are any; a file that is no notebook is not."""
    path = _cache(book, name) / f"{key}.ipynb"
    try:
        return read(path) if path.exists() else None
    except BookError:
        return None


def _merge(book: Book, name: str, results: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The committed prose and code with the results' outputs; equal keys mean equal code."""
    notebook = without_outputs(read(book.path(name)))
    for cell, result in zip(code_cells(notebook), code_cells(results), strict=True):
        cell.outputs, cell.execution_count = result.outputs, result.execution_count
    return notebook
