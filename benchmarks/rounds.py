"""Figures of fits in rounds, from their folders.

    python -m benchmarks.rounds FOLDER [FOLDER ...] [--fill PAGE] [--write PAGE]

A folder is the `--workdir` of `eepolicy fit`.  Finished rounds are shown while others still run.
With `--fill` the table replaces what stands between `<!-- rounds -->` and `<!-- end of rounds -->`
on a page.

With `--write` the page compares fits of the pocket model that were made with `--held-out dev --wer`
and differ in their options.  It transcribes the full-depth replies too, for the difference from
full depth.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import eepolicy
from benchmarks.pages import PAGES
from benchmarks.sections import filled
from eepolicy.analysis.stats.bootstrap import Interval, paired_difference, ratio
from eepolicy.analysis.style import OTHER_COLOURS, OTHER_MARKERS, figures, outside_legend
from eepolicy.analysis.tables import MISSING, markdown_table, number, with_interval
from eepolicy.cli.fit_rounds import reply_word_errors
from eepolicy.errors import EepolicyError
from eepolicy.fitting.replies import Exits, Generation, replies_with
from eepolicy.io import make_folder, read_json, read_text, write_figure, write_text

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
#: columns of the page, without the WER
PAGE_COLUMNS = (
    ("round", "round", 0, 1),
    ("agreement on full-depth replies, %", "agreement", 1, 100),
    ("agreement on own replies, %", "agreement_own", 1, 100),
)
#: key and axis label of each panel but the WER
PANELS = (
    ("agreement_own", "agreement on own replies, %", 100),
    ("kl_own", "KL on own replies, nats", 1),
)
LOSSES = {"reverse_kl": "reverse KL"}

#: wrong words and words of each reply
Errors = tuple[Sequence[int], Sequence[int]]


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
    return markdown_table(
        [heading for heading, *_ in COLUMNS], [_cells(row, COLUMNS) for row in rows]
    )


def name_of(folder: Path) -> str:
    """What a fit was given, in words."""
    row = rows_of(folder)[0]
    loss = read_json(folder / "fit.json")["fitting"].get("loss", "soft")
    layers = row["layers"]
    head = f"{layers} layer{'s' if layers > 1 else ''}" if layers else row["kind"]
    name = f"{head}, {row['questions']:,} questions"
    return name if loss == "soft" else f"{name}, {LOSSES.get(loss, loss)}"


def errors_of(row: dict[str, Any]) -> Errors:
    """Word errors of the held-out replies of a round."""
    return row["reply_errors"], row["reply_words"]


def comparison(folders: Sequence[Path], full: Errors) -> str:
    """A row for each round of each fit, with intervals of the WER.

    Args:
        folders: folders of the fits.
        full: word errors of the full-depth replies to the same questions, in the same order.
    """
    headings = ["fit", *(heading for heading, *_ in PAGE_COLUMNS), "WER, %", "WER over full depth"]
    rows = []
    for folder in folders:
        name = name_of(folder)
        for row in rows_of(folder):
            errors, words = errors_of(row)
            wer = ratio(errors, words)
            over = paired_difference((errors, full[0]), (words, full[1]))
            cells = _cells(row, PAGE_COLUMNS)
            rows.append([name, *cells, _percent(wer), _percent(over, sign=True)])
    return markdown_table(headings, rows)


def draw(folders: Sequence[Path], full: Errors) -> Figure:
    """Agreement, KL and WER by round, a line for each fit."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
    reference = ratio(*full).scaled(100)
    axes[2].axhspan(reference.low, reference.high, color="black", alpha=0.1, lw=0)
    axes[2].axhline(reference.value, color="black", ls="--", lw=1, label="full depth")
    for number_of_fit, folder in enumerate(folders):
        rows, label = rows_of(folder), name_of(folder)
        colour, marker = OTHER_COLOURS[number_of_fit], OTHER_MARKERS[number_of_fit]
        rounds = [row["round"] for row in rows]
        style: dict[str, Any] = {"color": colour, "marker": marker, "label": label, "ms": 6}
        for ax, (key, _, scale) in zip(axes, PANELS, strict=False):
            ax.plot(rounds, [scale * row[key] for row in rows], **style)
        wers = [ratio(*errors_of(row)).scaled(100) for row in rows]
        shifted = [number + 0.05 * (number_of_fit - len(folders) / 2) for number in rounds]
        bars = [[float(wer.bars[side]) for wer in wers] for side in (0, 1)]
        axes[2].errorbar(shifted, [wer.value for wer in wers], bars, capsize=2, lw=1.5, **style)
    for ax, label in zip(axes, [*(p[1] for p in PANELS), "WER, %"], strict=True):
        ax.set(xlabel="round", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[2].set_ylim(bottom=0)
    outside_legend(figure, axes[2], ncols=3)
    return figure


def full_depth_errors(folder: Path, model: eepolicy.HookedModel) -> Errors:
    """Word errors of the full-depth replies to the dev questions, which the folder stores."""
    prompts = [model.encode(q["question"]) for q in eepolicy.held_out("dev")]
    file = folder / "held_out.jsonl"
    return errors_of(
        reply_word_errors(model, replies_with(model, prompts, Exits(), Generation(), file))
    )


def page_of(folders: Sequence[Path], full: Errors) -> list[str]:
    """The lines of the page."""
    commands = next(page.commands for page in PAGES if page.name == "rounds")
    words = sum(full[1])
    return [
        "# Rounds of fitting",
        "",
        f"Branches at depth 6 of the pocket model, torch {torch.__version__}. A branch starts "
        "from the layers of the model. Round 0 fits on full-depth replies to the questions, in 5 "
        "passes. Each further round adds replies of the model that exits at the branch, to half of "
        "the questions, labels them with the last layer, and makes 6 passes. A pass over all "
        "questions takes 62 to 100 steps, with fewer replies in a step where there are fewer. Each "
        "round is evaluated on the 300 dev questions; the full-depth replies to them have "
        f"{words:,} words. *WER over full depth* is the difference from the WER of these replies, "
        "in points. 95 % intervals over questions are in brackets; each fit ran once, with one "
        "seed.",
        "",
        *(f"    {command}" for command in commands),
        "",
        "![Agreement, KL and WER by round](images/rounds.svg)",
        "",
        comparison(folders, full),
    ]


def _cells(row: dict[str, Any], columns: Sequence[tuple[str, str, int, int]]) -> list[str]:
    return [
        MISSING if row.get(key) is None else number(row[key], digits, scale)
        for _, key, digits, scale in columns
    ]


def _percent(interval: Interval[float], sign: bool = False) -> str:
    return with_interval(interval.value, (interval.low, interval.high), 1, 100, sign)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--fill", type=Path, help="page to write the table to")
    parser.add_argument("--write", type=Path, help="write a page and its figure")
    args = parser.parse_args()
    text = table(args.folders)
    print(text)
    if args.fill:
        write_text(args.fill, filled(read_text(args.fill), "rounds", text))
    if args.write:
        full = full_depth_errors(args.folders[0], eepolicy.load("pocket"))
        with figures():
            figure = draw(args.folders, full)
            image = args.write.parent / "images" / "rounds.svg"
            make_folder(image.parent)
            write_figure(image, figure)
            plt.close(figure)
        write_text(args.write, "\n".join(page_of(args.folders, full)) + "\n")


if __name__ == "__main__":
    main()
