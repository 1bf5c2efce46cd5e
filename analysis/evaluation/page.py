"""The data of the report page, as one JSON document."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eepolicy.analysis.evaluation.columns import Column, shown_columns
from eepolicy.analysis.evaluation.page_plot import axes, markers
from eepolicy.analysis.evaluation.page_questions import (
    by_difference,
    content,
    question_id,
    reply,
)
from eepolicy.analysis.evaluation.page_sound import Sound, data_url, read_sound
from eepolicy.analysis.evaluation.records import Record
from eepolicy.analysis.evaluation.results_files import cell

#: rows of `Comparison.table`
Rows = Sequence[Mapping[str, Any]]

#: number of questions whose sound is in the page
SOUND_QUESTIONS = 12
#: bytes of the page without its scripts: questions first, then sound, as far as there is room
MAX_BYTES = 7_500_000
#: columns that the table shows at first, as far as they were measured; the reader can show all
FIRST_COLUMNS = ("wer", "accuracy_speech", "speech_depth", "layer_calls", "seconds", "speedup")


@dataclass(frozen=True)
class PageInput:
    """What the data of a page are made from.

    Attributes:
        rows: rows of `Comparison.table`.
        columns: columns of the comparison.
        replies: by question: a record per row.
        full_depth: number of layers of the model.
        folder: run folder, which contains the page.
        margins: equivalence margins with `wer`, `accuracy` and `mos`, in the units of the table.
        words: text of each text token; by id.
        about: further entries of the document, such as the model and the command.
    """

    rows: Rows
    columns: Sequence[Column]
    replies: Mapping[str, Sequence[Record]]
    full_depth: int
    folder: Path
    margins: object = None
    words: Mapping[int, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def page_data(source: PageInput) -> dict[str, Any]:
    """Make the document that the page shows.

    Args:
        source: rows, replies and what belongs to them.

    Returns:
        JSON types: `columns`, `rows`, `axes`, `questions` in the order of the run, `sounds` by
        digest as data URLs, `first`, the id of the question to begin with, `left_out`, the number
        of questions for which there is no room, and the entries of `about`.
    """
    order = by_difference(source.replies)
    questions, sounds = _questions(source, order)
    columns = shown_columns(source.rows, source.columns)
    document = {
        **source.about,
        "full_depth": source.full_depth,
        "columns": column_entries(columns),
        "rows": list(row_entries(source.rows, columns)),
        "axes": axes(source.rows, source.columns, source.margins),
        "questions": questions,
        "first": question_id(order[0]),
        "left_out": len(source.replies) - len(questions),
        "sounds": sounds,
    }
    return dict(finite(document))


def column_entries(
    columns: Sequence[Column], first: Sequence[str] = FIRST_COLUMNS
) -> list[dict[str, Any]]:
    """Describe the columns of the page's table.

    Args:
        columns: columns that the reader can choose.
        first: names of those that the table shows at first.
    """
    return [{"name": c.name, "heading": c.heading, "first": c.name in first} for c in columns]


def row_entries(rows: Rows, columns: Sequence[Column]) -> Iterator[dict[str, Any]]:
    """Describe the rows of the page's table, with their cells as numbers and as text.

    Args:
        rows: rows of one `Comparison.table`, the baseline first.
        columns: columns that the reader can choose.
    """
    styles = markers([row["policy"] for row in rows])
    for i, (row, style) in enumerate(zip(rows, styles, strict=True)):
        values = {}
        for column in columns:
            keys = ("", "_low", "_high", "_diff", "_diff_low", "_diff_high")
            numbers = {k.strip("_") or "value": row.get(f"{column.name}{k}") for k in keys}
            shown = cell(row, column, is_baseline=i == 0)
            scaled = {k: None if v is None else column.scale * v for k, v in numbers.items()}
            values[column.name] = scaled | {"text": shown}
        yield {
            "policy": row["policy"],
            "status": row["status"],
            "verdict": row["verdict"],
            "values": values,
            **style,
        }


def _questions(
    source: PageInput, order: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Questions with their replies in the order of the run, and the sound of some of them."""
    room = MAX_BYTES
    chosen: dict[str, dict[str, Any]] = {}
    sounds_of: dict[str, list[Sound]] = {}
    for question in order:
        entry, sounds = _question(question, source)
        room -= len(json.dumps(entry))
        if room < 0 and chosen:
            break
        chosen[question] = entry
        sounds_of[question] = sounds if len(sounds_of) < SOUND_QUESTIONS else []
    encoded: dict[str, str] = {}
    for sounds in sounds_of.values():
        urls = {s.digest: data_url(s, source.folder / "page") for s in sounds}
        room -= sum(len(url) for digest, url in urls.items() if digest not in encoded)
        if room < 0:
            break
        encoded |= urls
    return [chosen[question] for question in source.replies if question in chosen], encoded


def _question(question: str, source: PageInput) -> tuple[dict[str, Any], list[Sound]]:
    """The page's entry of a question, and the sound of its replies."""
    records = source.replies[question]
    replies, sounds = [], []
    for row, record in enumerate(records):
        sound = read_sound(source.folder, f"{record.speech}.flac") if record.speech else None
        replies.append(reply(record, row, sound, source.words))
        sounds += [sound] if sound else []
    entry = {
        "id": question_id(question),
        "question": question,
        "differs": len({(content(r), r.right_text, r.right_speech) for r in records}) > 1,
        "replies": replies,
    }
    return entry, sounds


def finite(value: Any) -> Any:
    """Replace numbers that JSON does not have, NaN and infinities, by None.

    Args:
        value: JSON types and such numbers.

    Examples:
        >>> from eepolicy.analysis.evaluation.page import finite
        >>> finite({"x": [1.5, float("nan")]})
        {'x': [1.5, None]}
    """
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def inline_file(file: Path, media_type: str) -> str:
    """Encode a file as a data URL."""
    return f"data:{media_type};base64,{base64.b64encode(file.read_bytes()).decode()}"
