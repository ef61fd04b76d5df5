"""``{claims}``: every claim of the book, an overview per chapter and a table per page, from the executed notebooks.

The records come from the notebooks' outputs (``lib.claims.MIME``), in the order of the table of contents. Where a run
at the paper's scale has left ``<claims_paper_dir>/<chapter>/<notebook>.ipynb``, its figures stand beside the book's.
A claim that fails is a warning, so that a strict build fails and names the notebook and the claim.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from lib.claims import MIME, Claim, number, text_and_math

log = logging.getLogger(__name__)

HEADING = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)
STATUSES = ("agrees", "agrees in trend", "differs", "not attempted")
COLUMNS = {"Claim": 28, "Predicted": 9, "Measured": 13, "Tolerance": 20, "Control": 18, "Verdict": 12}
OVERVIEW = {"Claim": 8, "Page": 40, "Checks": 10, "Verdicts": 42}
PAPER_COLUMNS = {"At the paper's scale": 13, "Verdict there": 10}


@dataclass(frozen=True)
class Row:
    """A claim, the page it stands on, and the same claim at the paper's scale, if that was run."""

    uri: str
    here: Claim | None
    paper: Claim | None

    @property
    def claim(self) -> Claim:
        """The claim to name and state: this run's where there is one (a case may exist at the paper's scale only)."""
        return self.here or self.paper


def read_claims(notebook: Path) -> tuple[list[Claim], str]:
    """The claims that ``notebook`` carries, and the id of the heading above the first of them."""
    claims, heading, anchor = [], "", ""
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "markdown":
            heading = ([heading, *HEADING.findall(cell.source)])[-1]
        for output in cell.get("outputs", []):
            if MIME in output.get("data", {}):
                claims += [Claim(**record) for record in output["data"][MIME]]
                anchor = anchor or nodes.make_id(heading)
    return claims, anchor


def page_title(notebook: Path) -> str:
    """The first heading of a notebook."""
    cells = nbformat.read(notebook, as_version=4).cells
    return next(HEADING.findall(c.source)[0] for c in cells if c.cell_type == "markdown" and HEADING.search(c.source))


def in_reading_order(site_map: Any) -> Iterator[str]:
    """Document names in the order of the table of contents."""

    def walk(docname: str) -> Iterator[str]:
        yield docname
        for child in site_map[docname].child_files():
            yield from walk(child)

    yield from walk(site_map.root.docname)


