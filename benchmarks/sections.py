"""Sections of Markdown pages that commands write.

A section stands between `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

from __future__ import annotations

import re

from eepolicy.errors import EepolicyError

_SECTION = re.compile(r"<!-- ([^\n]+?) -->(.*?)<!-- end of \1 -->", re.DOTALL)


def sections(page: str) -> dict[str, str]:
    """The text of each section of a page, by its name."""
    return {name: text.strip() for name, text in _SECTION.findall(page)}


def section(page: str, name: str) -> str:
    """The text of a section.

    Raises:
        EepolicyError: the page has no such section.
    """
    found = sections(page)
    if name not in found:
        raise EepolicyError(f"the page has no '<!-- {name} -->' with '<!-- end of {name} -->'")
    return found[name]


def filled(page: str, name: str, text: str) -> str:
    """A page with another text in a section: a block if the new or old text has several lines.

    Raises:
        EepolicyError: the page has no such section.
    """
    section(page, name)
    text = text.strip()

    def replaced(match: re.Match[str]) -> str:
        if match[1] != name:
            return match[0]
        space = "\n\n" if "\n" in text + match[2] else ""
        return f"<!-- {name} -->{space}{text}{space}<!-- end of {name} -->"

    return _SECTION.sub(replaced, page)
