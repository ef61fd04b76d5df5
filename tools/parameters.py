"""The cell tagged ``parameters``: its names and defaults, and whether new values would fit them."""

import ast
from typing import Any

import nbformat

from tools.keys import code_cells
from tools.layout import BookError

TAG = "parameters"


def parameter_cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The one code cell tagged ``parameters``."""
    cells = [cell for cell in code_cells(notebook) if TAG in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise BookError(f"found {len(cells)} cells tagged {TAG!r}; a notebook has exactly one")
    return cells[0]


def defaults(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """Names and values; only plain assignments of literals are parameters."""
    values = {}
    for node in ast.parse(parameter_cell(notebook).source).body:
        plain = isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
        try:
            if not plain:
                raise ValueError
            values[node.targets[0].id] = ast.literal_eval(node.value)
        except ValueError:
            raise BookError(f"the cell tagged {TAG!r} holds more than literals: {ast.unparse(node)}") from None
    return values


def misfits(notebook: nbformat.NotebookNode, given: dict[str, Any]) -> list[str]:
    """What is wrong with ``given``: papermill would only warn of an unknown name, and run for nothing."""
    known = defaults(notebook)
    problems = []
    for name, value in given.items():
        if name not in known:
            problems.append(f"unknown parameter {name!r}; use some of: {', '.join(known)}")
        elif _kind(value) != _kind(known[name]) and None not in (value, known[name]):
            hint = "; YAML reads 1e-3 as text, write 1.0e-3" if isinstance(value, str) else ""
            problems.append(
                f"{name} = {value!r} is {_kind(value)}, its default {known[name]!r} is {_kind(known[name])}{hint}"
            )
    return problems


def _kind(value: Any) -> str:
    """int and float count as one, and so do list and tuple, of which YAML has only the first."""
    if isinstance(value, bool | str):
        return type(value).__name__
    if isinstance(value, int | float):
        return "number"
    return "list" if isinstance(value, list | tuple) else type(value).__name__
