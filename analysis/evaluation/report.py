"""The report of a comparison: result files, figures, and a page that opens without a server."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader
from numpy.typing import NDArray

from eepolicy.analysis.evaluation import plots
from eepolicy.analysis.evaluation.page import answers, inline_file
from eepolicy.analysis.evaluation.records import Record
from eepolicy.analysis.evaluation.results_files import cell, write_results
from eepolicy.analysis.evaluation.table import Comparison, shown_columns
from eepolicy.analysis.style import figures
from eepolicy.hooked import HookedModel, probe
from eepolicy.io import write_text
from eepolicy.modality import Modality

#: number of questions whose speech is in the page
AUDIO_QUESTIONS = 12
#: number of replies on which the agreement curves are measured
AGREEMENT_REPLIES = 24


def write_report(
    model: HookedModel,
    comparison: Comparison,
    command: str,
    notes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Write the result files, the figures, and the page `index.html` with all of them.

    See `write_results` for the result files.  The page contains its figures and its speech, so
    that it can be sent as one file.

    Args:
        model: model that replied.
        comparison: the comparison.
        command: command line that made it, for the page.
        notes: sentences for the top of the page, such as a package that is not installed.

    Returns:
        The rows of the table.

    Raises:
        EepolicyError: no question has been answered by every policy.
    """
    results, path = comparison.table(), comparison.folder.path
    write_results(results, path, comparison.columns)
    # the page shows the first seed
    replies = {
        question: [by_seed[0] for by_seed in policies]
        for question, policies in comparison.answered().items()
    }
    shown = shown_columns(results, comparison.columns)
    page = _template().render(
        model=repr(model),
        prompts=len(replies),
        seeds=results[0]["seeds"],
        notes=notes,
        headings=[column.heading for column in shown],
        rows=[
            {"policy": row["policy"], "cells": [cell(row, c, is_baseline=i == 0) for c in shown]}
            for i, row in enumerate(results)
        ],
        figures=_figures(model, comparison, results, replies),
        questions=[
            {
                "question": q["question"],
                "answers": answers(replies[q["question"]], comparison.folder, model.depth),
            }
            for q in comparison.questions[:AUDIO_QUESTIONS]
            if q["question"] in replies
        ],
        command=command,
        versions=_versions(),
    )
    write_text(path / "index.html", page)
    return results


def _figures(
    model: HookedModel,
    comparison: Comparison,
    results: Sequence[Mapping[str, Any]],
    replies: Mapping[str, Sequence[Record]],
) -> list[dict[str, str]]:
    """Draw the figures; title, caption and inlined file of each."""
    path = comparison.folder.path
    full = [records[0] for records in replies.values()]
    # a spoken question has no ids to probe
    probed = [record for record in full[:AGREEMENT_REPLIES] if not record.spoken]
    example = next((r for r in full if r.right_text), full[0]).question
    shown = []
    with figures():
        if plots.quality_columns(results, comparison.columns):
            figure = plots.quality_figure(results, comparison.columns)
            shown.append(
                {
                    "title": "Quality against cost",
                    "caption": "A marker per policy with bars for its 95 % intervals, against the "
                    "mean depth of speech tokens (above) and the wall-clock time (below). Markers "
                    "at similar speech depths are shifted by a tenth of a layer, so that bars do "
                    "not overlap. Dotted line: Pareto front of the estimates.",
                    "file": plots.save(figure, path, "quality"),
                }
            )
        if probed:
            figure = plots.agreement_figure(agreement_curves(model, probed), len(probed))
            shown.append(
                {
                    "title": "Agreement with the last layer, by depth",
                    "caption": "Share of tokens for which a depth has the same top-1 token as the "
                    "last layer, given the full-depth reply as history.",
                    "file": plots.save(figure, path, "agreement"),
                }
            )
        figure = plots.depth_figure(replies[example], _words(model, replies[example]), model.depth)
        shown.append(
            {
                "title": "One reply, token by token",
                "caption": f"Depth of each token of the replies to “{example}”. Words are above "
                "their tokens.",
                "file": plots.save(figure, path, "depths"),
            }
        )
    return [f | {"file": inline_file(path / f["file"], "image/png")} for f in shown]


def agreement_curves(
    model: HookedModel, records: Sequence[Record]
) -> dict[str, dict[str, NDArray[Any]]]:
    """Measure the agreement with the last layer by depth.

    Args:
        model: model that replied.
        records: full-depth replies to written questions.

    Returns:
        By head and modality: (depths,) shares.
    """
    curves: dict[str, dict[str, NDArray[Any]]] = {}
    for name, heads in (("fitted heads", model.heads), ("plain logit lens", model.lens)):
        if name == "fitted heads" and heads is model.lens:
            continue
        result = probe(
            model, (r.document(model) for r in records), heads=heads, statistics=("top1",)
        )
        curves[name] = {
            m.name.lower(): result.agreement[:, result.modality == m].mean(1) for m in Modality
        }
    return curves


def _words(model: HookedModel, records: Sequence[Record]) -> list[list[str]]:
    """Label of each token for the depth figure; empty for speech."""
    return [
        [
            model.tokenizer.decode([t]).strip() if m == Modality.TEXT and model.tokenizer else ""
            for t, m in zip(record.tokens, record.modalities, strict=True)
        ]
        for record in records
    ]


def _template() -> Any:
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    return Environment(loader=loader, autoescape=True).get_template("report.html")


def _versions() -> str:
    return ", ".join(
        [
            *(f"{p} {version(p)}" for p in ("torch", "transformers", "numpy")),
            f"Python {platform.python_version()}",
            f"{torch.get_num_threads()} threads",
        ]
    )
