"""The strict build of a small book that has the real configuration and extensions, one page and one notebook."""

import base64
import re
import shutil
from pathlib import Path

import nbformat
import pytest

from lib.claims import MIME, Claims, Control, Estimate, claim
from tools.site import SiteError, build

BOOK = Path(__file__).parents[1]
PNG = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
        "0000000c49444154789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
    )
).decode()
TOC = """format: jb-book
root: index
chapters:
  - file: chapters/one/index
    sections:
      - file: chapters/one/page
"""
INDEX = """# Home

```{paste-figure} chapters/one/page
:figure: fig-dot
```

```{claims}
```
"""


def claims(measured: float, case: str = "") -> Claims:
    """One claim: 2 is predicted; the control is 3."""
    control = Control("another $x$", measured=Estimate(3.0))
    text = "The value is $2$"
    return Claims(
        claim("Z1", text, predicted=2.0, measured=Estimate(measured), source="a test", control=control, case=case)
    )


def notebook(path: Path, found: Claims) -> None:
    """An executed notebook with a figure and claims."""
    data = found._repr_mimebundle_()
    table = nbformat.v4.new_output("execute_result", {**data, MIME: found.record()}, execution_count=2)
    told = {"mystnb": {"image": {"alt": "a dot"}, "figure": {"name": "fig-dot", "caption": "A dot."}}}
    dot = nbformat.v4.new_output("display_data", {"image/png": PNG})
    cells = [
        nbformat.v4.new_markdown_cell("# Page\n\n## The claims here"),
        nbformat.v4.new_code_cell("pass", outputs=[dot], execution_count=1, metadata=told),
        nbformat.v4.new_code_cell("pass", outputs=[table], execution_count=2),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The small book."""
    source = tmp_path / "source"
    for name in ("_ext", "_static"):
        shutil.copytree(BOOK / name, source / name)
    for name in ("_config.yml", "references.bib"):
        shutil.copy(BOOK / name, source)
    (source / "_toc.yml").write_text(TOC)
    (source / "index.md").write_text(INDEX)
    notebook(source / "chapters" / "one" / "page.ipynb", claims(2.0))
    (source / "chapters" / "one" / "index.md").write_text("# Chapter one\n")
    return source


def test_build_shows_claims_figure_and_no_button_that_needs_an_address(source: Path, tmp_path: Path):
    notebook(source / "_build" / "paper" / "one" / "page.ipynb", claims(2.0, case="large"))
    index = build(source, tmp_path / "site", log=tmp_path / "log")
    assert index == tmp_path / "site" / "index.html"
    html = index.read_text()
    assert "Claims 1, checks 1: agrees 1." in html
    assert 'href="chapters/one/page.html#the-claims-here"' in html
    assert 'id="the-claims-here"' in (tmp_path / "site" / "chapters" / "one" / "page.html").read_text()
    assert "Verdict there" in html
    assert "not run at this scale" in html  # the case that only the paper's scale has
    assert "Chapter one" in html
    (overview,) = re.findall(r'<table class="claims-overview.*?</table>', html, re.DOTALL)
    assert re.findall(r"<p>(?:<a .*?>)?([^<]+)", overview.split("<tbody>")[1])[-2:] == ["1", "agrees 1"]
    assert 'alt="a dot"' in html
    for page in (tmp_path / "site").rglob("*.html"):
        assert not {w for w in ("colab", "mybinder", "github.com/o/r") if w in page.read_text()}, page


def test_build_with_an_address_shows_colab_then_binder(source: Path, tmp_path: Path):
    config = source / "_config.yml"
    config.write_text(config.read_text().replace('url: ""', "url: https://github.com/o/r", 1))
    html = (build(source, tmp_path / "site", log=tmp_path / "log").parent / "chapters/one/page.html").read_text()
    colab = 'href="https://colab.research.google.com/github/o/r/blob/main/chapters/one/page.ipynb"'
    binder = 'href="https://mybinder.org/v2/gh/o/r/main?urlpath=lab/tree/chapters/one/page.ipynb"'
    assert 0 < html.find(colab) < html.find(binder)
    assert 'href="https://github.com/o/r"' in html
    assert 'href="https://github.com/o/r/issues/new' in html


def test_failing_claim_fails_the_build_and_leaves_the_previous_site(source: Path, tmp_path: Path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("previous")
    notebook(source / "chapters" / "one" / "page.ipynb", claims(2.5))
    with pytest.raises(SiteError, match=r"claim Z1 of .*one/page\.ipynb FAILS: differs"):
        build(source, site, log=tmp_path / "log")
    assert (site / "index.html").read_text() == "previous"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "site", "source"]


def test_missing_figure_is_named(source: Path, tmp_path: Path):
    (source / "index.md").write_text(INDEX.replace(":figure: fig-dot", ":figure: other"))
    with pytest.raises(SiteError, match=r"page\.ipynb has no figure 'other'"):
        build(source, tmp_path / "site", log=tmp_path / "log")
