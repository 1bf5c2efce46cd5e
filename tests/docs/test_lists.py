"""The lists of plug-ins in README and docs are those of the classes."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from conftest import own_plugins

from eepolicy.codebooks import CODEBOOK_POLICIES, MISSING_CODES
from eepolicy.decode.acceptance import ACCEPTANCE_RULES
from eepolicy.decode.fills import FILLS
from eepolicy.heads import KINDS
from eepolicy.policies import POLICIES
from eepolicy.registry import Entry
from tools import formats, lists

ROOT = Path(__file__).parents[2]
TABLES = (POLICIES, FILLS, ACCEPTANCE_RULES, CODEBOOK_POLICIES, MISSING_CODES, KINDS)


@pytest.fixture
def only_own_plugins(monkeypatch) -> None:
    """Without the plug-ins that other tests and examples in the docs register in this process."""
    for table in TABLES:
        monkeypatch.setattr(table, "_objects", own_plugins(table))


@pytest.mark.usefixtures("only_own_plugins")
def test_pages_are_up_to_date(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lists", "--check"])
    code = lists.main()
    assert code == 0, capsys.readouterr().out


def test_docs_have_lists():
    for name in ("policy-names", "fill-names", "acceptance-names"):
        assert f"<!-- list: {name} -->" in (ROOT / "docs" / "features.md").read_text()
    assert "<!-- list: policies -->" in (ROOT / "docs" / "policies.md").read_text()


def test_a_list_is_written_between_its_marks():
    page = "before <!-- list: fill-names -->old<!-- end of list: fill-names --> after"
    new = lists.updated(page)
    assert new.startswith("before <!-- list: fill-names -->`catch_up`, `mask`")
    assert new.endswith("`<!-- end of list: fill-names --> after")
    assert lists.updated(new) == new


def test_a_stale_page_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lists, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    page = tmp_path / "README.md"
    page.write_text("<!-- list: fills --><!-- end of list: fills -->")
    monkeypatch.setattr(sys, "argv", ["lists", "--check"])
    assert lists.main() == 1
    assert "out of date: README.md; run python -m tools.lists" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["lists"])
    assert lists.main() == 0
    assert "| `catch_up` | " in page.read_text()
    monkeypatch.setattr(sys, "argv", ["lists", "--check"])
    assert lists.main() == 0


def test_a_table_links_papers_and_escapes_pipes():
    entries = [
        Entry("a", "a", "a", "x | y", "Paper", "https://example.org"),
        Entry("b", "b", "b", "z"),
    ]
    assert lists.table(entries).splitlines()[2:] == [
        "| `a` | x \\| y | [Paper](https://example.org) |",
        "| `b` | z |  |",
    ]


def test_the_page_of_formats_has_every_schema_and_key():
    """A schema is a subclass of pydantic's model in a file of the library."""
    classes = {
        node.name
        for top in ("eepolicy", "analysis")
        for path in (ROOT / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and {"FileFormat", "BaseModel"} & {ast.unparse(base) for base in node.bases}
    }
    assert classes - {"FileFormat"} == {schema.__name__ for schema in formats.FILES}
    tables = formats.format_tables()
    assert "| `seconds` | number from 0 | required | duration |" in tables
    assert not re.findall(r"^\| `\w+` \|.*\|  \|$", tables, re.MULTILINE)  # a key without a meaning
    for schema in formats.FILES:
        section = tables.split(f"### {schema.__name__}\n")[1].split("\n### ")[0]
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [*schema.model_fields]
