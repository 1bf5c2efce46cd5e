"""The leaderboard: rows of one or more run folders as a Markdown page and a sortable page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, FileSystemLoader

from eepolicy.analysis.evaluation.columns import shown_columns
from eepolicy.analysis.evaluation.leaderboard_runs import COLUMNS, BoardRun
from eepolicy.analysis.evaluation.page import column_entries, finite, row_entries
from eepolicy.analysis.evaluation.page_template import TEMPLATES, render_leaderboard
from eepolicy.analysis.evaluation.records import FILES
from eepolicy.analysis.evaluation.results_files import NOT_MEASURED, cell
from eepolicy.analysis.tables import MISSING, markdown_code, markdown_table

#: order of the verdicts; full depth is not worse than itself
RANKS = {"not worse": 0, "baseline": 0, "undecided": 1, "worse": 2}
#: headings of the table in the terminal and in Markdown
HEADINGS = (
    "row",
    "verdict",
    "WER difference, points",
    "speed-up",
    "layer calls a token",
    "real-time factor",
)
#: headings of the table of folders
RUN_HEADINGS = ("folder", "model", "exit heads", "questions", "computed with", "WER, %")
#: columns of the page that are shown at first, as far as they were measured
FIRST_COLUMNS = ("wer", "speedup", "calls_per_token", "real_time_factor")


@dataclass(frozen=True)
class Leaderboard:
    """Runs side by side.

    Attributes:
        runs: the runs.
    """

    runs: tuple[BoardRun, ...] = field(repr=False)

    @property
    def ordered(self) -> list[tuple[BoardRun, int]]:
        """Each row as its run and its number there, the best row first.

        Rows that are not worse come first, then undecided ones, then worse ones; in each group the
        fastest row is first, and rows without a timing are last.
        """
        rows = [(run, number) for run in self.runs for number in range(len(run.rows))]
        return sorted(rows, key=lambda item: _rank(item[0].rows[item[1]]))

    def lines(self, code: bool = False) -> list[list[str]]:
        """Format the rows under `HEADINGS`, the best row first.

        Args:
            code: write rows as code of Markdown.
        """
        lines = []
        for run, number in self.ordered:
            row = run.rows[number]
            name = markdown_code(row["policy"]) if code else row["policy"]
            if len(self.runs) > 1:
                name += f" in {markdown_code(run.name) if code else run.name}"
            shown = {c.name: cell(row, c, is_baseline=number == 0) for c in COLUMNS}
            speedup = shown["speedup"]
            lines.append(
                [
                    name,
                    row["status"],
                    shown["wer"].get("difference", MISSING if number == 0 else NOT_MEASURED),
                    f"{speedup['value']} {speedup.get('interval', '')}".strip(),
                    shown["calls_per_token"]["value"],
                    shown["real_time_factor"]["value"],
                ]
            )
        return lines

    def run_lines(self) -> list[list[str]]:
        """Describe the runs under `RUN_HEADINGS`."""
        sets = list(dict.fromkeys(run.questions for run in self.runs))
        lines = []
        for run in self.runs:
            letter = f", set {sets.index(run.questions) + 1}" if len(sets) > 1 else ""
            wer = cell(run.rows[0], _column("wer"), is_baseline=True)
            lines.append(
                [
                    run.name,
                    run.model,
                    run.heads,
                    run.number + letter,
                    run.computed_with,
                    f"{wer['value']} {wer.get('interval', '')}".strip(),
                ]
            )
        return lines

    def notes(self) -> list[str]:
        """Sentences on what the runs do not share."""
        kinds = {
            "models": len({run.model for run in self.runs}),
            "exit heads": len({run.heads for run in self.runs}),
            "questions": len({run.questions for run in self.runs}),
        }
        differing = " and ".join(name for name, number in kinds.items() if number > 1)
        if not differing:
            return []
        notes = [f"The folders have different {differing}: compare rows of the same folder only."]
        if kinds["questions"] > 1:
            notes.append("Folders whose set has the same number have the same questions.")
        return notes

    def markdown(self, page: str) -> str:
        """Write the leaderboard as Markdown.

        Args:
            page: file name of the sortable page.
        """
        environment = Environment(loader=FileSystemLoader(TEMPLATES), keep_trailing_newline=True)
        runs = [
            [*map(markdown_code, line[:3]), line[3], markdown_code(line[4]), line[5]]
            for line in self.run_lines()
        ]
        text: str = environment.get_template("leaderboard.md.j2").render(
            table=markdown_table(HEADINGS, self.lines(code=True)),
            runs=markdown_table(RUN_HEADINGS, runs),
            notes=self.notes(),
            conditions=[(markdown_code(run.name), run.conditions) for run in self.runs],
            page=page,
            files=file_lines(),
        )
        return text

    def page(self) -> str:
        """Write the leaderboard as a sortable page in one file."""
        return render_leaderboard(page_document(self))


def page_document(board: Leaderboard) -> dict[str, Any]:
    """Make the document that the sortable page shows.

    Args:
        board: the leaderboard.

    Returns:
        JSON types: `columns` and `rows` of the table, and what the page says about the runs.
    """
    every = [row for run in board.runs for row in run.rows]
    columns = shown_columns(every, COLUMNS)
    entries = {run.name: list(row_entries(run.rows, columns)) for run in board.runs}
    headings = column_entries(columns, FIRST_COLUMNS)
    rows = [entries[run.name][number] for run, number in board.ordered]
    if len(board.runs) > 1:
        headings.insert(0, {"name": "folder", "heading": "folder", "first": True})
        for (run, _), row in zip(board.ordered, rows, strict=True):
            row["values"]["folder"] = {"value": run.name, "text": {"value": run.name}}
            row["verdict"] = f"{run.name}: {row['verdict']}"
    document = {
        "columns": headings,
        "rows": rows,
        "run_headings": list(RUN_HEADINGS),
        "runs": board.run_lines(),
        "conditions": [(run.name, run.conditions) for run in board.runs],
        "notes": board.notes(),
    }
    return dict(finite(document))


def file_lines() -> list[tuple[str, str]]:
    """List the JSON Lines files of a run folder, each with what a line holds."""
    contents = {kind: (kind.__doc__ or "").splitlines() or [""] for kind in FILES}
    return [
        (name, contents[kind][0].partition(": ")[2].rstrip(".")) for kind, name in FILES.items()
    ]


def _rank(row: Mapping[str, Any]) -> tuple[float, ...]:
    speedup, calls = row["speedup"], row["calls_per_token"]
    return (
        RANKS.get(row["status"], len(RANKS)),
        math.inf if speedup is None else -speedup,
        math.inf if calls is None else calls,
    )


def _column(name: str) -> Any:
    return next(column for column in COLUMNS if column.name == name)
