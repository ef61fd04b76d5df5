"""Build the book's site, strictly, and put it in place only when it is complete."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

# Jupyter Book has no `python -m`; this runs the one of the current interpreter, its log without colour codes.
_MAIN = "from sphinx.util.console import nocolor; nocolor(); from jupyter_book.cli.main import main; main()"
_JUPYTER_BOOK = (sys.executable, "-c", _MAIN)
_STRICT = ("-W", "-n", "--keep-going", "--all")
_TELLING = re.compile(r"WARNING|ERROR|CRITICAL|Error\b|Exception|Traceback")
_SHOWN = 20


class SiteError(RuntimeError):
    """The strict build failed; the message holds the lines of its log that say why."""


def build(source: Path, destination: Path, *, log: Path) -> Path:
    """Build the book in ``source`` and put its pages at ``destination``.

    The pages are built beside ``destination`` and swapped in by two renames, so that a build that fails or is killed
    leaves the previous site; a kill between the two is repaired by the next call. Each build has a folder of its own:
    the processes of a killed one may live on for a while and must not write into the next.

    Args:
        source: folder with ``_config.yml`` and ``_toc.yml``, all notebooks executed.
        destination: folder that will hold ``index.html``; what is there is replaced.
        log: file for the full output of the build.

    Returns:
        The path of ``index.html``.

    Raises:
        SiteError: the build gave a warning or an error.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    old = destination.with_name(f".{destination.name}.old")
    if old.exists() and not destination.exists():
        old.rename(destination)
    for leftover in destination.parent.glob(f".{destination.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)

    with TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.", ignore_cleanup_errors=True) as work:
        with log.open("w", encoding="utf-8") as out:
            command = [*_JUPYTER_BOOK, "build", str(source), "--path-output", work, *_STRICT]
            status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode
        html = Path(work, "_build", "html")
        if status or not (html / "index.html").is_file():
            raise SiteError(f"the site was not built (exit {status}); full log: {log}\n{_relevant(log)}")
        if destination.exists():
            destination.rename(old)
        html.rename(destination)
    shutil.rmtree(old, ignore_errors=True)
    return destination / "index.html"


def _relevant(log: Path) -> str:
    """The log's warnings and errors, or its last lines where it has none."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    telling = list(dict.fromkeys(line for line in lines if _TELLING.search(line)))
    return "\n".join(telling[:_SHOWN] or lines[-_SHOWN:])
