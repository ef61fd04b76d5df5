"""What a committed notebook looks like. Each rule is a function from a notebook to what is wrong with it."""

import ast
import re
from collections.abc import Iterator

import nbformat

from tools.keys import code_cells
from tools.layout import BookError
from tools.parameters import defaults, parameter_cell
from tools.records import claims_of, failures
from tools.refresh import KERNELSPEC

Problems = Iterator[str]
LONGEST_CELL = 15
VOLATILE = ("execution", "ExecuteTime", "papermill")
IMAGES = ("image/png", "image/svg+xml", "image/jpeg")
SECONDS = re.compile(r"\bseconds=|\b\d[\d.]* ?(s|ms|min|seconds|minutes)\b")


def problems(notebook: nbformat.NotebookNode) -> list[str]:
    """Everything that keeps a notebook from being committed."""
    cells = list(enumerate(code_cells(notebook), 1))
    found = [*_metadata(notebook), *_parameters(notebook), *_claims(notebook)]
    for number, cell in cells:
        for rule in (_executed, _plain, _short, _figures, _streams, _clock):
            found += [f"cell [{number}]: {problem}" for problem in rule(number, cell)]
    return found


def _metadata(notebook: nbformat.NotebookNode) -> Problems:
    if notebook.metadata.get("kernelspec") != KERNELSPEC:
        yield f"kernelspec is not {KERNELSPEC}; run make refresh"
    for holder in (notebook, *notebook.cells):
        for name in VOLATILE:
            if name in holder.metadata:
                yield f"metadata {name!r} differs from run to run; run make refresh"


def _parameters(notebook: nbformat.NotebookNode) -> Problems:
    """One cell of plain literals, each with a comment on its line or above it, the seed among them."""
    try:
        names = defaults(notebook)
    except BookError as error:
        yield str(error)
        return
    if "seed" not in names:
        yield "parameters: there is no seed"
    source = parameter_cell(notebook).source
    lines = source.splitlines()
    for node in ast.parse(source).body:
        above = lines[node.lineno - 2] if node.lineno > 1 else ""
        own = lines[node.lineno - 1 : node.end_lineno]
        if "#" not in "".join(own) and not above.lstrip().startswith("#"):
            yield f"parameters: {ast.unparse(node)} has no comment"


def _claims(notebook: nbformat.NotebookNode) -> Problems:
    if not claims_of(notebook):
        yield "no claim: show a lib.claims.Claims"
    yield from failures(notebook)


def _executed(number: int, cell: nbformat.NotebookNode) -> Problems:
    """nbval passes a notebook that was stripped of its outputs; this does not."""
    if cell.execution_count != number:
        yield f"execution count is {cell.execution_count}; run make refresh"


def _plain(number: int, cell: nbformat.NotebookNode) -> Problems:
    try:
        ast.parse(cell.source)
    except SyntaxError as error:
        yield f"not plain Python ({error.msg}); no magics, no shell"


def _short(number: int, cell: nbformat.NotebookNode) -> Problems:
    lines = [line for line in cell.source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) > LONGEST_CELL:
        yield f"{len(lines)} lines of code, more than {LONGEST_CELL}; move some to lib"


def _figures(number: int, cell: nbformat.NotebookNode) -> Problems:
    """A figure has a text for those who cannot see it, a caption, and a name to refer to."""
    if not any(mime in output.get("data", {}) for output in cell.outputs for mime in IMAGES):
        return
    told = cell.metadata.get("mystnb", {})
    for group, name in (("image", "alt"), ("figure", "caption"), ("figure", "name")):
        if not str(told.get(group, {}).get(name, "")).strip():
            yield f"a figure without mystnb.{group}.{name} in the cell's metadata"


def _streams(number: int, cell: nbformat.NotebookNode) -> Problems:
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"an error is stored: {output.ename}"
        if output.get("name") == "stderr":
            yield f"text on stderr is stored: {output.text[:60]!r}"


def _clock(number: int, cell: nbformat.NotebookNode) -> Problems:
    """Seconds are different in every run, so nbval must not compare them."""
    if "nbval-ignore-output" in cell.metadata.get("tags", []):
        return
    for output in cell.outputs:
        data = output.get("data", {})
        texts = [output.get("text", ""), *(data.get(f"text/{kind}", "") for kind in ("plain", "markdown", "html"))]
        if any(SECONDS.search(text) for text in texts):
            yield "prints seconds; tag it nbval-ignore-output"
            return
