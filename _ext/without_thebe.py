"""Keep Thebe out of the pages.

Jupyter Book always loads ``sphinx_thebe``, which writes its inline script twice on each page; the second declaration of
the same constants is an error in the reader's console. The book has no live cells, so what writes it is disconnected.
"""

from typing import Any

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Disconnect; Jupyter Book sets ``sphinx_thebe`` up before any local extension."""
    # Its static path stays: the style sheet that it has registered already comes from there.
    for event in ("env-before-read-docs", "doctree-resolved"):
        for listener in list(app.events.listeners[event]):
            if listener.handler.__module__ == "sphinx_thebe":
                app.disconnect(listener.id)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
