"""Tables of a comparison as Markdown and LaTeX, and the files of its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eepolicy.analysis.evaluation.columns import COLUMNS, Column
from eepolicy.analysis.evaluation.table import is_measured, shown_columns
from eepolicy.analysis.tables import (
    MISSING,
    latex_escape,
    latex_table,
    markdown_table,
    number,
    to_frame,
    with_interval,
)
from eepolicy.io import write_bytes, write_json, write_text

#: rows of `Comparison.table`
Rows = Sequence[Mapping[str, Any]]

NOT_MEASURED = "not measured"


def write_results(results: Rows, folder: Path, columns: Sequence[Column] = COLUMNS) -> None:
    """Write `results.json`, `.csv`, `.md` and `.tex`, and `.parquet` if pyarrow is installed.

    Args:
        results: rows of `Comparison.table`.
        folder: folder to write to.
        columns: columns of the comparison.
    """
    write_json(folder / "results.json", results, indent=1)
    frame = to_frame(results)
    write_text(folder / "results.csv", frame.to_csv(index=False))
    if find_spec("pyarrow"):
        write_bytes(folder / "results.parquet", frame.to_parquet(index=False))
    write_text(folder / "results.md", markdown(results, columns))
    write_text(folder / "results.tex", latex(results, columns))


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


def markdown(results: Rows, columns: Sequence[Column] = COLUMNS) -> str:
    """Format three Markdown tables: estimates, differences from full depth, and p-values.

    Args:
        results: rows of `Comparison.table`.
        columns: columns of the comparison.
    """
    shown = shown_columns(results, columns)
    headings = ["policy", *(column.heading for column in shown)]
    estimates, differences = [], []
    for i, row in enumerate(results):
        cells = [cell(row, column, is_baseline=i == 0) for column in shown]
        policy = f"`{row['policy']}`"
        estimates.append(
            [policy, *(f"{c['value']} {c.get('interval', '')}".strip() for c in cells)]
        )
        if i > 0:
            differences.append([policy, *(c.get("difference", MISSING) for c in cells)])
    return (
        f"{markdown_table(headings, estimates)}\n\n"
        "Difference from full depth on the same questions:\n\n"
        f"{markdown_table(headings, differences)}\n\n"
        f"{_power(results, [column for column in shown if column.tested])}\n"
    )


def _power(results: Rows, tested: Sequence[Column]) -> str:
    """P-values of the differences, and the number of prompts that detects them."""
    rows = []
    for row in results[1:]:
        cells = [f"`{row['policy']}`"]
        for column in tested:
            p, needed = row.get(f"{column.name}_p"), row.get(f"{column.name}_needed")
            cells.append(MISSING if p is None else f"{_p_value(p)} ({number(needed, 0)})")
        rows.append(cells)
    return (
        "Paired sign-flip tests against full depth, without adjustment for multiple tests. In "
        "brackets: the number of prompts that detects a difference of the observed size with 80 % "
        "power. It is a rough guide, because the observed difference is uncertain:\n\n"
        f"{markdown_table(['policy', *(column.heading for column in tested)], rows)}"
    )


def _p_value(p: float) -> str:
    return f"p {p:.3f}" if p >= 0.0005 else "p < 0.001"


def latex(results: Rows, columns: Sequence[Column] = COLUMNS) -> str:
    """Format a LaTeX table for booktabs: each estimate with its interval in the line below.

    Args:
        results: rows of `Comparison.table`.
        columns: columns of the comparison; those without a measurement are left out.
    """
    measured = [column for column in columns if is_measured(results, column)]
    headings = ["policy", *(latex_escape(column.heading) for column in measured)]
    lines = []
    for i, row in enumerate(results):
        cells = [cell(row, column, is_baseline=i == 0) for column in measured]
        policy = rf"\texttt{{{latex_escape(row['policy'])}}}"
        lines.append([policy, *(c["value"] for c in cells)])
        lines.append(["", *(r"\tiny " + c.get("interval", "") for c in cells)])
    return latex_table(headings, lines)
