"""A copy of the book's source with executed notebooks, and the site built from it, once for each content."""

import hashlib
import json
import shutil
from pathlib import Path

import nbformat

from tools import site
from tools.layout import Book, BookError, write
from tools.paper import current_results

# Not part of the site: what is made, what checks, and what the commands are made of.
_LEFT_OUT = ("_build", "tools", "tests", "benchmarks", "*.egg-info", "__pycache__", ".*")


def stage(book: Book, destination: Path, executed: dict[str, nbformat.NotebookNode] | None) -> Path:
    """Copy the source to ``destination``, replacing what is there.

    Args:
        executed: results that stand in for the committed notebooks, with those at the paper's scale beside them
            where they are up to date; None leaves the notebooks as they are committed.
    """
    shutil.rmtree(destination, ignore_errors=True)
    shutil.copytree(book.root, destination, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    for name, notebook in (executed or {}).items():
        write(destination / "chapters" / f"{name}.ipynb", nbformat.writes(notebook) + "\n")
    for name, path in (current_results(book) if executed is not None else {}).items():
        copy = destination / "_build" / "paper" / f"{name}.ipynb"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return destination


def build_site(staged: Path, destination: Path, *, log: Path) -> tuple[Path, bool]:
    """Build the site, unless the last build was of the same content; returns its index and whether it was built."""
    key, stamp = _content(staged), destination.with_name(f"{destination.name}.json")
    if stamp.exists():
        last = json.loads(stamp.read_text())
        if last["key"] == key and Path(last["index"]).exists():
            return Path(last["index"]), False
        stamp.unlink()
    print(f"Site: builds it in {destination}", flush=True)
    try:
        index = site.build(staged, destination, log=log)
    except site.SiteError as error:
        raise BookError(str(error)) from error
    write(stamp, json.dumps({"key": key, "index": str(index)}))
    return index, True


def _content(folder: Path) -> str:
    """SHA-256 over the names and bytes of every file."""
    digest = hashlib.sha256(Path(site.__file__).read_bytes())
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(data)} ".encode() + data)
    return digest.hexdigest()
