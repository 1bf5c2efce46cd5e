"""Facts about the Markdown pages that need no built site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "docs" / "findings" / "generated"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(p for p in sorted((ROOT / "docs").rglob("*.md")) if GENERATED not in p.parents),
]
LISTS = sorted((ROOT / "docs" / "contributing").glob("*.md"))
#: packages without API page: commands are on their own page, and nobody calls the compiler
WITHOUT_API_PAGE = {"cli", "compile"}
#: folders whose files the pages name by their path from the root
FOLDERS = "eepolicy|analysis|benchmarks|pocket|tests|docs"


def named_paths(page: Path) -> set[str]:
    """Paths in backticks; `NAME` stands for the reader's own file."""
    text = page.read_text()
    paths = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", text))
    return {path for path in paths if "NAME" not in path}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_files_exist(page):
    assert [path for path in sorted(named_paths(page)) if not (ROOT / path).exists()] == []


def test_pages_name_files():
    assert len(set().union(*map(named_paths, PAGES))) > 50


def test_readme_is_one_screen():
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    assert max(row.count(" | ") + 1 for row in rows) <= 6
    assert len(text.splitlines()) <= 65
    assert text.count("\n![") == 2  # badges, and the result
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert [len(block.splitlines()) <= 10 for block in blocks] == [True]


def test_readme_has_a_place_for_the_table_of_compare():
    text = (ROOT / "README.md").read_text()
    found = re.search(
        r"<!-- compare table -->\n\n(.*?)\n\n<!-- end of compare table -->", text, re.S
    )
    assert found is not None
    assert found[1].startswith("| policy | ")


@pytest.mark.parametrize("page", LISTS, ids=lambda p: p.name)
def test_lists_for_contributors_are_short(page):
    steps = [int(n) for n in re.findall(r"^(\d+)\. ", page.read_text(), re.MULTILINE)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) <= 10
    assert (page.name == "index.md") == (not steps)


def test_every_kind_of_addition_has_a_list():
    kinds = {"acceptance", "column", "family", "fill", "head", "policy"}
    assert {p.stem for p in LISTS} == kinds | {"index", "speech-model", "statistic", "study"}


def test_packages_have_api_pages():
    """Each page is in the navigation and on the first page."""
    pages = {p.name: p.read_text() for p in (ROOT / "docs" / "api").glob("*.md")}
    shown = set(re.findall(r"^::: eepolicy\.(\w+)", "\n".join(pages.values()), re.MULTILINE))
    packages = {file.parent.name for file in (ROOT / "eepolicy").glob("*/__init__.py")}
    assert packages - shown == WITHOUT_API_PAGE
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in pages:
        assert f": api/{page}\n" in navigation or page == "index.md"
        assert f"]({page})" in pages["index.md"] or page == "index.md"
