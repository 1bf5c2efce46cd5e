"""Questions from files and data sets: the tasks of the paper, or any others."""

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

#: field names of the question in AlpacaEval, Llama Questions, TriviaQA and WebQuestions
QUESTION_FIELDS = ("question", "Questions", "instruction", "prompt")
#: field names of the right answer in the same data sets
ANSWER_FIELDS = ("answers", "answer", "Answer", "keys")
#: prefix of a data set on the Hugging Face Hub
HUB = "hf:"


def read_task(source: str | Path, name: str | None = None) -> list[dict[str, Any]]:
    """Read the questions of a task.

    An answer is a string, a list of aliases of which one is sufficient, or TriviaQA's dict of a
    value and its aliases.  `keys` are phrases that must all occur.  `audio` names a sound file
    with the spoken question, relative to the folder of the task file.

    Args:
        source: a file (`.jsonl`, `.json` with a list, `.csv` or `.parquet`) with a question per
            row, or `hf:ID:CONFIG:SPLIT` for a data set on the Hub, which needs the package
            `datasets`.
        name: name of the task; the file's name by default.

    Returns:
        Dicts with `question`, `keys` (None without a right answer), `task` and `audio`.  A
        question that occurs several times is kept once.

    Raises:
        EepolicyError: the file cannot be read, or a row has no question or a missing sound file.
    """
    is_hub = str(source).startswith(HUB)
    file = Path(source)
    questions: dict[str, dict[str, Any]] = {}
    rows = _read_hub(str(source)) if is_hub else _read_file(file)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise EepolicyError(f"{file} is not a list of questions: entry {number} is {row!r}")
        question = next((row[f] for f in QUESTION_FIELDS if isinstance(row.get(f), str)), None)
        audio = None if is_hub else row.get("audio")
        if question is None:
            raise EepolicyError(
                f"row {number} of {file} has no question; it is read from one of the fields "
                f"{', '.join(QUESTION_FIELDS)}"
            )
        if isinstance(audio, str) and not (file.parent / audio).is_file():
            raise EepolicyError(f"row {number} of {file} names the sound {audio}, which is missing")
        questions[question] = {
            "question": question,
            "keys": _keys(row),
            "task": name or file.stem,
            "audio": str(file.parent / audio) if isinstance(audio, str) else None,
        }
    if not questions:
        raise EepolicyError(f"{file} contains no question")
    return list(questions.values())


def synthesized(
    questions: list[dict[str, Any]], command: str, folder: Path
) -> list[dict[str, Any]]:
    """Synthesize the speech of questions with a program; questions with a sound file keep it.

    Args:
        questions: questions from `read_task`.
        command: command line with `{text}` and `{file}` in place of the question and the sound
            file (wav), such as `flite -voice slt -t {text} -o {file}`.  It runs without a shell.
        folder: folder of the sound files; existing files are reused.

    Returns:
        The questions, each with `audio`.

    Raises:
        EepolicyError: the command fails or writes no file.
    """
    parts = shlex.split(command)
    if not all(any(field in part for part in parts) for field in ("{text}", "{file}")):
        raise EepolicyError(
            f"a speech synthesis command contains {{text}} and {{file}}; got {command!r}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    spoken = []
    for question in questions:
        audio = question.get("audio") or _synthesize(question["question"], command, parts, folder)
        spoken.append(question | {"audio": audio})
    return spoken


def _synthesize(question: str, command: str, parts: list[str], folder: Path) -> str:
    """Run the command for one question unless its file exists; returns the file."""
    name = hashlib.sha256(f"{command}\n{question}".encode()).hexdigest()[:16]
    file = folder / f"{name}.wav"
    if file.is_file():
        return str(file)
    part_file = folder / f"{name}.part.wav"
    values = {"{text}": question, "{file}": str(part_file)}
    arguments = [values.get(part, part.replace("{file}", str(part_file))) for part in parts]
    try:
        subprocess.run(arguments, check=True, capture_output=True)
        part_file.replace(file)
    except (OSError, subprocess.CalledProcessError) as error:
        raise EepolicyError(
            f"{arguments[0]} did not synthesize the question {question!r}: {error}"
        ) from error
    return str(file)


def _read_hub(source: str) -> Iterable[Mapping[str, Any]]:
    """Rows of `hf:ID:CONFIG:SPLIT`; config and split are optional."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise EepolicyError(f"{source} needs the package datasets: pip install datasets") from error
    identity, config, split = [*source.removeprefix(HUB).split(":"), "", ""][:3]
    try:
        rows: Iterable[Mapping[str, Any]] = load_dataset(
            identity, config or None, split=split or "test"
        )
        return rows
    except (OSError, ValueError) as error:
        raise EepolicyError(f"{source} cannot be read: {error}") from error


def _read_file(file: Path) -> Iterable[Mapping[str, Any]]:
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
    raise EepolicyError(f"a task file is .jsonl, .json, .csv or .parquet; got {file}")


def _keys(row: Mapping[str, Any]) -> list[Any] | None:
    """Phrases that must all occur; each is a phrase or a list of aliases."""
    for name in ANSWER_FIELDS:
        answer = row.get(name)
        if isinstance(answer, Mapping):
            aliases = answer.get("aliases")
            answer = [answer.get("value"), *(() if aliases is None else aliases)]
        if isinstance(answer, (str, int, float)) and str(answer):
            return [str(answer)]
        if isinstance(answer, (list, np.ndarray)):  # Parquet gives arrays for lists
            some = [str(alias) for alias in answer if alias is not None and str(alias)]
            if some:
                return list(some) if name == "keys" else [some]
    return None
