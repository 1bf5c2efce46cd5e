"""A run's files for people: results, figures, and one page that opens without a server."""

from __future__ import annotations

import base64
import json
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch
from jinja2 import Environment, FileSystemLoader
from numpy.typing import NDArray

from eepolicy.analysis.evaluation import plots
from eepolicy.analysis.evaluation.records import Record, RunFolder, write_whole
from eepolicy.analysis.evaluation.run import HEARD_ON_PAGE, answered, audio_name, table
from eepolicy.analysis.style import figures
from eepolicy.hooked import HookedModel, probe
from eepolicy.modality import Modality

#: column of the table: heading, factor, digits
COLUMNS = {
    "accuracy_speech": ("right in speech, %", 100.0, 1),
    "accuracy_text": ("right in text, %", 100.0, 1),
    "judged": ("judged, %", 100.0, 1),
    "wer": ("WER, %", 100.0, 1),
    "mos": ("MOS", 1.0, 2),
    "text_depth": ("text depth", 1.0, 2),
    "speech_depth": ("speech depth", 1.0, 2),
    "layer_calls": ("layer calls", 1.0, 0),
    "seconds": ("seconds", 1.0, 2),
    "ms_per_token": ("ms a token", 1.0, 2),
    "repeats": ("units repeated, %", 100.0, 1),
    "ended": ("ended, %", 100.0, 0),
}

#: replies that the agreement curves are measured on
PROBED = 24


def agreement_curves(
    model: HookedModel, records: Sequence[Record]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Agreement with the last layer by depth: head: modality: (depths,)."""
    curves: dict[str, dict[str, NDArray[np.float64]]] = {}
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


#: whose differences are tested in `results.md`
TESTED = ("accuracy_speech", "accuracy_text", "judged", "wer", "seconds")


def write_report(
    model: HookedModel,
    rows: Sequence[str],
    questions: Sequence[Mapping[str, Any]],
    folder: RunFolder,
    command: str,
    notes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Write `results.json`, `.csv`, `.md` and `.tex`, the figures and `index.html`.

    Where pyarrow is installed, `results.parquet` too.  The page holds its figures and its speech in
    itself, so that it can be sent as one file.

    Args:
        model: that answered.
        rows: spec strings, full depth first.
        questions: that were asked.
        folder: of the run.
        command: that made it.
        notes: what the reader must know, such as a part that was not installed.

    Returns:
        The rows of the table.
    """
    results = table(rows, questions, folder)
    write_whole(folder.path / "results.json", json.dumps(results, indent=1))
    frame = _frame(results)
    write_whole(folder.path / "results.csv", frame.to_csv(index=False))
    if find_spec("pyarrow"):
        write_whole(folder.path / "results.parquet", frame.to_parquet(index=False))
    write_whole(folder.path / "results.md", markdown(results))
    write_whole(folder.path / "results.tex", latex(results))
    asked = {
        q: [by_seed[0] for by_seed in each] for q, each in answered(rows, questions, folder).items()
    }
    full = [records[0] for records in asked.values()]
    pictured = next((r for r in full if r.right_text), full[0]).question
    with figures():
        written = [r for r in full[:PROBED] if not r.spoken]  # what was heard has no ids to probe
        shown = [
            {
                "title": "One answer, token by token",
                "caption": f"How deep each token of the reply to “{pictured}” went; words stand "
                "over their tokens.",
                "file": plots.save(_depths(model, asked[pictured]), folder.path, "depths"),
            },
        ]
        if plots.qualities(results):
            quality = {
                "title": "Quality against cost",
                "caption": "One mark a policy, bars its 95 % interval: against the mean depth of "
                "speech tokens (above; marks moved apart by a tenth of a layer, so that bars can "
                "be told) and the seconds that were really spent (below). Dotted: what nothing "
                "else beats in both, intervals aside.",
                "file": plots.save(plots.quality_figure(results), folder.path, "quality"),
            }
            shown.insert(0, quality)
        if written:
            curves = plots.agreement_figure(agreement_curves(model, written), len(written))
            agreement = {
                "title": "Agreement with the last layer, by depth",
                "caption": "With the full-depth reply as history, how often each depth would have "
                "named the same token as the last layer.",
                "file": plots.save(curves, folder.path, "agreement"),
            }
            shown.insert(len(shown) - 1, agreement)
    measured = columns(results)
    page = _template().render(
        model=repr(model),
        prompts=len(asked),
        seeds=results[0]["seeds"],
        notes=notes,
        heads=[heading for heading, _, _ in measured.values()],
        rows=[{"policy": r["policy"], "cells": _row(r, measured)} for r in results],
        figures=[f | {"file": _inline(folder.path / f["file"], "image/png")} for f in shown],
        questions=[
            {
                "question": q["question"],
                "answers": _listen(asked[q["question"]], folder, model.depth),
            }
            for q in questions[:HEARD_ON_PAGE]
            if q["question"] in asked
        ],
        command=command,
        versions=", ".join(
            [
                *(f"{p} {version(p)}" for p in ("torch", "transformers", "numpy")),
                f"Python {platform.python_version()}",
                f"{torch.get_num_threads()} threads",
            ]
        ),
    )
    write_whole(folder.path / "index.html", page)
    return results


def columns(results: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, float, int]]:
    """The columns of a table; the judge's only where there was one."""
    judged = any(row["judged"] is not None for row in results)
    return {n: column for n, column in COLUMNS.items() if judged or n != "judged"}


