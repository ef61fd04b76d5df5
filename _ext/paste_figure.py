"""``{paste-figure}``: a figure that a notebook has glued, shown on another page and linked to its notebook.

MyST-NB's own cross-page paste knows no alt text and does not copy the image; hence this directive. In the notebook:
``glue("key", fig, display=False)``. On the page::

    ```{paste-figure} chapters/attention/spectral_gap
    :key: fig_spectral_gap
    :alt: what the figure shows
    ```
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

# glue(..., display=False) stores the image under this prefixed type, display=True under the plain one.
PNG = ("application/papermill.record/image/png", "image/png")


def glued_png(notebook: Path, key: str) -> bytes | None:
    """The PNG that ``notebook`` glued under ``key``, or None."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", []):
            if output.get("metadata", {}).get("scrapbook", {}).get("name") == key:
                for mime in PNG:
                    if mime in output["data"]:
                        return base64.b64decode(output["data"][mime])
    return None


class PasteFigure(SphinxDirective):
    """An image node made from a glued figure, inside a link to its notebook."""

    required_arguments = 1
    option_spec: ClassVar = {"key": directives.unchanged_required, "alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        docname, key = self.arguments[0], self.options.get("key", "")
        if not key or not self.options.get("alt"):
            raise self.error("paste-figure: give both :key: and :alt:")
        notebook = Path(self.env.srcdir, f"{docname}.ipynb")
        if not notebook.is_file():
            raise self.error(f"paste-figure: there is no notebook {notebook}")
        self.env.note_dependency(str(notebook))
        png = glued_png(notebook, key)
        if png is None:
            raise self.error(
                f'paste-figure: {docname}.ipynb glues no image {key!r}; add glue("{key}", fig, display=False)'
            )
        # Beside the doctrees, as MyST-NB does it: build output, never in the source tree's own folders.
        image = Path(self.env.doctreedir).parent / "pasted" / f"{hashlib.sha256(png).hexdigest()}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(png)
        page_folder = Path(self.env.srcdir, self.env.docname).parent
        node = nodes.image(uri=os.path.relpath(image, page_folder), alt=self.options["alt"])
        uri = self.env.app.builder.get_relative_uri(self.env.docname, docname)
        return [nodes.paragraph("", "", nodes.reference("", "", node, refuri=uri, internal=True), classes=["pasted"])]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("paste-figure", PasteFigure)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
