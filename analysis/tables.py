"""Tables of text: Markdown, LaTeX, and the frames that CSV and Parquet files are written from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from eepolicy.errors import EepolicyError

#: cell of a value that was not measured
MISSING = "–"

LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
} | {character: "\\" + character for character in "&%$#_{}"}


def read_table(file: Path, columns: Iterable[str] = (), rows: int | None = None) -> pd.DataFrame:
    """Read a table that a study stored as CSV.

    Args:
        file: the file.
        columns: columns that it must have.
        rows: number of rows that it must have; None for any number.

    Raises:
        EepolicyError: it cannot be read, lacks a column, or has another number of rows.
    """
    again = "delete the file, and it is measured again"
    try:
        # only an empty cell is missing: words such as "None" and "null" are words
        table = pd.read_csv(file, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise EepolicyError(f"{file} is no table in CSV: {error}; {again}") from error
    lacking = [column for column in columns if column not in table]
    if lacking:
        raise EepolicyError(f"{file} has no column {lacking[0]!r}; {again}")
    if rows is not None and len(table) != rows:
        raise EepolicyError(f"{file} has {len(table)} rows, not {rows}; {again}")
    return table


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Format a table as GitHub-flavoured Markdown.

    Args:
        headings: column headings.
        rows: cells of each row, one per heading. A `|` within a cell is escaped.

    Returns:
        The table without a final newline.

    Raises:
        ValueError: a row has more or fewer cells than there are headings.

    Examples:
        >>> print(markdown_table(["policy", "WER, %"], [["`full`", "1.5"], ["`a|b`", "–"]]))
        | policy | WER, % |
        |---|---|
        | `full` | 1.5 |
        | `a\|b` | – |
    """
    lines = [_markdown_row(headings), "|---" * len(headings) + "|"]
    for row in rows:
        if len(row) != len(headings):
            raise ValueError(f"a row has {len(row)} cells for {len(headings)} headings: {row}")
        lines.append(_markdown_row(row))
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = (re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in cells)
    return f"| {' | '.join(escaped)} |"


def markdown_code(text: str) -> str:
    """Format a text as a Markdown code span on one line, whatever it contains.

    Examples:
        >>> print(markdown_code("spark:triple@14"), markdown_code("a`b"))
        `spark:triple@14` `` a`b ``
    """
    line = " ".join(text.split("\n"))
    runs = re.findall("`+", line)
    if not runs:
        return f"`{line}`"
    fence = "`" * (max(map(len, runs)) + 1)
    return f"{fence} {line} {fence}"


def latex_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Format a table for the LaTeX package booktabs: first column left, all others right.

    Args:
        headings: column headings, as LaTeX code (see `latex_escape`).
        rows: cells of each row, as LaTeX code.

    Returns:
        A `tabular` environment with a final newline.

    Examples:
        >>> print(latex_table(["policy", r"WER, \%"], [[r"\texttt{full}", "1.5"]]), end="")
        \begin{tabular}{lr}
        \toprule
        policy & WER, \% \\
        \midrule
        \texttt{full} & 1.5 \\
        \bottomrule
        \end{tabular}
    """
    return "\n".join(
        [
            r"\begin{tabular}{l" + "r" * (len(headings) - 1) + "}",
            r"\toprule",
            " & ".join(headings) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def latex_escape(text: str) -> str:
    r"""Escape the characters that LaTeX treats specially.

    Examples:
        >>> print(latex_escape("spark:FEEE~@14, 95%"))
        spark:FEEE\textasciitilde{}@14, 95\%
    """
    return "".join(LATEX_ESCAPES.get(character, character) for character in text)


def number(value: float | None, digits: int = 2, scale: float = 1.0, sign: bool = False) -> str:
    """Format a number with fixed digits; `–` for None and NaN.

    Args:
        value: the number.
        digits: digits after the decimal point.
        scale: factor to multiply by, such as 100 for a share in percent.
        sign: write `+` before positive numbers.

    Examples:
        >>> number(0.125, 1, 100), number(0.5, sign=True), number(None)
        ('12.5', '+0.50', '–')
    """
    if value is None or math.isnan(value):
        return MISSING
    return f"{scale * value:{'+' if sign else ''}.{digits}f}"


def with_interval(
    value: float | None,
    interval: tuple[float | None, float | None],
    digits: int = 2,
    scale: float = 1.0,
    sign: bool = False,
) -> str:
    """Format an estimate with its interval in brackets; `–` for None and NaN.

    Args:
        value: the estimate.
        interval: its lower and upper bounds.
        digits: digits after the decimal point.
        scale: factor to multiply all three by.
        sign: write `+` before positive numbers.

    Examples:
        >>> with_interval(0.125, (0.1, 0.15), 1, 100), with_interval(None, (None, None))
        ('12.5 [10.0, 15.0]', '–')
    """
    if value is None or math.isnan(value):
        return MISSING
    low, high = (number(bound, digits, scale, sign) for bound in interval)
    return f"{number(value, digits, scale, sign)} [{low}, {high}]"


def csv_text(frame: pd.DataFrame) -> str:
    """Format a data frame as CSV that spreadsheet programs do not compute.

    A text that begins like a formula (`=`, `+`, `-`, `@`) gets an apostrophe in front.

    Examples:
        >>> print(csv_text(pd.DataFrame({"policy": ["=1+1", "full"], "loss": [-1, 2]})), end="")
        policy,loss
        '=1+1,-1
        full,2
    """

    def harmless(value: Any) -> Any:
        risky = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
        return f"'{value}" if risky else value

    return str(frame.map(harmless).to_csv(index=False))


def to_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Make a data frame of rows; columns without any value become float columns of NaN.

    CSV and Parquet files written from the frame then have the same types.

    Examples:
        >>> to_frame([{"policy": "full", "wer": None}]).wer.dtype
        dtype('float64')
    """
    frame = pd.DataFrame(rows)
    return frame.astype({name: float for name in frame if frame[name].isna().all()})
