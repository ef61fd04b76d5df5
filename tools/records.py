"""The claims that a notebook carries in its outputs, read back."""

from typing import Any

import nbformat

from lib.claims import MIME, Claim
from tools.keys import code_cells


def claims_of(notebook: nbformat.NotebookNode) -> list[tuple[int, Claim]]:
    """Every claim with the number of the code cell that checked it, as Jupyter shows it."""
    found = []
    for number, cell in enumerate(code_cells(notebook), 1):
        for output in cell.get("outputs", []):
            found += [(number, Claim(**record)) for record in output.get("data", {}).get(MIME, [])]
    return found


def failures(notebook: nbformat.NotebookNode) -> list[str]:
    """One line for each claim that did not come out as the book says."""
    return [f"cell [{number}]: claim {why(claim)}" for number, claim in claims_of(notebook) if not claim.passed]


def why(claim: Claim) -> str:
    """What a failed claim compared."""
    text = f"{claim.key} fails: {comparison(claim)}"
    if claim.control and not claim.control["fails"]:
        text += f"; its control passes ({claim.control['description']})"
    return text


def comparison(claim: Claim) -> str:
    """``measured 1 ± 0.1, predicted at most 2, tolerance 0.1``."""
    bound = {"=": "", "<": "at most ", ">": "at least "}[claim.relation]
    return (
        f"measured {_number(claim.measured)} ± {_number(claim.half_width)}, "
        f"predicted {bound}{_number(claim.predicted)}, tolerance {_number(claim.tolerance)}"
    )


def table(claims: list[Claim]) -> str:
    """The claims of a run as aligned text."""
    head = ("claim", "predicted", "measured", "tolerance", "verdict")
    rows = [head, *(_row(claim) for claim in claims)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _row(claim: Claim) -> tuple[str, ...]:
    numbers = (_number(x) for x in (claim.predicted, claim.measured, claim.tolerance))
    return (claim.key, *numbers, claim.status if claim.passed else "FAILS")


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}"
