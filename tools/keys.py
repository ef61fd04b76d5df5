"""Content keys: a notebook has to run again when, and only when, something it computes with has changed.

The key is a SHA-256 over the notebook's code and tags, the files of ``lib/`` that it imports, directly or not, the
lock, and the Python version. File times, prose and stored outputs do not enter it.
"""

import ast
import hashlib
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

import nbformat

from tools.layout import Book, read

PACKAGE = "lib"


def notebook_key(book: Book, name: str, extra: str = "") -> str:
    """The key of a notebook as it is committed; ``extra`` is whatever else its results depend on."""
    cells = code_cells(read(book.path(name)))
    digest = hashlib.sha256()
    for part in (platform.python_version(), (book.root / "requirements.txt").read_text(), extra):
        _add(digest, part)
    for cell in cells:
        _add(digest, cell.source)
        _add(digest, " ".join(sorted(cell.metadata.get("tags", []))))
    for path in imported_files(book.root, [cell.source for cell in cells]):
        _add(digest, str(path.relative_to(book.root)))
        _add(digest, path.read_text())
    return digest.hexdigest()[:32]


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells that run; an empty one does not."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def imported_files(root: Path, sources: Iterable[str]) -> list[Path]:
    """The files of ``lib/`` that these sources import, and that those import in turn, sorted."""
    everything = sorted((root / PACKAGE).rglob("*.py"))
    modules = {_module(root, path): path for path in everything}
    found: set[str] = set()
    queue = [(source, "") for source in sources]
    while queue:
        source, importer = queue.pop()
        try:
            names = set(_imports(source, importer))
        except SyntaxError:  # running it will say what is wrong; until then it may depend on anything
            return everything
        for name in sorted(names & modules.keys() - found):
            found.add(name)
            package = name if modules[name].name == "__init__.py" else name.rpartition(".")[0]
            queue.append((modules[name].read_text(), package))
    return sorted(modules[name] for name in found)


def _imports(source: str, package: str) -> Iterator[str]:
    """Dotted names that a source imports, with their parents; those that are no module are harmless."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            yield from _parents(base)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _parents(name: str) -> Iterator[str]:
    """``a``, ``a.b`` and ``a.b.c`` for ``a.b.c``: Python runs the file of each."""
    parts = name.split(".")
    yield from (".".join(parts[:i]) for i in range(1, len(parts) + 1))


def _module(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _add(digest: "hashlib._Hash", text: str) -> None:
    """The length goes first, so that no two lists of parts run into the same bytes."""
    data = text.encode()
    digest.update(len(data).to_bytes(8, "big") + data)
