"""``{paste-figure}``: a figure of a notebook, shown on another page and linked to its notebook.

The figure is the one whose cell is named so in its metadata, ``mystnb: {figure: {name}, image: {alt}}``::

    ```{paste-figure} chapters/attention/rank_collapse
    :figure: fig-attention-collapse
    ```

MyST-NB's own cross-page paste knows no alt text and does not copy the image; hence this directive.
"""

import base64
import hashlib
import os
from pathlib import Path
from typing import Any, ClassVar

import nbformat
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def named_figure(notebook: Path, name: str) -> tuple[bytes, str] | None:
    """The PNG and the alt text of the cell of ``notebook`` whose figure has that name, or None."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        told = cell.metadata.get("mystnb", {})
        if told.get("figure", {}).get("name") == name:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output["data"]["image/png"]), told.get("image", {}).get("alt", "")
    return None


class PasteFigure(SphinxDirective):
    """An image node made from a notebook's figure, inside a link to its notebook."""

    required_arguments = 1
    option_spec: ClassVar = {"figure": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        docname, name = self.arguments[0], self.options.get("figure", "")
        notebook = Path(self.env.srcdir, f"{docname}.ipynb")
        if not notebook.is_file():
            raise self.error(f"paste-figure: there is no notebook {notebook}")
        self.env.note_dependency(str(notebook))
        found = named_figure(notebook, name)
        if found is None:
            raise self.error(f"paste-figure: {docname}.ipynb has no figure {name!r}; give its name as :figure:")
        png, alt = found
        # Beside the doctrees, as MyST-NB does it: build output, never in the source tree's own folders.
        image = Path(self.env.doctreedir).parent / "pasted" / f"{hashlib.sha256(png).hexdigest()}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(png)
        page_folder = Path(self.env.srcdir, self.env.docname).parent
        node = nodes.image(uri=os.path.relpath(image, page_folder), alt=alt)
        uri = self.env.app.builder.get_relative_uri(self.env.docname, docname)
        return [nodes.paragraph("", "", nodes.reference("", "", node, refuri=uri, internal=True), classes=["pasted"])]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("paste-figure", PasteFigure)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
