"""Write the results of a comparison into README and docs: `python -m tools.results report`.

With pages after the folder, it writes these pages alone, without pictures.  A page has a block
between `<!-- compare NAME -->` and `<!-- end of compare NAME -->`: the short table of the README,
or the whole `results.md`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from benchmarks.sections import filled, sections
from eepolicy.analysis.evaluation.results_files import short_table
from eepolicy.analysis.tables import markdown_table
from eepolicy.io import read_json, read_text, write_text

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"


def blocks(report: Path) -> dict[str, str]:
    """The blocks by name.

    Args:
        report: folder of a comparison.
    """
    headings, *lines = short_table(read_json(report / "results.json"))
    table = markdown_table(headings, [[f"`{policy}`", *cells] for policy, *cells in lines])
    return {"compare table": table, "compare results": read_text(report / "results.md")}


def updated(text: str, parts: dict[str, str]) -> str:
    """A page with its blocks written anew."""
    for name in sections(text).keys() & parts.keys():
        text = filled(text, name, parts[name])
    return text


def main() -> None:
    """Write all pages."""
    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m tools.results FOLDER_OF_A_COMPARISON [PAGE ...]")
    report, *pages = map(Path, sys.argv[1:])
    parts = blocks(report)
    for page in pages or (ROOT / "README.md", ROOT / "docs" / "results.md"):
        write_text(page, updated(read_text(page), parts))
    if pages:
        return
    for picture in ("summary.png", "quality.png", "agreement.png"):
        shutil.copyfile(report / picture, IMAGES / picture)


if __name__ == "__main__":
    main()
