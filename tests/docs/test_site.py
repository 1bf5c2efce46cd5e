"""The built site and a report in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import threading
from collections import Counter
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "site"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.slow
built = pytest.mark.skipif(not SITE.is_dir(), reason="no site/: 'make docs' builds it")
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: Debian's package has it")


class Page(HTMLParser):
    """Links, loaded files, anchors and title of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.titles = {"title": "", "h1": ""}
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self._tag = "h1" if values.get("class") == "headerlink" else tag
        self.anchors |= {values[k] for k in ("id", "name") if values.get(k)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag in ("script", "img", "audio", "source", "iframe") and values.get("src"):
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(values["href"])

    def handle_endtag(self, tag):
        self._tag = ""

    def handle_data(self, data):
        if self._tag in self.titles and not self.titles[self._tag]:
            self.titles[self._tag] = data.strip()


def pages() -> dict[str, Page]:
    files = sorted(SITE.rglob("*.html"))
    return {str(p.relative_to(SITE)): Page(p.read_text()) for p in files if p.name != "404.html"}


def target(page: str, link: str) -> str:
    """Path in the site that a link of a page leads to; empty for another site."""
    parts = urlparse(urljoin(f"http://site/{page}", link))
    path = unquote(parts.path).lstrip("/")
    return path if parts.netloc == "site" else ""


@built
def test_only_what_pages_need_is_published():
    sources = {".toml", ".py", ".ipynb", ".md", ".sh", ".txt", ".yaml"}
    published = {str(f.relative_to(SITE)) for f in SITE.rglob("*") if f.suffix in sources}
    linked = {target(page, link) for page, content in pages().items() for link in content.links}
    assert published <= linked


@built
def test_no_link_is_dead():
    site = pages()
    assert len(site) > 15
    dead = []
    for page, content in site.items():
        for link in content.links:
            whole, anchor = urldefrag(urljoin(f"http://site/{page}", link))
            if urlparse(whole).netloc != "site":
                continue
            path = unquote(urlparse(whole).path).lstrip("/")
            file = path + "index.html" if not path or path.endswith("/") else path
            exists = (SITE / file).exists()
            if exists and anchor and file in site:
                exists = unquote(anchor) in site[file].anchors
            if not exists:
                dead.append((page, link))
    assert dead == []


@built
def test_nothing_is_loaded_from_outside():
    outside = {
        (page, url)
        for page, content in pages().items()
        for url in content.loaded
        if urlparse(url).scheme in ("http", "https") or url.startswith("//")
    }
    assert outside == set()


@built
@pytest.mark.parametrize("tag", ["title", "h1"])
def test_page_titles_are_unique(tag):
    titles = Counter(content.titles[tag] for content in pages().values())
    assert "" not in titles
    assert [title for title, count in titles.items() if count > 1] == []


def console(address: str, profile: Path, width: int = 1300) -> tuple[str, list[str]]:
    """The document after its scripts ran, and the messages of the console."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            f"--window-size={width},900",
            "--virtual-time-budget=5000",
            "--enable-logging=stderr",
            "--dump-dom",
            address,
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture
def address():
    handler = partial(SimpleHTTPRequestHandler, directory=str(SITE))
    handler.log_message = lambda *_: None
    served = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}/"
    served.shutdown()


@built
@browser
@pytest.mark.parametrize(
    "page", ["", "findings/drift/", "api/policies/", "examples/probe_a_model/"]
)
def test_pages_open_without_complaint(page, address, tmp_path):
    document, messages = console(address + page, tmp_path)
    assert messages == []
    assert "<h1" in document


@built
@browser
@pytest.mark.parametrize(
    "page",
    [
        *("", "recipes/", "api/policies/", "contributing/policy/"),
        *("examples/first_policy/", "examples/probe_a_model/", "examples/compare_and_listen/"),
    ],
)
@pytest.mark.parametrize("width", [400, 1280])
def test_pages_do_not_scroll_sideways(page, width, address, tmp_path):
    """Wide tables and code scroll in their own boxes; at 1280 pixels no code is cut off."""
    probe = """<script>addEventListener("load", () => setTimeout(() => {
        const cut = [...document.querySelectorAll("pre > code")]
            .filter((code) => code.scrollWidth > code.clientWidth + 1);
        const wide = document.documentElement.scrollWidth - innerWidth;
        document.body.dataset.wide = wide;
        document.body.dataset.cut = cut.map((code) => code.textContent.slice(0, 60)).join("|");
    }, 500))</script></body>"""
    source = SITE / page / "index.html"
    measured = source.with_name(f"measured-{width}.html")
    measured.write_text(source.read_text().replace("</body>", probe))
    try:
        document, _ = console(f"{address}{page}{measured.name}", tmp_path, width)
    finally:
        measured.unlink()
    sizes = dict(re.findall(r'data-(wide|cut)="([^"]*)"', document))
    assert int(sizes["wide"]) <= 0
    if width >= 1280:
        assert sizes["cut"] == ""


@built
@browser
def test_figures_zoom_on_click(address, tmp_path):
    document, _ = console(f"{address}findings/drift/", tmp_path)
    assert re.search(r'<a class="glightbox"[^>]*href="[^"]*drift\.svg"', document)


def searched(word: str) -> set[str]:
    """Pages with a word, by the site's search index."""
    entries = json.loads((SITE / "search" / "search_index.json").read_text())["docs"]
    return {
        entry["location"].split("#")[0]
        for entry in entries
        if word.lower() in f"{entry['title']} {entry['text']}".lower()
    }


@built
@pytest.mark.parametrize(
    ("word", "page"),
    [
        ("spark:triple", "recipes/"),
        ("cite", "citing/"),
        ("bibtex", "citing/"),
        ("latex", "recipes/"),
        ("notebook", "recipes/"),
        ("notebook", "examples/first_policy/"),
        ("harness", "recipes/"),
        ("jupyter", "recipes/"),
        ("parallel", "recipes/"),
        ("glossary", "glossary/"),
        ("drift", "findings/drift/"),
        ("ExitPolicy", "api/policies/"),
    ],
)
def test_search_finds_a_page(word, page):
    assert page in searched(word)


@built
def test_api_signatures_are_not_cut_off():
    """A formatter splits long signatures; without one a signature is a single long line."""
    text = (SITE / "api" / "index.html").read_text()
    blocks = re.findall(r'<div class="[^"]*doc-signature highlight">(.*?)</div>', text, re.DOTALL)
    lines = [
        line
        for block in blocks
        for line in html.unescape(re.sub(r"<[^>]+>", "", block)).splitlines()
    ]
    assert len(lines) > 50
    assert max(map(len, lines)) <= 88


@browser
def test_a_report_opens_as_a_file(run, tmp_path):
    run("compare", "static@14", "--prompts", "1", "--out", str(tmp_path / "run"))
    page = (tmp_path / "run" / "index.html").resolve()
    alone = tmp_path / "alone.html"  # it needs nothing of its folder
    alone.write_bytes(page.read_bytes())
    document, messages = console(alone.as_uri(), tmp_path / "profile", width=400)
    assert messages == []
    assert document.count("<audio") == 2
    assert document.count("<rect") > 4
