"""HTML for notebooks: everything is escaped, and a click sorts a table."""

from __future__ import annotations

import html

import pytest
from chromium import CHROMIUM, Browser

from eepolicy.html import paragraph, picture, sortable_table

HARMFUL = "<script>alert('1')</script> & \"2\""


def test_all_text_is_escaped():
    for shown in (
        paragraph(HARMFUL),
        sortable_table([HARMFUL], [[HARMFUL]]),
        picture(b"", HARMFUL),
    ):
        assert "<script" not in shown
        assert html.escape(HARMFUL) in shown


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: Debian's package has it")
def test_a_click_sorts_a_table(tmp_path):
    rows = [["b", "10.5 [9, 11]"], ["c", "–"], ["a", "9.25"], ["d", "-1"]]
    page = tmp_path / "table.html"
    page.write_text("<!DOCTYPE html>" + sortable_table(["name", "value"], rows), "utf-8")
    order = "[...document.querySelectorAll('td:first-child')].map(c => c.textContent).join('')"
    with Browser(tmp_path / "profile") as browser:
        browser.open(page.as_uri())
        assert browser.run(order) == "bcad"
        seen = []
        for column in (1, 1, 0, 0):
            browser.run(f"document.querySelectorAll('th')[{column}].click()")
            seen.append(browser.run(order))
        assert browser.messages == []
    assert seen == ["dabc", "cbad", "abcd", "dcba"]
