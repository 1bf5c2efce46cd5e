"""Replies on the report page: what it shows of each, and how much policies differ on a question."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from eepolicy.analysis.evaluation.page_sound import Sound
from eepolicy.analysis.evaluation.records import Record
from eepolicy.analysis.evaluation.scoring import normalized, word_alignment
from eepolicy.modality import Modality

#: operations of `word_alignment` as the page's data name them
OPERATIONS = {"equal": "=", "substitution": "s", "insertion": "i", "deletion": "d"}
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def difference(records: Sequence[Record]) -> tuple[int, int, int]:
    """Measure how much the replies of the policies to one question differ.

    Args:
        records: a record per policy.

    Returns:
        The spread of the word errors, the number of further transcripts (texts without
        speech recognition) and the number of further token sequences.  Tuples are compared from
        left to right.
    """
    errors = [record.errors for record in records if record.errors is not None]
    contents = {content(record) for record in records}
    tokens = {tuple(record.tokens) for record in records}
    spread = max(errors) - min(errors) if errors else 0
    return spread, len(contents) - 1, len(tokens) - 1


def content(record: Record) -> str:
    """What a reply says, normalised: its transcript, or its text without speech recognition."""
    return normalized(record.text if record.transcript is None else record.transcript)


def by_difference(replies: Mapping[str, Sequence[Record]]) -> list[str]:
    """Order questions: those on which the policies differ most come first.

    Args:
        replies: by question: a record per policy.
    """
    return sorted(replies, key=lambda question: difference(replies[question]), reverse=True)


def question_id(question: str) -> str:
    """Identify a question in links to the page."""
    return hashlib.sha256(question.encode()).hexdigest()[:8]


def reply(
    record: Record, row: int, sound: Sound | None, words: Mapping[int, str]
) -> dict[str, Any]:
    """Collect what the page shows of one reply.

    Args:
        record: record of the reply.
        row: number of its policy.
        sound: its sound; None if there is none.
        words: text of each text token, by id.

    Returns:
        JSON types.  `depths` has two base-36 digits per token; `spans` has the lengths of the
        stretches of text and speech tokens in turn, text first.
    """
    return {
        "row": row,
        "text": record.text,
        "transcript": record.transcript,
        "right_text": record.right_text,
        "right_speech": record.right_speech,
        "errors": record.errors,
        "words": record.words,
        "aligned": _aligned(record) if record.errors else None,
        "seconds": record.seconds,
        "mos": record.mos,
        "ended": record.ended,
        "calls": record.layer_calls,
        "depth": record.speech_layers / record.speech_tokens if record.speech_tokens else None,
        "depths": "".join(DIGITS[d // 36] + DIGITS[d % 36] for d in record.depths),
        "spans": spans(record.modalities),
        "tokens": [
            words.get(token, "")
            for token, modality in zip(record.tokens, record.modalities, strict=True)
            if modality == Modality.TEXT
        ],
        "wave": sound.wave if sound else "",
        "duration": sound.seconds if sound else None,
        "file": sound.file if sound else None,
        "sound": sound.digest if sound else None,
    }


def _aligned(record: Record) -> list[list[str]]:
    """The alignment of a transcript with errors; runs of equal words are one entry."""
    merged: list[list[str]] = []
    for operation, pairs in groupby(
        word_alignment(record.text, record.transcript or ""), key=lambda part: part[0]
    ):
        if operation == "equal":
            merged.append(["=", " ".join(own for _, own, _ in pairs)])
        else:
            merged += [[OPERATIONS[operation], own, heard] for _, own, heard in pairs]
    return merged


def spans(modalities: Sequence[int]) -> list[int]:
    """List the lengths of the stretches of text and speech tokens in turn, text first.

    Args:
        modalities: (tokens,) modality of each token.

    Examples:
        >>> from eepolicy.analysis.evaluation.page_questions import spans
        >>> spans([0, 0, 1, 1, 1, 0])
        [2, 3, 1]
        >>> spans([1, 1])
        [0, 2]
    """
    lengths = [len(list(group)) for _, group in groupby(modalities)]
    return [0, *lengths] if modalities and modalities[0] == Modality.SPEECH else lengths
