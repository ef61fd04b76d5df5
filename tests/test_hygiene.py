"""The committed notebooks are in order, and each rule is seen to refuse what it is there for."""

import copy
from collections import Counter
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from lib.claims import MIME, Claims, Estimate, claim
from tools.hygiene import problems
from tools.layout import Book, read
from tools.records import claims_of
from tools.refresh import KERNELSPEC
from tools.setup_cell import with_setup

BOOK = Book(Path(__file__).parent.parent)
NOTEBOOKS = sorted((BOOK.root / "chapters").glob("*/[!.]*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_notebook_is_in_order(path):
    assert problems(read(path)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_cell_for_colab_fits_the_address(path):
    assert [c.source for c in with_setup(BOOK, read(path)).cells] == [c.source for c in read(path).cells], (
        "make refresh"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_stripped_copy_is_refused(path):
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    found = problems(notebook)
    assert any("execution count is None" in problem for problem in found)
    assert any("no claim" in problem for problem in found)


def test_every_notebook_is_in_the_table_of_contents():
    assert sorted(BOOK.path(name) for name in BOOK.notebooks()) == NOTEBOOKS


def test_a_claim_belongs_to_one_notebook():
    places = {(c.id, path) for path in NOTEBOOKS for _, c in claims_of(read(path))}
    assert [name for name, n in Counter(name for name, _ in places).items() if n > 1] == []


def good():
    """A notebook without fault: parameters, a figure, a claim, the seconds it took."""
    parameters = new_code_cell("seed = 1  # any integer\n# the paper's value\nscale = (1, 2)", execution_count=1)
    parameters.metadata["tags"] = ["parameters"]
    figure = new_code_cell("plt.show()", execution_count=2)
    figure.outputs = [new_output("display_data", {"image/png": "AA=="})]
    figure.metadata["mystnb"] = {"image": {"alt": "a line"}, "figure": {"caption": "A line.", "name": "fig-line"}}
    record = Claims(claim("T1", "s", predicted=1, measured=Estimate(1), source="p", no_control="n")).record()
    claims = new_code_cell("Claims(one)", execution_count=3)
    claims.outputs = [new_output("execute_result", {MIME: record, "text/plain": "1 agrees"}, execution_count=3)]
    clock = new_code_cell("print(seconds)", execution_count=4)
    clock.outputs = [new_output("stream", name="stdout", text="12.3 s\n")]
    clock.metadata["tags"] = ["nbval-ignore-output"]
    return new_notebook(cells=[parameters, figure, claims, clock], metadata={"kernelspec": dict(KERNELSPEC)})


def test_a_good_notebook_has_no_problems():
    assert problems(good()) == []


def _fail(nb):
    nb.cells[2].outputs[0].data[MIME][0]["passed"] = False


BAD = {
    "execution count is 7": lambda nb: nb.cells[1].update(execution_count=7),
    "kernelspec is not": lambda nb: nb.metadata.kernelspec.update(name="conda"),
    "metadata 'execution' differs": lambda nb: nb.cells[0].metadata.update(execution={"t": 1}),
    "metadata 'papermill' differs": lambda nb: nb.metadata.update(papermill={}),
    "found 0 cells tagged 'parameters'": lambda nb: nb.cells[0].metadata.clear(),
    "found 2 cells tagged 'parameters'": lambda nb: nb.cells[1].metadata.update(tags=["parameters"]),
    "holds more than literals: n = 2 * 3": lambda nb: nb.cells[0].update(source="seed = 1  # s\nn = 2 * 3  # n"),
    "there is no seed": lambda nb: nb.cells[0].update(source="n = 2  # size"),
    "n = 2 has no comment": lambda nb: nb.cells[0].update(source="seed = 1  # s\nn = 2"),
    "not plain Python": lambda nb: nb.cells[1].update(source="%matplotlib inline"),
    "16 lines of code": lambda nb: nb.cells[1].update(source="x = 1\n" * 16),
    "without mystnb.image.alt": lambda nb: nb.cells[1].metadata.mystnb.image.update(alt=" "),
    "without mystnb.figure.caption": lambda nb: nb.cells[1].metadata.mystnb.figure.pop("caption"),
    "without mystnb.figure.name": lambda nb: nb.cells[1].metadata.mystnb.figure.pop("name"),
    "an error is stored: E": lambda nb: nb.cells[1].outputs.append(new_output("error", ename="E")),
    "text on stderr": lambda nb: nb.cells[1].outputs.append(new_output("stream", name="stderr", text="w")),
    "prints seconds": lambda nb: nb.cells[3].metadata.clear(),
    "no claim": lambda nb: nb.cells[2].outputs.clear(),
    "claim T1 fails": _fail,
}


@pytest.mark.parametrize(("message", "spoil"), BAD.items(), ids=BAD)
def test_each_rule_refuses(message, spoil):
    notebook = copy.deepcopy(good())
    spoil(notebook)
    assert message in "\n".join(problems(notebook))


def test_comments_and_blank_lines_do_not_count():
    notebook = good()
    notebook.cells[1].source = "# why\n\n" * 20 + "x = 1\n" * 15
    assert problems(notebook) == []
