"""``make refresh``: run the committed notebooks and rewrite them, so that the same run always gives the same file."""

import hashlib

import nbformat

from tools.book import cores, cost, job, remember
from tools.execute import Outcome, execute, report
from tools.keys import notebook_key
from tools.layout import Book, BookError, read, write
from tools.setup_cell import with_setup

KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}


def refresh(book: Book, name: str | None) -> None:
    """Run every notebook, or one; only a notebook whose cells and claims all pass is rewritten."""
    names = sorted(book.select(name), key=lambda name: cost(book, name), reverse=True)
    print(f"Refresh: runs {len(names)} notebook(s) and rewrites them with their outputs", flush=True)

    def keep(outcome: Outcome) -> None:
        name = outcome.job.name
        if not outcome.errors:
            remember(book, name, outcome.seconds)
            noted = read(book.path(name)).metadata.get("book", {}).get("cost_seconds", 0)
            text = as_committed(outcome.job.notebook, _coarse(outcome.seconds, noted))
            write(book.path(name), text)

    jobs = [job(book, name, notebook_key(book, name)) for name in names]
    for one in jobs:
        with_setup(book, one.notebook)
    failed = [outcome for outcome in execute(book, jobs, workers=cores(), keep=keep) if outcome.errors]
    if failed:
        raise BookError(f"{report(failed)}\n{len(failed)} notebook(s) failed and stay as they were")


def as_committed(notebook: nbformat.NotebookNode, cost_seconds: int) -> str:
    """The text of a notebook without anything that differs from run to run or from editor to editor."""
    taken: set[str] = set()
    for cell in notebook.cells:
        cell["id"] = _cell_id(cell.source, taken)
        for volatile in ("execution", "collapsed", "scrolled", "jupyter", "papermill", "ExecuteTime"):
            cell.metadata.pop(volatile, None)
    notebook.metadata = {
        "kernelspec": KERNELSPEC,
        "language_info": {"name": "python"},
        "book": {"cost_seconds": cost_seconds},
    }
    notebook = nbformat.from_dict(notebook | {"nbformat": 4, "nbformat_minor": 5})
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def _cell_id(source: str, taken: set[str]) -> str:
    """A name that comes from the text, so that neither a new cell nor another editor renames the others."""
    repeats = 0
    while True:
        name = hashlib.sha256(f"{source}{repeats or ''}".encode()).hexdigest()[:8]
        if name not in taken:
            taken.add(name)
            return name
        repeats += 1


def _coarse(seconds: float, noted: float) -> int:
    """Whole seconds, and the old number as long as it is right within a factor of two: only the order matters."""
    return int(noted) if noted / 2 <= seconds <= 2 * noted else max(1, round(seconds))
