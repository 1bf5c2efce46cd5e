"""The leaderboard's page in Chromium, from folders made by hand, without a server."""

from __future__ import annotations

import json

import pytest
from board_example import example
from chromium import CHROMIUM, Browser
from page_example import SCRIPT

from eepolicy.analysis.evaluation.leaderboard import Leaderboard, page_document
from eepolicy.analysis.evaluation.leaderboard_runs import read_runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: Debian's package has it"),
]

ROWS = "[...document.querySelectorAll('#table tbody code')].map((code) => code.textContent)"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page's address, and its rows and folders in the order of the page."""
    folder = tmp_path_factory.mktemp("results")
    example(folder / "ours")
    example(folder / "theirs", {"full": (0, 2.0), f"mine:{SCRIPT}": (0, 0.4)}, heads=SCRIPT)
    board = Leaderboard(tuple(read_runs([folder])))
    file = folder / "leaderboard.html"
    file.write_text(board.page(), encoding="utf-8")
    return file.as_uri(), page_document(board)["rows"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(browser, written):
    """The open page; whatever a test does, it must not write to the console nor fetch."""
    browser.open(written[0])
    browser.wait("document.querySelectorAll('#table tbody tr').length > 0")
    yield browser
    assert browser.messages == []
    fetched = [url for url in browser.requests if not url.startswith(("data:", "blob:"))]
    assert set(fetched) == {written[0]}
    assert browser.run("window.ran") is None


def test_the_table_begins_with_the_best_row_and_sorts(page, written):
    policies = [row["policy"] for row in written[1]]
    assert page.run(ROWS) == policies
    page.run("document.querySelector('th[data-name=speedup] button').click()")
    speed = {
        (row["policy"], row["values"]["folder"]["value"]): row["values"]["speedup"]["value"]
        for row in written[1]
    }
    known = [pair for pair in speed if speed[pair] is not None]
    expected = [policy for policy, _ in sorted(known, key=speed.get)]
    assert page.run(ROWS)[: len(known)] == expected != policies[: len(known)]
    page.run("document.querySelector('th[data-name=folder] button').click()")
    assert page.run(ROWS)[-2:] == [
        row["policy"] for row in written[1] if row["values"]["folder"]["value"] == "theirs"
    ]


def test_rows_are_filtered_by_folder_and_verdict(page):
    page.run(
        "byFilter = document.querySelector('#filter'); byFilter.value = 'theirs';"
        "byFilter.dispatchEvent(new Event('input'))"
    )
    assert sorted(page.run(ROWS)) == ["full", f"mine:{SCRIPT}"]
    page.run(
        "byFilter.value = ''; chosen = document.querySelector('#status'); chosen.value = 'worse';"
        "chosen.dispatchEvent(new Event('change'))"
    )
    assert page.run(ROWS) == ["static@4"]


def test_verdicts_folders_and_dark_colours(page):
    text = page.run("document.body.innerText")
    assert "theirs: " in text
    assert json.dumps(SCRIPT)[1:-1] in text  # the heads of a folder, as text
    assert page.run("document.documentElement.dataset.theme") == "light"
    page.run("document.querySelector('#theme').click()")
    assert page.run("document.documentElement.dataset.theme") == "dark"
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 28)"
