"""Parts of the report page: replies with their speech and depths, and inlined files."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import soundfile

from eepolicy.analysis.evaluation.records import Record, RunFolder
from eepolicy.analysis.tables import number
from eepolicy.modality import Modality

#: CSS class of a right, a wrong and an unscored reply
CLASSES = {True: "right", False: "wrong", None: ""}


def answers(records: Sequence[Record], folder: RunFolder, full_depth: int) -> list[dict[str, Any]]:
    """Collect what the page shows of every policy's reply to a question.

    Args:
        records: a record per policy.
        folder: folder of the run.
        full_depth: number of layers of the model.
    """
    return [
        {
            "policy": record.policy,
            "depth": f"{record.speech_layers / max(record.speech_tokens, 1):.2f}",
            "seconds": number(record.seconds),
            "text": record.text,
            "text_class": CLASSES[record.right_text],
            "transcript": "no transcript" if record.transcript is None else record.transcript,
            "transcript_class": CLASSES[record.right_speech],
            "file": inline_speech(folder.speech_file(record.speech)),
            "tokens": len(record.tokens),
            "full_depth": full_depth,
            "strip": depth_strip(record, full_depth),
        }
        for record in records
    ]


def depth_strip(record: Record, full_depth: int) -> list[dict[str, Any]]:
    """List runs of tokens with the same modality and depth, for the page to draw.

    Args:
        record: record of the reply.
        full_depth: number of layers of the model.

    Returns:
        Dicts with the first token of the run (`start`), its `width` in tokens, `depth`,
        `modality`, and `early`: whether it is below full depth.
    """
    runs, start = [], 0
    tokens = zip(record.modalities, record.depths, strict=True)
    for (modality, depth), group in groupby(tokens):
        width = len(list(group))
        runs.append(
            {
                "start": start,
                "width": width,
                "depth": depth,
                "modality": Modality(modality).name.lower(),
                "early": depth < full_depth,
            }
        )
        start += width
    return runs


def inline_file(file: Path, media_type: str) -> str:
    """Encode a file as a data URL."""
    return f"data:{media_type};base64,{base64.b64encode(file.read_bytes()).decode()}"


def inline_speech(file: Path) -> str | None:
    """Encode a wav file as a data URL in FLAC, which is lossless and half the size.

    Returns:
        The data URL; None if there is no file, as for a model without a vocoder.
    """
    if not file.is_file():
        return None
    flac = BytesIO()
    soundfile.write(flac, *soundfile.read(file, dtype="int16"), format="FLAC")
    return f"data:audio/flac;base64,{base64.b64encode(flac.getvalue()).decode()}"
