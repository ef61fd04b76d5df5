"""``make serve``: the built site on a local web server."""

from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from tools.layout import Book, BookError


def serve(book: Book, port: str) -> None:
    """Serve ``_build/site`` to this machine only, until Ctrl-C."""
    site = book.build / "site"
    if not (site / "index.html").exists():
        raise BookError(f"{site} holds no site yet; run: make book")
    if not (port.isdecimal() and 0 < int(port) < 65536):
        raise BookError(f"PORT={port}: give a number from 1 to 65535, such as PORT=8000")
    try:
        server = ThreadingHTTPServer(("127.0.0.1", int(port)), partial(SimpleHTTPRequestHandler, directory=str(site)))
    except OSError as error:
        raise BookError(f"PORT={port}: {error.strerror}; choose another, such as PORT=8765") from error
    print(f"Serves {site} at http://127.0.0.1:{port}/ (Ctrl-C ends it)", flush=True)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()
