"""The first code cell of a notebook, where the book has a public address: on Colab, it fetches the book's ``lib``.

The address is ``repository: url:`` of ``_config.yml`` and nothing else. While it is empty there is no such cell.
"""

import nbformat
import yaml
from nbformat.v4 import new_code_cell

from tools.layout import Book

TAG = "setup"
_SOURCE = """\
# Opened away from the book, as on Colab, this fetches its lib; elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("lib") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "git+{url}"], check=True)
    importlib.invalidate_caches()"""


def with_setup(book: Book, notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the setup cell that the book's address asks for, below the title, or with none."""
    config = book.root / "_config.yml"
    settings = (yaml.safe_load(config.read_text(encoding="utf-8")) or {}) if config.exists() else {}
    url = (settings.get("repository") or {}).get("url")
    notebook.cells = [cell for cell in notebook.cells if TAG not in cell.metadata.get("tags", [])]
    if url:
        # Colab brings torch and what else lib needs; --no-deps keeps its own builds.
        cell = new_code_cell(_SOURCE.format(url=url), metadata={"tags": [TAG, "remove-cell"]})
        notebook.cells.insert(1, cell)
    return notebook
