"""Figures of fits in rounds, from their folders.

    python -m benchmarks.rounds FOLDER [FOLDER ...] [--fill PAGE]

A folder is the `--workdir` of `eepolicy fit`.  Finished rounds are shown while others still run.
With `--fill` the table replaces what stands between `<!-- rounds -->` and `<!-- end of rounds -->`
on a page.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.sections import filled
from eepolicy.analysis.tables import MISSING, markdown_table, number
from eepolicy.errors import EepolicyError
from eepolicy.io import read_json, read_text, write_text

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--fill", type=Path, help="page to write the table to")
    args = parser.parse_args()
    text = table(args.folders)
    print(text)
    if args.fill:
        write_text(args.fill, filled(read_text(args.fill), "rounds", text))


if __name__ == "__main__":
    main()
