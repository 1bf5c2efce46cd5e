"""Pictures of the gallery that no other page has, drawn with the pocket model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

import eepolicy
from eepolicy.analysis.evaluation.plots import depth_figure
from eepolicy.analysis.evaluation.records import Record
from eepolicy.analysis.studies.policy_search import MEASURES, SearchResult
from eepolicy.analysis.style import figures
from eepolicy.decode.output import Output
from eepolicy.decode.output_html import depth_strip
from eepolicy.io import make_folder, write_figure, write_text
from eepolicy.modality import Modality

QUESTION = "What color is snow?"
#: table of the page of the policy search, which has no stored measurements
TABLE = Path(__file__).parents[1] / "docs/findings/generated/policy-search.md"
POLICIES = ("full", "spark:triple@14", "static@6")
#: dots per inch of the heatmap: small cells with letters make a large SVG file
DPI = 75


def draw_pictures(folder: Path) -> None:
    """Decode one question with some policies, and draw the probe, the depths and a reply.

    Args:
        folder: folder of the pictures.
    """
    make_folder(folder)
    model = eepolicy.load("pocket")
    outs = {policy: model.generate(QUESTION, policy) for policy in POLICIES}
    result = eepolicy.probe(model, outs["full"])
    with figures():
        write_figure(folder / "layers.svg", result.plot.layers("entropy", "agreement"))
        write_figure(folder / "heatmap.png", result[:24].plot.heatmap("entropy"), dpi=DPI)
        records = [record_of(policy, out) for policy, out in outs.items()]
        words = [words_of(model, record) for record in records]
        write_figure(folder / "depths.svg", depth_figure(records, words, model.depth))
        write_figure(folder / "policy-search.svg", search_result(TABLE.read_text()).figure())
    write_text(folder / "reply.svg", reply_picture(outs[POLICIES[1]]))


def search_result(table: str) -> SearchResult:
    """The result of the policy search on its page, from its table."""
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("| `")
    ]
    frame = pd.DataFrame(rows, columns=["policy", *(m.name for m in MEASURES), "passed"])
    for measure in MEASURES:
        frame[measure.name] = frame[measure.name].astype(float) / measure.scale
    return SearchResult("", frame.assign(passed=frame.passed == "yes"), {})


def record_of(policy: str, out: Output) -> Record:
    """The record of a reply, with what the figure needs."""
    trace = out.trace
    return Record(
        question=QUESTION,
        policy=policy,
        text=out.text or "",
        tokens=out.tokens.tolist(),
        depths=(trace.depth + trace.branch_calls).tolist(),
        modalities=trace.modality.tolist(),
        layer_calls=int(trace.layer_calls.sum()),
        readouts=int(trace.readouts.sum()),
        ended=True,
    )


def words_of(model: eepolicy.HookedModel, record: Record) -> list[str]:
    """The text of each token of a reply; empty for speech."""
    tokenizer: Any = model.tokenizer
    return [
        tokenizer.decode([token]).strip() if modality == Modality.TEXT else ""
        for token, modality in zip(record.tokens, record.modalities, strict=True)
    ]


def reply_picture(out: Output) -> str:
    """The strip of a reply as an SVG file: its drawing without the legend below."""
    [drawing] = re.findall(r"<svg.*?</svg>", depth_strip(out.trace), re.DOTALL)
    return str(drawing).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
