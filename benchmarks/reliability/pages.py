"""Pages with generated sections."""

from __future__ import annotations

import re

from eepolicy.errors import EepolicyError


def filled(page: str, name: str, text: str) -> str:
    """A page with a text between `<!-- NAME -->` and `<!-- end of NAME -->`.

    Raises:
        EepolicyError: the page has no such comments.
    """
    match = _section(page, name)
    return f"{page[: match.start(1)]}{text.strip()}\n{page[match.end(1) :]}"


def section(page: str, name: str) -> str:
    """The text of a page between the comments of `filled`.

    Raises:
        EepolicyError: the page has no such comments.
    """
    return _section(page, name)[1].strip()


def _section(page: str, name: str) -> re.Match[str]:
    match = re.search(rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->", page, re.DOTALL)
    if match is None:
        raise EepolicyError(f"the page has no '<!-- {name} -->' with '<!-- end of {name} -->'")
    return match
