"""Tables of a comparison as Markdown and LaTeX, and the files of its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eepolicy.analysis.evaluation.columns import COLUMNS, Column, is_measured, shown_columns
from eepolicy.analysis.evaluation.verdict import MOST_QUESTIONS, p_value
from eepolicy.analysis.tables import (
    MISSING,
    csv_text,
    latex_escape,
    latex_table,
    markdown_code,
    markdown_table,
    number,
    to_frame,
    with_interval,
)
from eepolicy.errors import EepolicyError
from eepolicy.io import write_bytes, write_json, write_text

#: rows of `Comparison.table`
Rows = Sequence[Mapping[str, Any]]

NOT_MEASURED = "not measured"
#: heading of the verdict's status
VERDICT = "verdict"
#: most columns of a table beside the policy
MOST_COLUMNS = 5


def write_results(
    results: Rows,
    folder: str | Path,
    columns: Sequence[Column] = COLUMNS,
    latex_columns: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write `results.json`, `.csv`, `.md` and `.tex`, and `.parquet` if pyarrow is installed.

    Args:
        results: rows of `Comparison.table`.
        folder: folder to write to.
        columns: columns of the comparison.
        latex_columns: names of the columns of `results.tex`, see `latex`.
        notes: sentences for the end of `results.md`.

    Raises:
        EepolicyError: a name in `latex_columns` is unknown.
    """
    folder = Path(folder)
    table = latex(results, columns, latex_columns)
    write_json(folder / "results.json", results, indent=1)
    frame = to_frame(results)
    write_text(folder / "results.csv", csv_text(frame))
    if find_spec("pyarrow"):
        write_bytes(folder / "results.parquet", frame.to_parquet(index=False))
    text = "\n".join([markdown(results, columns), *notes]).rstrip() + "\n"
    write_text(folder / "results.md", text)
    write_text(folder / "results.tex", table)


def cell(row: Mapping[str, Any], column: Column, is_baseline: bool) -> dict[str, str]:
    """Format one policy's value in one column.

    Args:
        row: row of `Comparison.table`.
        column: column of the comparison.
        is_baseline: whether the row is full depth; it has no difference.

    Returns:
        `value`, and if it was measured `interval` and `difference`.
    """
    name, style = column.name, (column.digits, column.scale)
    if row[name] is None:
        return {"value": NOT_MEASURED}
    low, high = (number(row[f"{name}_{end}"], *style) for end in ("low", "high"))
    formatted = {"value": number(row[name], *style), "interval": f"[{low}, {high}]"}
    if not is_baseline and row[f"{name}_diff"] is not None:
        interval = (row[f"{name}_diff_low"], row[f"{name}_diff_high"])
        formatted["difference"] = with_interval(row[f"{name}_diff"], interval, *style, sign=True)
    return formatted


def short_columns(results: Rows, columns: Sequence[Column] = COLUMNS) -> list[Column]:
    """List the columns of the short table: the first measured one of each slot.

    Args:
        results: rows of `Comparison.table`.
        columns: columns of the comparison.
    """
    chosen: dict[str, Column] = {}
    for column in columns:
        if column.short and is_measured(results, column):
            chosen.setdefault(column.short, column)
    return list(chosen.values())


def short_table(results: Rows, columns: Sequence[Column] = COLUMNS) -> list[list[str]]:
    """Format the columns that answer which policy may be used.

    Args:
        results: rows of `Comparison.table`.
        columns: columns of the comparison.

    Returns:
        The headings and one line per policy: the policy, the columns of `short_columns`, with
        intervals where they decide, and the status of the verdict.
    """
    shown = short_columns(results, columns)
    lines = [["policy", *(column.heading for column in shown), VERDICT]]
    for i, row in enumerate(results):
        line = [row["policy"]]
        for column in shown:
            formatted = cell(row, column, is_baseline=i == 0)
            uncertain = column.plot == "quality" or (column.relative and i > 0)
            interval = formatted.get("interval", "") if uncertain else ""
            line.append(f"{formatted['value']} {interval}".strip())
        lines.append([*line, row["status"]])
    return lines


