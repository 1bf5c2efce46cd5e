"""Questions from files: the paper's tasks, or one's own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eepolicy.errors import EepolicyError

#: fields that hold the question, and the right answer, in the data sets as they are published:
#: AlpacaEval, Llama Questions, TriviaQA, WebQuestions
QUESTION = ("question", "Questions", "instruction", "prompt")
ANSWER = ("answers", "answer", "Answer", "keys")


def read_task(file: Path, name: str | None = None) -> list[dict[str, Any]]:
    """The questions of a task.

    Args:
        file: `.jsonl`, `.json` (a list), `.csv` or `.parquet`; a row a question.  An answer is a
            string, a list of which any is right, or TriviaQA's dict of a value and its aliases;
            `keys` are phrases of which all must occur.  `audio` names a sound file, by the file's
            own folder, in which the question is asked.
        name: of the task; the file's where none is given.

    Returns:
        Dicts with `question`, `keys` (None where there is no right answer), `task` and `audio`.

    Raises:
        EepolicyError: the file cannot be read, or a row has no question or a sound that is missing.
    """
    found = []
    for number, row in enumerate(_rows(file), start=1):
        if not isinstance(row, Mapping):
            raise EepolicyError(f"{file} is no list of questions: entry {number} is {row!r}")
        question = next((row[f] for f in QUESTION if isinstance(row.get(f), str)), None)
        audio = row.get("audio")
        if question is None:
            raise EepolicyError(
                f"row {number} of {file} has no question; it is read from {', '.join(QUESTION)}"
            )
        if isinstance(audio, str) and not (file.parent / audio).is_file():
            raise EepolicyError(f"row {number} of {file} is asked in {audio}, which is not there")
        found.append(
            {
                "question": question,
                "keys": _keys(row),
                "task": name or file.stem,
                "audio": str(file.parent / audio) if isinstance(audio, str) else None,
            }
        )
    if len({q["question"] for q in found}) < len(found):
        found = list({q["question"]: q for q in found}.values())
    if not found:
        raise EepolicyError(f"{file} holds no question")
    return found


def _rows(file: Path) -> Iterable[Mapping[str, Any]]:
    try:
        if file.suffix == ".jsonl":
            lines = file.read_text(encoding="utf-8").splitlines()
            return [json.loads(line) for line in lines if line.strip()]
        if file.suffix == ".json":
            return list(json.loads(file.read_text(encoding="utf-8")))
        if file.suffix == ".csv":
            return pd.read_csv(file, dtype=str, keep_default_na=False).to_dict("records")
        if file.suffix == ".parquet":
            return pd.read_parquet(file).to_dict("records")
    except (OSError, ValueError, ImportError) as error:
        raise EepolicyError(f"{file} cannot be read: {error}") from error
    raise EepolicyError(f"questions come from .jsonl, .json, .csv or .parquet; got {file}")


def _keys(row: Mapping[str, Any]) -> list[Any] | None:
    """Phrases of which all must occur, each a phrase or a list of which any does."""
    for field in ANSWER:
        held = row.get(field)
        if isinstance(held, Mapping):
            aliases = held.get("aliases")
            held = [held.get("value"), *(() if aliases is None else aliases)]
        if isinstance(held, (str, int, float)) and str(held):
            return [str(held)]
        if isinstance(held, (list, np.ndarray)):  # Parquet makes arrays of lists
            some = [str(alias) for alias in held if alias is not None and str(alias)]
            if some:
                return list(some) if field == "keys" else [some]
    return None