def unbroken(text: str) -> str:
    """The same text on one line."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def with_math(text: str) -> list[nodes.Node]:
    """Text nodes, and math nodes for what stands between dollar signs."""
    return [nodes.math(p, p) if i % 2 else nodes.Text(p) for i, p in enumerate(text_and_math(text)) if p]


def note(text: str) -> nodes.paragraph:
    """A second, smaller line in a cell."""
    return nodes.paragraph("", "", *with_math(text), classes=["claim-note"])


def plain(text: str) -> nodes.paragraph:
    """The first line of a cell."""
    return nodes.paragraph("", "", *with_math(text))


def claim_cell(row: Row) -> list[nodes.Node]:
    """Id (linked to the page that checks it), tag, case, statement, source."""
    claim = row.claim
    link = nodes.reference("", "", nodes.strong("", claim.id), refuri=row.uri, internal=True)
    tag = nodes.inline("", claim.tag, classes=["claim-tag"])
    case = [nodes.Text(" "), *with_math(claim.case)] if claim.case else []
    head = nodes.paragraph("", "", link, nodes.Text(" "), tag, *case)
    return [head, plain(claim.statement), note(claim.source)]


def control_cell(claim: Claim) -> list[nodes.Node]:
    """What was changed, what came out, and whether the rule rejected it."""
    if claim.control is None:
        return [note(claim.no_control)] if claim.no_control else []
    return [note(f"{claim.control['description']}: {claim.control_outcome}")]


def cells(row: Row, with_paper: bool) -> list[list[nodes.Node]]:
    """The cells of one row, in the order of the columns."""
    claim, there = row.here, row.paper
    if claim is None:
        here = [[], [], [], [], [plain("not run at this scale")]]
    else:
        tolerance = [plain(number(claim.tolerance)), note(claim.tolerance_from)]
        here = [[plain(claim.bound)], [plain(unbroken(claim.interval))], tolerance, control_cell(claim)]
        here.append([plain(claim.verdict), *([note(claim.reason)] if claim.reason else [])])
    paper = []
    if with_paper:
        paper = [[], []]
        if there is not None:
            paper = [[plain(unbroken(there.interval)), note(f"predicted {there.bound}")], [plain(there.verdict)]]
    return [claim_cell(row), *here, *paper]


def state(row: Row) -> str:
    """CSS class of a row."""
    runs = [claim for claim in (row.here, row.paper) if claim is not None]
    return nodes.make_id("claim " + ("failed" if any(not c.passed for c in runs) else row.claim.status))


def table(rows: list[Row]) -> nodes.table:
    """One page's claims; each cell repeats its column's name, for screens where a row becomes a card."""
    with_paper = any(row.paper for row in rows)
    columns = COLUMNS | (PAPER_COLUMNS if with_paper else {})
    head = nodes.row("", *(nodes.entry("", nodes.paragraph("", name)) for name in columns))
    body = []
    for row in rows:
        entries = []
        for name, content in zip(columns, cells(row, with_paper), strict=True):
            label = nodes.paragraph("", name, classes=["claim-label"])
            entries.append(nodes.entry("", *([label, *content] if content else [])))
        body.append(nodes.row("", *entries, classes=[state(row)]))
    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in columns.values()), cols=len(columns))
    group += [nodes.thead("", head), nodes.tbody("", *body)]
    return nodes.table("", group, classes=["claims"])


def summary(rows: list[Row]) -> nodes.paragraph:
    """How many claims there are, and how many of each status."""
    found = [row.here for row in rows if row.here is not None]
    counts = Counter(claim.status for claim in found)
    counts["fails"] = sum(not claim.passed for claim in found)
    said = ", ".join(f"{status} {counts[status]}" for status in (*STATUSES, "fails") if counts[status])
    text = f"Claims {len({c.id for c in found})}, checks {len(found)}: {said}." if found else "No claims yet."
    return nodes.paragraph("", "", nodes.strong("", text), classes=["claims-summary"])


def overview(pages: dict[str, list[Row]]) -> nodes.table:
    """A line for each claim id: where it is checked, how often, and what came out."""
    lines: dict[str, list[tuple[str, Row]]] = {}
    for title, rows in pages.items():
        for row in rows:
            if row.here is not None:
                lines.setdefault(row.here.id, []).append((title, row))
    body = []
    for id in sorted(lines, key=lambda id: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", id)]):
        title, first = lines[id][0]
        found = [row.here for _, row in lines[id]]
        counts = Counter(claim.status if claim.passed else "fails" for claim in found)
        verdicts = ", ".join(f"{status} {counts[status]}" for status in (*STATUSES, "fails") if counts[status])
        link = nodes.reference("", "", nodes.Text(title), refuri=first.uri, internal=True)
        content = [plain(id), nodes.paragraph("", "", link), plain(str(len(found))), plain(verdicts)]
        body.append(nodes.row("", *(nodes.entry("", cell) for cell in content)))
    head = nodes.row("", *(nodes.entry("", nodes.paragraph("", name)) for name in OVERVIEW))
    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in OVERVIEW.values()), cols=len(OVERVIEW))
    group += [nodes.thead("", head), nodes.tbody("", *body)]
    return nodes.table("", group, classes=["claims-overview"])


class ClaimsPage(SphinxDirective):
    """The summary line, then for each chapter a heading, its overview, and a heading and a table for each page."""

    def run(self) -> list[nodes.Node]:
        chapters: dict[str, dict[str, list[Row]]] = {}
        for docname in in_reading_order(self.config.external_site_map):
            path = Path(self.env.doc2path(docname))
            if path.suffix == ".ipynb" and (rows := self.rows(docname)):
                chapters.setdefault(Path(docname).parent.name, {})[page_title(path)] = rows
        out: list[nodes.Node] = [
            summary([row for pages in chapters.values() for rows in pages.values() for row in rows])
        ]
        for chapter, pages in chapters.items():
            ids = [f"claims-{chapter}"]
            section = nodes.section("", nodes.title("", self.title(chapter)), overview(pages), ids=ids)
            for title, rows in pages.items():
                anchor = nodes.make_id(f"claims-{chapter}-{title}")
                section += nodes.section("", nodes.title("", title), table(rows), ids=[anchor])
            out.append(section)
        return out

    def rows(self, docname: str) -> list[Row]:
        """The claims of one notebook, paired with those of its run at the paper's scale."""
        here, anchor = self.claims(Path(self.env.doc2path(docname)))
        there, _ = self.claims(Path(self.env.srcdir, self.config.claims_paper_dir, *Path(docname).parts[-2:]))
        page = self.env.app.builder.get_relative_uri(self.env.docname, docname)
        uri = f"{page}#{anchor}" if anchor else page
        by_key = {claim.key: claim for claim in here}
        paper = {claim.key: claim for claim in there}
        return [Row(uri, by_key.get(key), paper.get(key)) for key in by_key | paper]

    def claims(self, notebook: Path) -> tuple[list[Claim], str]:
        """Read ``notebook`` (nothing, where there is none), depend on it, and warn of each claim that fails."""
        notebook = notebook.with_suffix(".ipynb")
        if not notebook.is_file():
            return [], ""
        self.env.note_dependency(str(notebook))
        found, anchor = read_claims(notebook)
        for claim in found:
            if not claim.passed:
                log.warning("claim %s of %s %s", claim.key, notebook, claim.verdict, type="claims", subtype="failed")
        return found, anchor

    def title(self, chapter: str) -> str:
        """The chapter's title: the first heading of its index page."""
        return HEADING.findall(Path(self.env.srcdir, "chapters", chapter, "index.md").read_text(encoding="utf-8"))[0]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive and where runs at the paper's scale are looked for, relative to the book's source."""
    app.add_config_value("claims_paper_dir", "_build/paper", "env", [str])
    app.add_directive("claims", ClaimsPage)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
