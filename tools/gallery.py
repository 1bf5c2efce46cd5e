"""Write the gallery of figures, `docs/gallery.md`: `python -m tools.gallery`.

The entries are in `gallery_entries.py`.  `--pictures` also draws the pictures that no other page
has, with the pocket model, and `--check` changes nothing and fails if the page is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tools.gallery_entries import INTRODUCTION, SECTIONS, Drawing, Section
from tools.gallery_pictures import draw_pictures

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
PICTURES = ROOT / "docs" / "images" / "gallery"
#: width of a picture in pixels; a click shows it in full size
WIDTH = 520


def block(lines: Sequence[str]) -> list[str]:
    """A block of Python."""
    return ["```python", *lines, "```", ""]


def drawing(entry: Drawing) -> list[str]:
    """Lines of one figure: heading, sentence, picture and code."""
    lines = [f"### {entry.title}", "", entry.text, ""]
    if entry.picture:
        lines += [f"![{entry.alt}]({entry.picture}){{ width={WIDTH} }}", ""]
    return lines + block(entry.code)


def section(part: Section) -> list[str]:
    """Lines of one section: heading, text, what its figures share, and the figures."""
    lines = [f"## {part.title}", "", part.text, ""]
    if part.code:
        lines += block(part.code)
    for entry in part.drawings:
        lines += drawing(entry)
    return lines


def page() -> str:
    """The page as Markdown."""
    lines = [INTRODUCTION.strip(), ""]
    for part in SECTIONS:
        lines += section(part)
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write the page, or check it."""
    if "--check" in sys.argv:
        stale = PAGE.read_text(encoding="utf-8") != page()
        if stale:
            print(f"{PAGE.name} is out of date; run python -m tools.gallery")
        return int(stale)
    if "--pictures" in sys.argv:
        draw_pictures(PICTURES)
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
