"""Run folders made by hand for the leaderboard: no model decodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from example_record import RECORD, store

from eepolicy.analysis.evaluation.records import RunFolder

#: the pocket model's fingerprint, and other fields of `identity`
IDENTITY = {
    "model": {"model_type": "llama", "num_hidden_layers": 20, "weights": "0123456789abcdef"},
    "numbers": "torch.float32 on cpu",
    "card": None,
    "heads": "TunedLens(depths 1 to 19) 0123456789ab",
    "threads": 1,
    "versions": {"eepolicy": "0.1.0", "torch": "2.13.0"},
    "decoding": {"compile": False},
    "sampling": {},
    "batch": 50,
    "compile_timed": True,
}

#: by row: word errors per reply of two words, and seconds per reply
ROWS = {
    "full": (0, 1.0),
    "static@16": (0, 0.8),
    "static@14": (0, 0.5),
    "static@4": (2, 0.25),
    "static@8": (0, None),
}


def example(
    path: Path,
    rows: Mapping[str, tuple[int, float | None]] = ROWS,
    questions: int = 24,
    first: int = 0,
    **identity: object,
) -> Path:
    """Store a run whose rows have the given errors and seconds on every question.

    Args:
        path: folder of the run.
        rows: word errors and seconds of each row.
        questions: number of questions.
        first: number in the text of the first question.
        **identity: fields of the identity with another value.
    """
    folder = RunFolder(path)
    folder.open(IDENTITY | identity)
    # replies have two words: a word error is far more than the default margin of 2 points
    folder.note(rows=list(rows), margins={"wer": 50.0})
    for number in range(first, first + questions):
        same = replace(RECORD, question=f"q{number}", mos=None)
        store(
            folder,
            [
                replace(same, policy=policy, errors=errors, seconds=seconds)
                for policy, (errors, seconds) in rows.items()
            ],
        )
    return path
