"""``make test``: every check of the book, each run whatever became of the others, and one summary."""

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.kernels import ONE_THREAD
from tools.layout import Book, BookError
from tools.stage import build_site, stage

WORKERS = ("-n", "2")
NBVAL = ("--nbval", "--nbval-current-env", "--dist", "loadfile", "-p", "no:cacheprovider")


@dataclass
class Result:
    """How a step ended. A step that counts nothing is one test."""

    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    note: str = ""


def make_test(book: Book) -> None:
    """Run all steps and print what each found."""
    print("Test: ruff, pytest, nbval, the strict site from the committed notebooks, the site in a browser", flush=True)
    notebooks = [str(book.path(name).relative_to(book.root)) for name in book.notebooks()]
    out = book.build / "test"
    out.mkdir(parents=True, exist_ok=True)
    index: list[Path] = []
    steps: list[tuple[str, Callable[[], Result]]] = [
        ("ruff check", lambda: _command(book, "ruff", "check")),
        ("ruff format", lambda: _command(book, "ruff", "format", "--check")),
        ("pytest", lambda: _pytest(book, out / "pytest.xml", "tests", "--ignore=tests/test_site.py", *WORKERS)),
        ("nbval", lambda: _pytest(book, out / "nbval.xml", *notebooks, *NBVAL, *WORKERS)),
        ("site", lambda: _site(book, out, index)),
        ("browser", lambda: _browser(book, out, index)),
    ]
    results = [_timed(name, step) for name, step in steps]
    print(f"\n{summary(results)}")
    if any(result.failed for result in results):
        raise BookError("make test failed")


def summary(results: list[Result]) -> str:
    """One line a step, then the totals."""
    lines = []
    for r in results:
        counts = f"{r.passed} passed, {r.failed} failed, {r.skipped} skipped"
        lines.append(f"  {r.name:<12} {r.seconds:6.1f} s  {counts}{'; ' + r.note if r.note else ''}")
    passed, failed, skipped = (sum(getattr(r, what) for r in results) for what in ("passed", "failed", "skipped"))
    lines.append(f"  {'total':<12} {sum(r.seconds for r in results):6.1f} s")
    return "\n".join([*lines, f"{passed} passed, {failed} failed, {skipped} skipped"])


def _timed(name: str, step: Callable[[], Result]) -> Result:
    print(f"\n== {name}", flush=True)
    began = time.monotonic()
    result = step()
    result.name, result.seconds = name, time.monotonic() - began
    return result


def _command(book: Book, *arguments: str) -> Result:
    """A module of this environment that passes or fails as a whole."""
    status = subprocess.run([sys.executable, "-m", *arguments], cwd=book.root, check=False).returncode
    return Result("", passed=int(status == 0), failed=int(status != 0))


def _pytest(book: Book, xml: Path, *arguments: str, **environment: str) -> Result:
    """A pytest run in a process of its own, counted from its XML report."""
    xml.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", f"--junitxml={xml}", *arguments]
    status = subprocess.run(command, cwd=book.root, env=os.environ | ONE_THREAD | environment, check=False).returncode
    if not xml.exists():
        return Result("", failed=1, note=f"pytest ended with status {status} and no report")
    result = counted(xml)
    if status and not result.failed:  # a crash, or nothing collected
        result.failed, result.note = 1, f"pytest ended with status {status}"
    return result


def counted(xml: Path) -> Result:
    """Totals of a pytest report; errors count as failures, and the first reason for skipping is told."""
    suite = ElementTree.parse(xml).getroot().find("testsuite")
    count = {what: int(suite.get(what, 0)) for what in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    reason = next((element.get("message", "") for element in suite.iter("skipped")), "")
    passed = count["tests"] - failed - count["skipped"]
    return Result("", passed=passed, failed=failed, skipped=count["skipped"], note=reason)


def _site(book: Book, out: Path, index: list[Path]) -> Result:
    """The strict build from the notebooks as they are committed; a success leaves its page in ``index``."""
    try:
        staged = stage(book, out / "stage", executed=None)
        index.append(build_site(staged, out / "site", log=out / "site.log")[0])
    except BookError as error:
        print(error)
        return Result("", failed=1)
    return Result("", passed=1)


def _browser(book: Book, out: Path, index: list[Path]) -> Result:
    """The built site in a headless browser, where there is one."""
    if not index:
        return Result("", skipped=1, note="no site to look at")
    return _pytest(book, out / "browser.xml", "tests/test_site.py", BOOK_SITE=str(index[0].parent))
