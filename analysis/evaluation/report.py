"""The report of a comparison: result files, figures, and a page that opens without a server."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eepolicy.analysis.evaluation import plots
from eepolicy.analysis.evaluation.conditions import conditions
from eepolicy.analysis.evaluation.page import PageInput, inline_file, page_data
from eepolicy.analysis.evaluation.page_template import render
from eepolicy.analysis.evaluation.records import FILES, Record
from eepolicy.analysis.evaluation.results_files import write_results
from eepolicy.analysis.evaluation.table import Comparison
from eepolicy.analysis.style import figures
from eepolicy.hooked import HookedModel
from eepolicy.io import read_json, write_text
from eepolicy.layerwise import probe
from eepolicy.modality import Modality
from eepolicy.probing import ProbeResult

#: number of replies on which the agreement curves are measured
AGREEMENT_REPLIES = 24


def write_report(
    model: HookedModel,
    comparison: Comparison,
    command: str,
    notes: Sequence[str] = (),
    again: bool = False,
) -> list[dict[str, Any]]:
    """Write the result files, the figures, and the page `index.html` with all of them.

    See `write_results` for the result files.  The page needs no other file, except the sound of
    questions beyond the first `SOUND_QUESTIONS`, which it finds in `audio/` beside it.  The figures
    `summary`, `quality`, `agreement` and `depths` are for papers, each as PNG, SVG and PDF.

    Args:
        model: model that replied.
        comparison: the comparison.
        command: command line that made it, for the page.
        notes: sentences for the top of the page, such as a package that is not installed.
        again: write everything even if the report of the same measurements is there.

    Returns:
        The rows of the table.

    Raises:
        EepolicyError: no question has been answered by every policy.
    """
    path, state = comparison.folder.path, _state(comparison, notes)
    _, stored = comparison.folder.read()
    is_there = all((path / name).is_file() for name in ("index.html", "results.json"))
    if not again and is_there and stored.get("report") == state:
        written: list[dict[str, Any]] = read_json(path / "results.json")
        return written
    results = comparison.table()
    notes = [*notes, conditions(comparison.folder)]
    write_results(results, path, comparison.columns, notes=notes)
    # the page shows the first seed
    replies = {
        question: [by_seed[0] for by_seed in policies]
        for question, policies in comparison.answered().items()
    }
    words = _words(model, replies)
    figure = _figures(model, comparison, results, replies, words)
    about = {
        "model": repr(model),
        "prompts": len(replies),
        "seeds": results[0]["seeds"],
        "notes": notes,
        "command": command,
        "versions": _versions(),
        "figure": figure,
    }
    data = page_data(
        PageInput(
            results,
            comparison.columns,
            replies,
            model.depth,
            path,
            comparison.margins,
            words,
            about,
        )
    )
    write_text(path / "index.html", render(data))
    comparison.folder.note(report=state)
    return results


def _state(comparison: Comparison, notes: Sequence[str]) -> str:
    """Digest of all that the report depends on."""
    parts = [comparison.policies, [q["question"] for q in comparison.questions], list(notes)]
    parts += [repr(comparison.margins), repr(comparison.looks), version("eepolicy")]
    parts += [column.name for column in comparison.columns]
    digest = hashlib.sha256(repr(parts).encode())
    for name in FILES.values():
        file = comparison.folder.path / name
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


def _figures(
    model: HookedModel,
    comparison: Comparison,
    results: Sequence[Mapping[str, Any]],
    replies: Mapping[str, Sequence[Record]],
    words: Mapping[int, str],
) -> str | None:
    """Draw the figures for papers; the curves of agreement as a data URL, None without any."""
    path = comparison.folder.path
    full = [records[0] for records in replies.values()]
    # a spoken question has no ids to probe
    probed = [record for record in full[:AGREEMENT_REPLIES] if not record.spoken]
    example = replies[next((r for r in full if r.right_text), full[0]).question]
    agreement = None
    with figures():
        if plots.quality_columns(results, comparison.columns):
            plots.save(plots.quality_figure(results, comparison.columns), path, "quality")
        if all(row["speedup"] is not None and row["wer"] is not None for row in results):
            plots.save(plots.summary_figure(results, comparison.margins.wer), path, "summary")
        if probed:
            figure = plots.agreement_figure(agreement_curves(model, probed), len(probed))
            agreement = inline_file(path / plots.save(figure, path, "agreement"), "image/png")
        labels = [
            [
                words.get(t, "") if m == Modality.TEXT else ""
                for t, m in zip(record.tokens, record.modalities, strict=True)
            ]
            for record in example
        ]
        plots.save(plots.depth_figure(example, labels, model.depth), path, "depths")
    return agreement


def agreement_curves(
    model: HookedModel, records: Sequence[Record]
) -> dict[str, dict[str, NDArray[Any]]]:
    """Measure the agreement with the last layer by depth.

    Args:
        model: model that replied.
        records: full-depth replies to written questions.

    Returns:
        By head and modality: (full depth,) shares, nan at a depth without such a head.
    """
    curves: dict[str, dict[str, NDArray[Any]]] = {}
    for name, heads in (("fitted heads", model.heads), ("plain logit lens", model.lens)):
        if name == "fitted heads" and heads is model.lens:
            continue
        result = probe(
            model, (r.document(model) for r in records), heads=heads, statistics=("top1",)
        )
        is_branch = np.isin(result.depths, heads.branch_depths)
        for part, which in ((name, ~is_branch), ("branches", is_branch)):
            if which.any():
                curves[part] = {m.name.lower(): _curve(result, m, which) for m in Modality}
    return curves


def _curve(
    result: ProbeResult, modality: Modality, which: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Agreement at some of the probed depths: (full depth,), nan at the others."""
    curve = np.full(result.full_depth, np.nan)
    shares = result.agreement[:, result.modality == modality].mean(1)
    curve[result.depths[which] - 1] = shares[which]
    return curve


def _words(model: HookedModel, replies: Mapping[str, Sequence[Record]]) -> dict[int, str]:
    """Text of each id that is a text token of a reply; empty without a tokenizer."""
    if model.tokenizer is None:
        return {}
    ids = {
        token
        for records in replies.values()
        for record in records
        for token, modality in zip(record.tokens, record.modalities, strict=True)
        if modality == Modality.TEXT
    }
    return {token: model.tokenizer.decode([token]).strip() for token in sorted(ids)}


def _versions() -> str:
    return ", ".join(
        [
            *(f"{p} {version(p)}" for p in ("torch", "transformers", "numpy")),
            f"Python {platform.python_version()}",
            f"{torch.get_num_threads()} threads",
        ]
    )
