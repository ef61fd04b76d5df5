"""Buttons that need the book's public address: Colab, Binder, repository, issues.

The address is ``repository: url:`` of ``_config.yml`` and nothing else. The theme fails on launch buttons without an
address, and Jupyter Book on repository buttons; so none of them is configured there, and they are added here.
"""

from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

LAUNCH_BUTTONS = {
    "notebook_interface": "jupyterlab",
    "colab_url": "https://colab.research.google.com",
    "binderhub_url": "https://mybinder.org",
}
ORDER = ("Colab", "Binder")  # Colab starts in seconds; Binder may build an image first


def add_buttons(app: Sphinx, config: Config) -> None:
    """Turn the buttons on when there is an address, and the theme's defaults off when there is none."""
    options = config.html_theme_options
    known = bool(options.get("repository_url"))
    options["launch_buttons"] = LAUNCH_BUTTONS if known else {}
    options["use_repository_button"] = options["use_issues_button"] = known


def order_launch_buttons(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Put the launch buttons in the order of ``ORDER``; the theme has its own."""
    for group in context.get("header_buttons", []):
        if group.get("label") == "launch-buttons":
            group["buttons"].sort(key=lambda button: ORDER.index(button["text"]))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect before the theme reads its options (100) and after it has made its buttons (900)."""
    app.connect("config-inited", add_buttons, priority=100)
    app.connect("html-page-context", order_launch_buttons, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
