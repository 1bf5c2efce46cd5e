"""Write the lists of plug-ins into README and docs: `python -m tools.lists`.

A list is a section `list: NAME` of a page, see `benchmarks.sections`.  The lines come from the
classes, so a plug-in is described in its own file only.  `--check` changes nothing and fails if a
page is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.pages import NEEDS, PAGES
from benchmarks.sections import filled, sections
from eepolicy.analysis.evaluation.spark_table2 import ROWS
from eepolicy.analysis.evaluation.table2_estimate import Load, estimate
from eepolicy.analysis.evaluation.table2_sizes import published_sizes
from eepolicy.analysis.tables import markdown_table
from eepolicy.codebooks import CODEBOOK_POLICIES, MISSING_CODES
from eepolicy.decode.acceptance import ACCEPTANCE_RULES
from eepolicy.decode.fills import FILLS
from eepolicy.heads import KINDS
from eepolicy.policies import POLICIES
from eepolicy.policies.spec import policy_entries
from eepolicy.registry import Entry
from tools.formats import format_tables

ROOT = Path(__file__).parents[1]
PREFIX = "list: "


def table(entries: Iterable[Entry]) -> str:
    """A Markdown table with one line for each example of a plug-in."""
    lines = ["| string | what it does | from |", "|---|---|---|"]
    for entry in entries:
        paper = f"[{entry.paper}]({entry.source})" if entry.source else entry.paper
        # a pipe would end the cell
        summary = entry.summary.replace("|", "\\|")
        lines.append(f"| `{entry.example}` | {summary} | {paper} |")
    return "\n".join(lines)


def names(every: Iterable[str]) -> str:
    """Names in one line."""
    return ", ".join(f"`{name}`" for name in every)


def table2_hours() -> str:
    """Estimated hours and gigabytes of the paper's Table 2, for each of its models."""
    parts = []
    for name, size in published_sizes().items():
        parts.append(f"{name}:\n\n{estimate(size, ROWS[name], Load()).tables()}")
    return "\n\n".join(parts)


def table2_rows() -> str:
    """What the rows of the paper's Table 2 should show, by the paper and by arithmetic."""
    lines = []
    for name, size in published_sizes().items():
        full = ROWS[name][0]
        share = size.text_chunk / (size.text_chunk + size.speech_chunk)
        for row in ROWS[name]:
            depth = share * row.text_depth + (1 - share) * row.speech_depth
            mean, whole = sum(row.scores) / 4, sum(full.scores) / 4
            lines.append(
                (
                    row.label,
                    f"`{row.policy}`",
                    f"{max(0.0, 1 - depth / size.layers):.1%}".replace("%", " %"),
                    f"{mean - whole:+.2f}",
                    f"{row.mos - full.mos:+.3f}",
                    f"{row.wer - full.wer:+.2f}",
                )
            )
    headings = ["row", "policy", "layer calls saved", "score, points", "MOS", "WER, points"]
    return markdown_table(headings, lines)


def benchmark_pages() -> str:
    """The pages of `docs/benchmarks` with their commands and needs."""
    rows = [
        [
            f"[{page.name}]({page.name}.md)",
            "<br>".join(f"`{command}`" for command in page.commands),
            "; ".join(NEEDS[need] for need in page.needs),
        ]
        for page in PAGES
    ]
    return markdown_table(["page", "command", "needs"], rows)


LISTS: dict[str, Callable[[], str]] = {
    "policies": lambda: table(policy_entries()),
    "fills": lambda: table(FILLS.entries()),
    "acceptance-rules": lambda: table(ACCEPTANCE_RULES.entries()),
    "codebook-policies": lambda: table(CODEBOOK_POLICIES.entries()),
    "missing-codes": lambda: table(MISSING_CODES.entries()),
    "heads": lambda: table(KINDS.entries()),
    "policy-names": lambda: names(dict.fromkeys(entry.name for entry in POLICIES.entries())),
    "fill-names": lambda: names(FILLS.names()),
    "acceptance-names": lambda: names(ACCEPTANCE_RULES.names()),
    "benchmark-pages": benchmark_pages,
    "paper-hours": table2_hours,
    "paper-rows": table2_rows,
    "file-formats": format_tables,
}


def updated(text: str) -> str:
    """The text of a page with its lists written anew.

    Raises:
        KeyError: a page names a list that does not exist.
    """
    for name in sections(text):
        if name.startswith(PREFIX):
            text = filled(text, name, LISTS[name.removeprefix(PREFIX)]())
    return text


def main() -> int:
    """Update all pages, or check them."""
    stale = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text()
        if (new := updated(text)) != text:
            stale.append(page.relative_to(ROOT).as_posix())
            if "--check" not in sys.argv:
                page.write_text(new)
    if stale and "--check" in sys.argv:
        print(f"out of date: {', '.join(stale)}; run python -m tools.lists")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