def markdown(results: Rows, columns: Sequence[Column] = COLUMNS) -> str:
    """Format the verdicts, the short table, and tables of all columns as Markdown.

    Args:
        results: rows of `Comparison.table`.
        columns: columns of the comparison.
    """
    shown = shown_columns(results, columns)
    absolute = [column for column in shown if not column.relative]
    tested = [column for column in absolute if column.tested]
    names = [markdown_code(row["policy"]) for row in results]
    headings, *lines = short_table(results, columns)
    short = [[name, *line[1:]] for name, line in zip(names, lines, strict=True)]
    sentences = [[name, row["verdict"]] for name, row in zip(names, results, strict=True)]
    cells = [
        [cell(row, column, is_baseline=i == 0) for column in shown] for i, row in enumerate(results)
    ]
    estimates = [[f"{c['value']} {c.get('interval', '')}".strip() for c in line] for line in cells]
    differences = [
        [c.get("difference", MISSING) for c, x in zip(line, shown, strict=True) if x in absolute]
        for line in cells[1:]
    ]
    p_values = [[_test(row, column) for column in tested] for row in results[1:]]
    parts = [
        markdown_table(["policy", VERDICT], sentences),
        "95 % intervals are in brackets. The verdict is on all rows together (Holm).",
        markdown_table(headings, short),
        *_upper_ends(names, results),
        "All columns:",
        *_blocks(names, shown, estimates),
        "Difference from full depth on the same questions:",
        *_blocks(names[1:], absolute, differences),
        "Paired sign-flip tests against full depth, without adjustment for multiple tests. In "
        "brackets: the number of prompts that detects a difference of the observed size with 80 % "
        "power. It is a rough guide, because the observed difference is uncertain:",
        *_blocks(names[1:], tested, p_values),
    ]
    return "\n\n".join(parts) + "\n"


def _blocks(
    names: Sequence[str], columns: Sequence[Column], cells: Sequence[Sequence[str]]
) -> list[str]:
    """Markdown tables of at most `MOST_COLUMNS` columns and the policy each."""
    tables = []
    for start in range(0, len(columns), MOST_COLUMNS):
        part = slice(start, start + MOST_COLUMNS)
        lines = [[name, *line[part]] for name, line in zip(names, cells, strict=True)]
        tables.append(markdown_table(["policy", *(c.heading for c in columns[part])], lines))
    return tables


def _upper_ends(names: Sequence[str], results: Rows) -> list[str]:
    """A table of the largest losses of the WER that the questions leave possible."""
    lines = [
        [name, f"{100 * row['wer_upper']:+.1f}"]
        for name, row in zip(names, results, strict=True)
        if row.get("wer_upper") is not None
    ]
    if not lines:
        return []
    heading = "WER over full depth is at most, points"
    return [
        "The upper ends of one-sided 95 % intervals, each policy by itself:",
        markdown_table(["policy", heading], lines),
    ]


def _test(row: Mapping[str, Any], column: Column) -> str:
    """P-value of a difference, and the number of prompts that detects it."""
    p, needed = row.get(f"{column.name}_p"), row.get(f"{column.name}_needed")
    if p is None:
        return MISSING
    if needed is None:
        return f"p {p_value(p)}"
    prompts = f"{needed:.0f}" if needed <= MOST_QUESTIONS else f"more than {MOST_QUESTIONS:,}"
    return f"p {p_value(p)} ({prompts})"


def latex(
    results: Rows, columns: Sequence[Column] = COLUMNS, only: Sequence[str] | None = None
) -> str:
    """Format a LaTeX table for booktabs: each estimate with its interval in the line below.

    Args:
        results: rows of `Comparison.table`.
        columns: columns of the comparison; those without a measurement are left out.
        only: names of the columns to write, in their order; `"verdict"` is the status of the
            verdict.  All columns if None.

    Raises:
        EepolicyError: a name is unknown.
    """
    by_name = {column.name: column for column in columns}
    unknown = sorted({*(only or ())} - {*by_name, VERDICT})
    if unknown:
        raise EepolicyError(
            f"there is no column {', '.join(unknown)}; known are {', '.join((*by_name, VERDICT))}"
        )
    names = [
        n for n in only or (*by_name, VERDICT) if n == VERDICT or is_measured(results, by_name[n])
    ]
    headings = [latex_escape(VERDICT if n == VERDICT else by_name[n].heading) for n in names]
    lines = []
    for i, row in enumerate(results):
        policy = latex_escape(" ".join(row["policy"].splitlines()))
        values, intervals = [rf"\texttt{{{policy}}}"], [""]
        for name in names:
            if name == VERDICT:
                formatted = {"value": str(row["status"])}
            else:
                formatted = cell(row, by_name[name], is_baseline=i == 0)
            interval = formatted.get("interval", "")
            values.append(formatted["value"])
            intervals.append(rf"\tiny {interval}" if interval else "")
        lines += [values, intervals] if any(intervals) else [values]
    return latex_table(["policy", *headings], lines)
