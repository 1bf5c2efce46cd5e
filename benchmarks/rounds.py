"""Figures of fits in rounds, from their folders.

    python -m benchmarks.rounds FOLDER [FOLDER ...] [--fill PAGE]

A folder is the `--workdir` of `eepolicy fit`.  Finished rounds are shown while others still run.
With `--fill` the table replaces what stands between `<!-- rounds -->` and `<!-- end of rounds -->`
on a page.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from eepolicy.analysis.tables import MISSING, markdown_table, number
from eepolicy.errors import EepolicyError
from eepolicy.io import read_json, write_text

_TABLE = re.compile(r"(<!-- rounds -->\n).*?(<!-- end of rounds -->)", re.DOTALL)

#: heading of each column, its key, digits and factor
COLUMNS = (
    ("layers", "layers", 0, 1),
    ("depth", "depth", 0, 1),
    ("questions", "questions", 0, 1),
    ("round", "round", 0, 1),
    ("own replies", "own_replies", 0, 1),
    ("epochs", "epochs", 0, 1),
    ("agreement, %", "agreement", 1, 100),
    ("KL", "kl", 3, 1),
    ("agreement on own replies, %", "agreement_own", 1, 100),
    ("KL on own replies", "kl_own", 3, 1),
    ("WER, %", "wer", 1, 100),
)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Figures of the finished rounds in a folder, by depth and round.

    Raises:
        EepolicyError: no round is finished.
    """
    rows: list[dict[str, Any]] = [
        read_json(file) for file in folder.glob("depth-*/round-*/row.json")
    ]
    if not rows:
        raise EepolicyError(f"{folder} has no finished round: give the --workdir of a fit")
    return sorted(rows, key=lambda row: (row["depth"], row["round"]))


def table(folders: list[Path]) -> str:
    """A row for each finished round."""
    rows = [row for folder in folders for row in rows_of(folder)]
    cells = [
        [
            MISSING if row.get(key) is None else number(row[key], digits, scale)
            for _, key, digits, scale in COLUMNS
        ]
        for row in rows
    ]
    return markdown_table([heading for heading, *_ in COLUMNS], cells)


def filled(page: str, text: str) -> str:
    """A page with the table in its place.

    Raises:
        EepolicyError: the page has no place for it.
    """
    if not _TABLE.search(page):
        raise EepolicyError("the page has no '<!-- rounds -->' with '<!-- end of rounds -->'")
    return _TABLE.sub(lambda match: f"{match[1]}\n{text.strip()}\n\n{match[2]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--fill", type=Path, help="page to write the table to")
    args = parser.parse_args()
    text = table(args.folders)
    print(text)
    if args.fill:
        write_text(args.fill, filled(args.fill.read_text(encoding="utf-8"), text))


if __name__ == "__main__":
    main()