def _template() -> Any:
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    return Environment(loader=loader, autoescape=True).get_template("report.html")


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The table for a README: each figure with its interval, then the differences to full depth."""
    measured = columns(results)
    headings = ["policy", *(heading for heading, _, _ in measured.values())]
    tables = []
    for parts in (("value", "interval"), ("difference",)):
        lines = [" | ".join(headings), " | ".join(["---"] * len(headings))]
        for row in results:
            cells = [" ".join(c[p] for p in parts if p in c) for c in _row(row, measured)]
            if any(cells):
                lines.append(" | ".join([f"`{row['policy']}`", *cells]))
        tables.append("\n".join(f"| {line} |" for line in lines))
    whole = "\n\nDifference to full depth on the same questions:\n\n".join(tables)
    return f"{whole}\n\n{_power(results)}\n"


def _power(results: Sequence[Mapping[str, Any]]) -> str:
    """What the differences are worth: p, and how many prompts would tell them apart."""
    shown = {n: heading for n, (heading, _, _) in columns(results).items() if n in TESTED}
    lines = [
        "Paired sign-flip tests against full depth, not adjusted for being many; in brackets how "
        "many prompts would find a difference as large as the one seen four times of five (a rough "
        "guess: the one seen is uncertain itself):",
        "",
        f"| policy | {' | '.join(shown.values())} |",
        "|---" * (1 + len(shown)) + "|",
    ]
    for row in results[1:]:
        cells = []
        for name in shown:
            p, needed = row.get(f"{name}_p"), row.get(f"{name}_needed")
            cells.append(
                "–" if p is None else f"{_p(p)} ({'–' if needed is None else f'{needed:.0f}'})"
            )
        lines.append(f"| `{row['policy']}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _p(value: float) -> str:
    return f"p {value:.3f}" if value >= 0.0005 else "p < 0.001"


def latex(results: Sequence[Mapping[str, Any]]) -> str:
    """The table for a paper: each figure with its interval beneath, for booktabs."""
    held = [n for n in COLUMNS if any(r[n] is not None for r in results)]
    headings = " & ".join(COLUMNS[n][0].replace("%", r"\%") for n in held)
    lines = [
        r"\begin{tabular}{l" + "r" * len(held) + "}",
        r"\toprule",
        f"policy & {headings} " + r"\\",
        r"\midrule",
    ]
    for row in results:
        cells = dict(zip(COLUMNS, _row(row, COLUMNS), strict=True))
        name = r"\texttt{" + re.sub(r"([_&%#{}])", r"\\\1", row["policy"]) + "}"
        values = " & ".join(cells[n]["value"] for n in held)
        spread = " & ".join(r"\tiny " + cells[n].get("interval", "") for n in held)
        lines += [f"{name} & {values} " + r"\\", f" & {spread} " + r"\\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _frame(results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The table for programs; a column of which nothing was measured holds numbers too."""
    frame = pd.DataFrame(results)
    return frame.astype({name: float for name in frame if frame[name].isna().all()})


def _row(
    row: Mapping[str, Any], shown_columns: Mapping[str, tuple[str, float, int]]
) -> list[dict[str, str]]:
    cells = []
    for name, (_, scale, digits) in shown_columns.items():
        if row[name] is None:
            cells.append({"value": "not measured"})
            continue

        def shown(
            key: str, sign: str = "", name: str = name, scale: float = scale, digits: int = digits
        ) -> str:
            return f"{scale * row[name + key]:{sign}.{digits}f}"

        cell = {"value": shown(""), "interval": f"[{shown('_low')}, {shown('_high')}]"}
        if row["policy"] != "full" and row[f"{name}_diff"] is not None:
            cell["difference"] = (
                f"{shown('_diff', '+')} [{shown('_diff_low', '+')}, {shown('_diff_high', '+')}]"
            )
        cells.append(cell)
    return cells


def _inline(file: Path, kind: str) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _flac(file: Path) -> str | None:
    """The speech of a wav file without loss, at half its size, as an address that holds it.

    None where there is none, from a model without a vocoder.
    """
    if not file.is_file():
        return None
    out = BytesIO()
    soundfile.write(out, *soundfile.read(file, dtype="int16"), format="FLAC")
    return f"data:audio/flac;base64,{base64.b64encode(out.getvalue()).decode()}"


def _strip(record: Record, full_depth: int) -> list[dict[str, Any]]:
    """The reply's tokens from left to right, those alike together, for the page to draw."""
    alike = groupby(zip(record.modalities, record.depths, strict=True))
    runs, at = [], 0
    for (modality, depth), tokens in alike:
        width = len(list(tokens))
        runs.append(
            {
                "at": at,
                "width": width,
                "depth": depth,
                "modality": Modality(modality).name.lower(),
                "early": depth < full_depth,
            }
        )
        at += width
    return runs


def _listen(records: Sequence[Record], folder: RunFolder, full_depth: int) -> list[dict[str, Any]]:
    """What the page shows of every policy's reply to a question."""
    marks = {True: "right", False: "wrong", None: ""}
    answers = []
    for record in records:
        speech = record.speech_layers / max(record.speech_tokens, 1)
        answers.append(
            {
                "policy": record.policy,
                "depth": f"{speech:.2f}",
                "seconds": f"{record.seconds:.2f}",
                "text": record.text,
                "text_mark": marks[record.right_text],
                "heard": "not heard" if record.heard is None else record.heard,
                "heard_mark": marks[record.right_speech],
                "file": _flac(folder.audio / audio_name(record.question, record.policy)),
                "tokens": len(record.tokens),
                "full_depth": full_depth,
                "strip": _strip(record, full_depth),
            }
        )
    return answers


def _depths(model: HookedModel, records: Sequence[Record]) -> Any:
    words = [
        [
            model.tokenizer.decode([t]).strip() if m == Modality.TEXT and model.tokenizer else ""
            for t, m in zip(r.tokens, r.modalities, strict=True)
        ]
        for r in records
    ]
    return plots.depth_figure(records, words, model.depth)
