"""The claims that a notebook carries in its outputs, read back."""

import nbformat

from lib.claims import MIME, Claim, number
from tools.keys import code_cells


def claims_of(notebook: nbformat.NotebookNode) -> list[tuple[int, Claim]]:
    """Every claim with the number of the code cell that checked it, as Jupyter shows it."""
    found = []
    for position, cell in enumerate(code_cells(notebook), 1):
        for output in cell.get("outputs", []):
            found += [(position, Claim(**record)) for record in output.get("data", {}).get(MIME, [])]
    return found


def failures(notebook: nbformat.NotebookNode) -> list[str]:
    """One line for each claim that did not come out as the book says."""
    return [f"cell [{position}]: claim {why(claim)}" for position, claim in claims_of(notebook) if not claim.passed]


def why(claim: Claim) -> str:
    """What a failed claim compared."""
    text = f"{claim.key} fails: predicted {claim.bound}, measured {claim.interval}, tolerance {number(claim.tolerance)}"
    if claim.control and not claim.control["fails"]:
        text += f"; its control passes ({claim.control['description']})"
    return text


def table(claims: list[Claim]) -> str:
    """The claims of a run as aligned text."""
    head = ("claim", "predicted", "measured", "tolerance", "verdict")
    rows = [head, *(_row(claim) for claim in claims)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _row(claim: Claim) -> tuple[str, ...]:
    return (claim.key, claim.bound, claim.interval, number(claim.tolerance), claim.verdict)
