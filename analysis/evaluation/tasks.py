"""Questions from files: the paper's tasks, or one's own."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
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
#: in front of a data set on the Hugging Face Hub
HUB = "hf:"


def read_task(source: str | Path, name: str | None = None) -> list[dict[str, Any]]:
    """The questions of a task.

    Args:
        source: a file, or `hf:ID:CONFIG:SPLIT` for a data set on the Hub, which the package
            `datasets` fetches.  A file is `.jsonl`, `.json` (a list), `.csv` or `.parquet`; a row a
            question.  An answer is a string, a list of which any is right, or TriviaQA's dict of a
            value and its aliases; `keys` are phrases of which all must occur.  `audio` names a
            sound file, by the file's own folder, in which the question is asked.
        name: of the task; the file's where none is given.

    Returns:
        Dicts with `question`, `keys` (None where there is no right answer), `task` and `audio`.

    Raises:
        EepolicyError: the file cannot be read, or a row has no question or a sound that is missing.
    """
    hub = str(source).startswith(HUB)
    file = Path(source)
    found = []
    for number, row in enumerate(_on_hub(str(source)) if hub else _rows(file), start=1):
        if not isinstance(row, Mapping):
            raise EepolicyError(f"{file} is no list of questions: entry {number} is {row!r}")
        question = next((row[f] for f in QUESTION if isinstance(row.get(f), str)), None)
        audio = None if hub else row.get("audio")
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


def spoken(questions: list[dict[str, Any]], command: str, folder: Path) -> list[dict[str, Any]]:
    """Questions asked in sound, by a program that speaks; those that have a sound keep it.

    Args:
        questions: from `read_task`.
        command: with `{text}` and `{file}` where the question and the sound file (wav) go, such as
            `flite -voice slt -t {text} -o {file}`; it is run without a shell.
        folder: of the sounds; what is there already is not spoken again.

    Raises:
        EepolicyError: the command fails, or writes no file.
    """
    parts = shlex.split(command)
    if not all(any(place in part for part in parts) for place in ("{text}", "{file}")):
        raise EepolicyError(
            f"a command that speaks has {{text}} and {{file}} in it; got {command!r}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for question in questions:
        told = hashlib.sha256(f"{command}\n{question['question']}".encode()).hexdigest()[:16]
        file = folder / f"{told}.wav"
        if question.get("audio") is None and not file.is_file():
            whole = folder / f"{told}.part.wav"
            places = {"{text}": question["question"], "{file}": str(whole)}
            run = [places.get(part, part.replace("{file}", str(whole))) for part in parts]
            try:
                subprocess.run(run, check=True, capture_output=True)
                whole.replace(file)
            except (OSError, subprocess.CalledProcessError) as error:
                raise EepolicyError(
                    f"{run[0]} did not speak {question['question']!r}: {error}"
                ) from error
        found.append(question | {"audio": question.get("audio") or str(file)})
    return found


def _on_hub(source: str) -> Iterable[Mapping[str, Any]]:
    """The rows of `hf:ID:CONFIG:SPLIT`; config and split may be left out."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise EepolicyError(
            f"{source} is read by the package datasets: pip install datasets"
        ) from error
    identity, config, split = [*source.removeprefix(HUB).split(":"), "", ""][:3]
    try:
        rows: Iterable[Mapping[str, Any]] = load_dataset(
            identity, config or None, split=split or "test"
        )
        return rows
    except (OSError, ValueError) as error:
        raise EepolicyError(f"{source} cannot be read: {error}") from error


def _rows(file: Path) -> Iterable[Mapping[str, Any]]:
    try:
        if file.suffix == ".jsonl":
            lines = file.read_text(encoding="utf-8").splitlines()
            return [json.loads(line) for line in lines if line.strip()]
        if file.suffix == ".json":
            return list(json.loads(file.read_text(encoding="utf-8")))
        if file.suffix == ".csv":
            return list(pd.read_csv(file, dtype=str, keep_default_na=False).to_dict("records"))
        if file.suffix == ".parquet":
            return list(pd.read_parquet(file).to_dict("records"))
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
