"""Where things are in the book. Every path hangs off one root, so that a test can point the tools at another book."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import nbformat
import yaml


class BookError(Exception):
    """What a command tells its user instead of a traceback."""


@dataclass(frozen=True)
class Book:
    """A book's folder. A notebook's name is its path below ``chapters/``, such as ``attention/spectral_gap``."""

    root: Path

    @property
    def build(self) -> Path:
        """Everything the commands make; safe to delete."""
        return self.root / "_build"

    def path(self, name: str) -> Path:
        """The committed notebook."""
        return self.root / "chapters" / f"{name}.ipynb"

    def notebooks(self) -> list[str]:
        """The notebooks of ``_toc.yml``, in reading order."""
        toc = self.root / "_toc.yml"
        if not toc.exists():
            raise BookError(f"{toc} is missing: is {self.root} the book's folder?")
        files = _files(yaml.safe_load(toc.read_text(encoding="utf-8")))
        names = [file.removeprefix("chapters/") for file in files if file.startswith("chapters/")]
        return [name for name in names if self.path(name).exists()]

    def select(self, name: str | None) -> list[str]:
        """All notebooks, or the one called ``name``; an error lists the names that would work."""
        names = self.notebooks()
        if not name:
            return names
        if name not in names:
            raise BookError(f"NOTEBOOK={name}: no such notebook. Use one of: {', '.join(names) or '(none yet)'}")
        return [name]


def _files(toc: Any) -> Iterator[str]:
    """Every ``file:`` entry of a table of contents, depth first."""
    if isinstance(toc, dict):
        if "file" in toc:
            yield str(toc["file"]).removesuffix(".ipynb")
        for value in toc.values():
            yield from _files(value)
    elif isinstance(toc, list):
        for value in toc:
            yield from _files(value)


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook in format 4."""
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise BookError(f"{path} is not a notebook: {error}") from error


def write(path: Path, text: str) -> None:
    """Write all of ``text`` or nothing: a killed run leaves no half-written file under ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8") as file:
        try:
            file.write(text)
            file.close()
            os.chmod(file.name, 0o644)  # temporary files are private; results are not
            os.replace(file.name, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(file.name)
            raise
