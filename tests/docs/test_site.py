"""The built site and a report, as a browser sees them."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
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


class Links(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        self.anchors |= {held[k] for k in ("id", "name") if held.get(k)}
        if tag == "a" and held.get("href"):
            self.links.append(held["href"])
        if tag in ("script", "img", "audio", "source", "iframe") and held.get("src"):
            self.loaded.append(held["src"])
        if tag == "link" and held.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(held["href"])


def pages() -> dict[str, Links]:
    found = sorted(SITE.rglob("*.html"))
    return {str(p.relative_to(SITE)): Links(p.read_text()) for p in found if p.name != "404.html"}


@built
def test_no_link_is_dead():
    held = pages()
    assert len(held) > 15
    dead = []
    for page, found in held.items():
        for link in found.links:
            whole, anchor = urldefrag(urljoin(f"http://site/{page}", link))
            if urlparse(whole).netloc != "site":
                continue
            path = unquote(urlparse(whole).path).lstrip("/")
            file = path + "index.html" if not path or path.endswith("/") else path
            there = (SITE / file).exists()
            if there and anchor and file in held:
                there = unquote(anchor) in held[file].anchors
            if not there:
                dead.append((page, link))
    assert dead == []


@built
def test_nothing_is_loaded_from_outside():
    outside = {
        (page, what)
        for page, found in pages().items()
        for what in found.loaded
        if urlparse(what).scheme in ("http", "https")
    }
    assert outside == set()


def console(address: str, profile: Path, width: int = 1300) -> tuple[str, list[str]]:
    """What a page is when its scripts have run, and what it complained about."""
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
@pytest.mark.parametrize("page", ["", "findings/drift/", "api/policies/"])
def test_pages_open_without_complaint(page, address, tmp_path):
    shown, complaints = console(address + page, tmp_path)
    assert complaints == []
    assert "<h1" in shown


@built
def test_search_knows_the_pages():
    held = json.loads((SITE / "search" / "search_index.json").read_text())["docs"]
    assert any("spark:triple" in entry["text"] for entry in held)
    assert {"findings/drift/", "api/policies/"} <= {e["location"].split("#")[0] for e in held}


@browser
def test_a_report_opens_as_a_file(run, tmp_path):
    run("compare", "static@14", "--prompts", "1", "--out", str(tmp_path / "run"))
    page = (tmp_path / "run" / "index.html").resolve()
    alone = tmp_path / "alone.html"  # it needs nothing of its folder
    alone.write_bytes(page.read_bytes())
    shown, complaints = console(alone.as_uri(), tmp_path / "profile", width=400)
    assert complaints == []
    assert shown.count("<audio") == 2
    assert shown.count("<rect") > 4
