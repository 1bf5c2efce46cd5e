"""Sections of pages that commands write."""

from __future__ import annotations

import pytest

from benchmarks.sections import filled, section, sections
from eepolicy import EepolicyError

PAGE = """a <!-- list: names -->x<!-- end of list: names --> b
<!-- rows -->
old
<!-- end of rows -->
<!-- reasons rows -->
stays
<!-- end of reasons rows -->
<!-- no section -->
"""


def test_a_section_is_replaced_and_others_stay():
    table = r"| \1 |"  # no group of a regular expression
    new = filled(PAGE, "rows", f"\n{table}\n")
    assert new == PAGE.replace("\nold\n", f"\n\n{table}\n\n")
    assert filled(new, "rows", table) == new
    assert sections(new) == {"list: names": "x", "rows": table, "reasons rows": "stays"}


def test_one_line_is_filled_inline_and_several_lines_form_a_block():
    one = filled(PAGE, "list: names", "y")
    assert one == PAGE.replace("x", "y")
    several = filled(PAGE, "list: names", "y\nz")
    assert several.startswith("a <!-- list: names -->\n\ny\nz\n\n<!-- end of list: names --> b")
    assert section(several, "list: names") == "y\nz"


@pytest.mark.parametrize("name", ["no section", "row", "other"])
def test_a_section_that_a_page_lacks_is_named(name):
    with pytest.raises(EepolicyError, match=f"no '<!-- {name} -->' with '<!-- end of {name} -->'"):
        filled(PAGE, name, "text")
