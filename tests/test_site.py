"""The built site in a headless browser, over a local server and from disk.

``BOOK_SITE`` names the folder with ``index.html``. Every check of a page is one of ``inspect``'s, and each is seen
to fail on a bad page made here.
"""

import os
import re
import shutil
import threading
from collections.abc import Iterator
from functools import lru_cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SITE = Path(os.environ["BOOK_SITE"]).resolve() if "BOOK_SITE" in os.environ else None
CONFIG = yaml.safe_load((Path(__file__).parents[1] / "_config.yml").read_text(encoding="utf-8"))

NO_BROWSER = "no chromium, chromium-browser or google-chrome on the PATH"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)
needs_site = pytest.mark.skipif(SITE is None, reason="BOOK_SITE names no built site")

FLAGS = [
    "--no-sandbox",  # as root, as in a container, Chromium refuses to start with one
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # a request that should not be there stays here
]

# What the page holds once its formulas are typeset: links, images, formulas left raw (code and its outputs excepted).
LOOK = r"""async () => {
  if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
  const text = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode())
    if (!walker.currentNode.parentElement.closest("pre, code, script, style, noscript"))
      text.push(walker.currentNode.data);
  return {
    links: [...document.querySelectorAll("a[href]")].map(a => a.href),
    images: [...document.querySelectorAll("img")].map(i => i.src),
    unnamed: [...document.querySelectorAll("img")].filter(i => !i.alt.trim()).map(i => i.src),
    untypeset: [...document.querySelectorAll(".math")].filter(m => !m.querySelector("mjx-container"))
      .map(m => m.textContent),
    wrong: [...document.querySelectorAll("mjx-merror")].map(m => m.textContent),
    raw: text.flatMap(t => t.match(/\\[(\[]|\$[^$\n]+\$/g) ?? []),
  };
}"""
FIGURES = "article :is(figure, .cell_output, .pasted) img"
CARDS = f"""() => [...document.querySelectorAll("{FIGURES}")].map(i => getComputedStyle(i))
  .map(s => s.backgroundColor + " " + s.filter)"""


class Ids(HTMLParser):
    """The ids of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.found: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {value for name, value in attrs if name == "id" and value}


@lru_cache
def ids(path: Path) -> set[str]:
    """The ids of the page at ``path``, each page read once."""
    return Ids(path.read_text(encoding="utf-8")).found


def dangling(url: str, root: Path, base: str) -> bool:
    """Whether ``url`` points into the site at ``root``, served at ``base``, and finds no file or no such id there."""
    if not url.startswith(base):
        return False
    parts = urlsplit(url)
    path = Path(unquote(parts.path)) if base.startswith("file:") else root / unquote(parts.path).lstrip("/")
    path = path / "index.html" if path.is_dir() else path
    if not path.is_file():
        return True
    return bool(parts.fragment) and path.suffix == ".html" and unquote(parts.fragment) not in ids(path)


def open_page(context: BrowserContext, base: str, problems: list[str]) -> Page:
    """A page that notes in ``problems`` its errors and every request that leaves ``base``."""

    def note_request(url: str) -> None:
        if not url.startswith((base, "data:", "blob:")):
            problems.append(f"request off the machine: {url}")

    page = context.new_page()
    page.on("console", lambda m: problems.append(f"console error: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(f"console error: {error}"))
    page.on("request", lambda request: note_request(request.url))
    return page


def inspect(context: BrowserContext, path: str, root: Path, base: str) -> list[str]:
    """Everything that is wrong with the page ``path`` of the site in the folder ``root``, opened at ``base``."""
    problems: list[str] = []
    page = open_page(context, base, problems)
    page.emulate_media(color_scheme="light")
    page.goto(f"{base}/{path}")
    seen = page.evaluate(LOOK)
    problems += [f"link to nowhere: {url}" for url in dict.fromkeys(seen["links"]) if dangling(url, root, base)]
    problems += [f"missing image: {url}" for url in dict.fromkeys(seen["images"]) if dangling(url, root, base)]
    problems += [f"no alt text: {url}" for url in seen["unnamed"]]
    problems += [f"formula not typeset: {text}" for text in seen["untypeset"] + seen["raw"]]
    problems += [f"formula with an error: {text}" for text in seen["wrong"]]
    page.set_viewport_size({"width": 400, "height": 800})
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.wait_for_function(f"() => (document.documentElement.dataset.theme ?? '{theme}') === '{theme}'")
        width = page.evaluate("() => document.scrollingElement.scrollWidth")
        if width > 400:
            problems.append(f"overflow at 400 px in the {theme} theme: {width} px wide")
    cards = page.evaluate(CARDS)
    problems += [f"no white card in dark mode: {card}" for card in cards if card != "rgb(255, 255, 255) none"]
    page.close()
    return problems


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser: Browser) -> BrowserContext:
    """A reader with a cache and a wide screen."""
    return browser.new_context(viewport={"width": 1280, "height": 800})


class Quiet(SimpleHTTPRequestHandler):
    """A file server without a log."""

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module", params=["http", "file"])
def base(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of the site: on a local server, or on disk."""
    if request.param == "file":
        yield SITE.as_uri()
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def pages() -> list[str]:
    """Every page of the site, by its path."""
    found = SITE.rglob("*.html") if SITE else []
    return sorted(p.relative_to(SITE).as_posix() for p in found if not p.relative_to(SITE).parts[0].startswith("_"))


