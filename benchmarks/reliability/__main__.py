"""Pass wrong inputs of every kind to the library, and sort its answers.

    python -m benchmarks.reliability [KIND ...] [--show raw,silent] [--fill PAGE --label after]

*Clear* is an `EepolicyError` of one sentence, *legal* an input that is right and listed with the
reason, *raw* an exception of other code, and *silent* a wrong input that was accepted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import huggingface_hub.constants
import torch

from benchmarks.reliability import arguments, commands, fields, files, folders, plugins
from benchmarks.reliability.cases import Answer, Outcome, answer, count
from benchmarks.sections import filled, sections
from eepolicy.analysis.tables import markdown_table
from eepolicy.io import read_text, write_text

SOURCES = {
    "fields": fields.cases,
    "arguments": arguments.cases,
    "plugins": plugins.cases,
    "files": files.cases,
    "folders": folders.cases,
    "commands": commands.cases,
}


def table(outcomes: list[Outcome]) -> str:
    """A row for each kind of input, and the sum."""
    counts = count(outcomes)
    kinds = list(dict.fromkeys(kind for kind, _ in counts))
    rows = [[kind, *_cells([counts[kind, each] for each in Answer])] for kind in kinds]
    sums = [sum(counts[kind, each] for kind in kinds) for each in Answer]
    return markdown_table(
        ["input", "tried", *(each.value for each in Answer)], [*rows, ["all", *_cells(sums)]]
    )


def _cells(numbers: list[int]) -> list[str]:
    return [f"{number:,}" for number in (sum(numbers), *numbers)]


def reasons(outcomes: list[Outcome]) -> str:
    """Why inputs are right, with the number of inputs of each kind."""
    legal = [outcome for outcome in outcomes if outcome.answer == Answer.LEGAL]
    counted = Counter((o.case.kind, o.case.legal or "a damaged last line, dropped") for o in legal)
    kinds = list(dict.fromkeys(kind for kind, _ in counted))
    rows = [
        [kind, reason, str(number)]
        for (kind, reason), number in sorted(counted.items(), key=lambda c: kinds.index(c[0][0]))
    ]
    return markdown_table(["input", "why it is right", "inputs"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*SOURCES, []], metavar="KIND")
    parser.add_argument("--show", default="", help="answers to list, such as raw,silent")
    parser.add_argument("--fill", type=Path, help="page to write the tables to")
    parser.add_argument("--label", default="after", help="name of the comments around the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # a name that is no folder is looked for on the Hub; the variable of the environment is read
    # when the package is imported
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    start = time.process_time()
    outcomes = [answer(case) for name in args.names or SOURCES for case in SOURCES[name]()]
    shown = args.show.split(",")
    for each in outcomes:
        if each.answer.value in shown:
            print(each)
    print(table(outcomes))
    if args.fill:
        page = filled(read_text(args.fill), args.label, table(outcomes))
        if (name := f"reasons {args.label}") in sections(page):
            page = filled(page, name, reasons(outcomes))
        write_text(args.fill, page)
    print(f"{time.process_time() - start:.0f} CPU seconds", file=sys.stderr)


if __name__ == "__main__":
    main()