@needs_site
@pytest.mark.parametrize("path", pages())
def test_page(context: BrowserContext, base: str, path: str):
    assert inspect(context, path, SITE, base) == []


@needs_site
def test_search_finds_stable_rank(context: BrowserContext, base: str):
    problems: list[str] = []
    page = open_page(context, base, problems)
    page.goto(f"{base}/search.html?q=stable+rank")
    page.wait_for_selector("#search-results ul.search li a")
    page.wait_for_selector("#search-results .search-summary:has-text('found')")
    page.wait_for_load_state("networkidle")
    assert problems == []
    page.close()


@needs_site
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_chosen_theme_is_kept(browser: Browser, base: str, theme: str):
    """The reader's choice, kept in local storage, wins over the system's theme."""
    context = browser.new_context(color_scheme="dark" if theme == "light" else "light")
    page = context.new_page()
    page.goto(f"{base}/index.html")
    page.evaluate("theme => { localStorage.mode = theme; localStorage.theme = theme }", theme)
    page.reload()
    assert page.evaluate("() => document.documentElement.dataset.theme") == theme
    context.close()


@needs_site
def test_home_page_fits_one_screen(context: BrowserContext, base: str):
    page = context.new_page()
    page.goto(f"{base}/index.html")
    page.evaluate(LOOK)
    bottom = page.evaluate("() => document.querySelector('article').getBoundingClientRect().bottom")
    assert bottom <= 800
    assert page.locator(FIGURES).count() >= 1
    assert page.locator("article a[href$='claims.html']").count() >= 1
    page.close()


@needs_site
def test_launch_buttons_only_with_an_address():
    services = ["colab.research.google.com", "mybinder.org"]
    notebooks = sorted((SITE / "_sources").rglob("*.ipynb"))
    assert notebooks
    for notebook in notebooks:
        name = notebook.relative_to(SITE / "_sources")
        html = (SITE / name).with_suffix(".html").read_text(encoding="utf-8")
        assert [s for s in services if s in html] == (services if CONFIG["repository"]["url"] else [])
        assert f"_sources/{name.as_posix()}" in html  # the download button


# A page that is good; each bad one differs in one thing.
GOOD = '<html lang="en"><head><title>x</title></head><body><article id="top">{}</article></body></html>'
BAD = {
    "console error: oops": "<script>console.error('oops')</script>",
    "console error: late": "<script>throw 'late'</script>",
    "request off the machine": '<img alt="x" src="http://192.0.2.1/x.png">',
    "link to nowhere": '<a href="absent.html">x</a>',
    "link to nowhere: ": '<a href="#absent">x</a>',
    "missing image": '<img alt="x" src="absent.png">',
    "no alt text": '<img src="dot.png">',
    "formula not typeset: a": '<span class="math">a</span>',
    r"formula not typeset: \(": r"<p>Let \(x\) be</p>",
    "formula not typeset: $x$": "<p>Let $x$ be</p>",
    "formula with an error": '<mjx-container><mjx-merror data-mjx-error="x">x</mjx-merror></mjx-container>',
    "overflow at 400 px in the light": '<div style="width: 500px">x</div>',
    "overflow at 400 px in the dark": (
        "<style>@media (prefers-color-scheme: dark) { p { width: 500px } }</style><p>x</p>"
    ),
    "no white card": '<figure><img alt="x" src="dot.png"></figure>',
}
DOT = (
    '<a href="#top">x</a><img alt="x" src="dot.png"><figure style="margin: 0">'
    '<img alt="x" src="dot.png" style="background: #fff"></figure><p>$5</p><pre>\\( $x$</pre>'
)


@pytest.mark.parametrize(("expected", "body"), [("", DOT), *BAD.items()])
def test_each_check_can_fail(context: BrowserContext, tmp_path: Path, expected: str, body: str):
    (tmp_path / "page.html").write_text(GOOD.format(body), encoding="utf-8")
    png = "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    png += "0000000c49444154789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
    (tmp_path / "dot.png").write_bytes(bytes.fromhex(png))
    problems = inspect(context, "page.html", tmp_path, tmp_path.as_uri())
    assert bool(problems) == bool(expected), problems
    assert any(re.match(re.escape(expected), problem) for problem in problems) or not expected, problems
