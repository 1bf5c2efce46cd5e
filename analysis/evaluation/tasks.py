"""Questions from files and data sets: the tasks of the paper, or any others."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import re
import shlex
import subprocess
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eepolicy.errors import EepolicyError
from eepolicy.io import make_folder, write_bytes

#: field names of the question in AlpacaEval, Llama Questions, TriviaQA and WebQuestions
QUESTION_FIELDS = ("question", "Questions", "instruction", "prompt")
#: field names of the right answer in the same data sets
ANSWER_FIELDS = ("answers", "answer", "Answer", "keys", "answer_normalized_aliases")
#: parts of the names of other fields that would hold a right answer
ANSWER_WORDS = ("answer", "alias")
#: field and folder of the spoken questions in the CSV files of OpenAudioBench
AUDIO_FIELD, AUDIO_FOLDER = "audio_filename", "audios"
#: prefix of a data set on the Hugging Face Hub
HUB = "hf:"


def read_task(
    source: str | Path, name: str | None = None, sounds: Path | None = None
) -> list[dict[str, Any]]:
    """Read the questions of a task.

    An answer is a string, a list of aliases of which one is sufficient, or TriviaQA's dict of a
    value and its aliases.  In a CSV file, a list is a string such as `"['a', 'b']"`.  `keys` are
    phrases that must all occur.  `audio` names a sound file with the spoken question, relative to
    the folder of the task file; `audio_filename` is relative to the folder `audios` beside it, as
    in OpenAudioBench.

    Args:
        source: a file (`.jsonl`, `.json` with a list, `.csv` or `.parquet`) with a question per
            row, or `hf:ID:CONFIG:SPLIT` for a data set on the Hub, which needs the package
            `datasets`.
        name: name of the task; the file's name by default.
        sounds: folder for the spoken questions of a data set on the Hub, which are read from its
            first column of sound; None takes its written questions.

    Returns:
        Dicts with `question`, `keys` (None without a right answer), `task` and `audio`.  A
        question that occurs several times is kept once.

    Raises:
        EepolicyError: the file cannot be read; or a row has no question, a missing sound file, or
            an answer in a field that is not read.
    """
    is_hub = str(source).startswith(HUB)
    file = Path(source)
    questions: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(read_rows(source, sounds), start=1):
        if not isinstance(row, Mapping):
            raise EepolicyError(f"{file} is not a list of questions: entry {number} is {row!r}")
        question = next((row[f] for f in QUESTION_FIELDS if isinstance(row.get(f), str)), None)
        audio = row.get("audio") if is_hub else _audio(row)
        if question is None:
            raise EepolicyError(
                f"row {number} of {file} has no question; it is read from one of the fields "
                f"{', '.join(QUESTION_FIELDS)}"
            )
        if isinstance(audio, str) and not is_hub:
            if not (file.parent / audio).is_file():
                raise EepolicyError(
                    f"row {number} of {file} names the sound {audio}, which is missing"
                )
            audio = str(file.parent / audio)
        unread = [f for f in row if any(word in str(f).lower() for word in ANSWER_WORDS)]
        if unread and not set(ANSWER_FIELDS) & set(row):
            raise EepolicyError(
                f"row {number} of {file} has the field {unread[0]}, which is not read: call it "
                f"{', '.join(ANSWER_FIELDS[:-1])} or {ANSWER_FIELDS[-1]}"
            )
        questions[question] = {
            "question": question,
            "keys": _keys(row),
            "task": name or file.stem,
            "audio": audio if isinstance(audio, str) else None,
        }
    if not questions:
        raise EepolicyError(f"{file} contains no question")
    return list(questions.values())


def read_rows(source: str | Path, sounds: Path | None = None) -> Iterable[Mapping[str, Any]]:
    """Rows of a file or of a data set on the Hub, by column; see `read_task`.

    Args:
        source: the file, or `hf:ID:CONFIG:SPLIT`.
        sounds: folder for the sound of a data set on the Hub, whose file is in the column `audio`;
            None leaves it out.

    Raises:
        EepolicyError: it cannot be read.
    """
    is_hub = str(source).startswith(HUB)
    return _read_hub(str(source), sounds) if is_hub else _read_file(Path(source))


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
    try:
        parts = shlex.split(command)
    except ValueError as error:
        raise EepolicyError(
            f"the speech synthesis command {command!r:.100} cannot be read: {error}"
        ) from error
    if not all(any(field in part for part in parts) for field in ("{text}", "{file}")):
        raise EepolicyError(
            f"a speech synthesis command contains {{text}} and {{file}}; got {command!r}"
        )
    make_folder(folder)
    spoken = []
    for question in questions:
        audio = question.get("audio") or _synthesize(question["question"], command, parts, folder)
        spoken.append(question | {"audio": audio})
    return spoken


def _synthesize(question: str, command: str, parts: list[str], folder: Path) -> str:
    """Run the command for one question unless its file exists; returns the file."""
    name = hashlib.sha256(f"{command}\n{question}".encode("utf-8", "surrogatepass")).hexdigest()[
        :16
    ]
    file = folder / f"{name}.wav"
    if file.is_file():
        return str(file)
    part_file = folder / f"{name}.part.wav"
    # a space keeps a question such as "-5 plus 3?" from becoming an option of the program
    spoken = f" {question}" if question.startswith("-") else question
    values = {"text": question, "file": str(part_file)}
    arguments = [
        spoken if part == "{text}" else re.sub(r"\{(text|file)\}", lambda m: values[m[1]], part)
        for part in parts
    ]
    try:
        subprocess.run(arguments, check=True, capture_output=True)
        part_file.replace(file)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise EepolicyError(
            f"{arguments[0]} did not synthesize the question {question!r}: {error}"
        ) from error
    return str(file)


def _spoken(rows: Any, sounds: list[str], folder: Path | None) -> Iterable[Mapping[str, Any]]:
    """Rows of a data set, with sound as files.

    The package would decode sound with torchcodec; here it only hands out the bytes.

    Args:
        rows: the data set.
        sounds: names of the columns with sound.
        folder: folder for the files; None leaves the sound out.
    """
    if not sounds:
        yield from rows
        return
    from datasets import Audio

    for name in sounds:
        rows = rows.cast_column(name, Audio(decode=False))
    for row in rows:
        sound, rest = row[sounds[0]], {k: v for k, v in row.items() if k not in sounds}
        if folder is None or not sound or not sound.get("bytes"):
            yield rest
            continue
        digest = hashlib.sha256(sound["bytes"]).hexdigest()[:16]
        file = folder / f"{digest}{Path(sound.get('path') or '').suffix or '.wav'}"
        if not file.is_file():
            make_folder(folder)
            write_bytes(file, sound["bytes"])
        yield rest | {"audio": str(file)}


def _read_hub(source: str, sounds_folder: Path | None) -> Iterable[Mapping[str, Any]]:
    """Rows of `hf:ID:CONFIG:SPLIT`; config and split are optional."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise EepolicyError(f"{source} needs the package datasets: pip install datasets") from error
    identity, config, split = [*source.removeprefix(HUB).split(":"), "", ""][:3]
    try:
        rows: Any = load_dataset(identity, config or None, split=split or "test")
        sounds = [
            name
            for name, kind in (getattr(rows, "features", None) or {}).items()
            if type(kind).__name__ == "Audio"
        ]
        return _spoken(rows, sounds, sounds_folder)
    except (OSError, ValueError) as error:
        raise EepolicyError(f"{source} cannot be read: {error}") from error


def _read_file(file: Path) -> Iterable[Mapping[str, Any]]:
    try:
        if file.suffix == ".jsonl":
            # `splitlines` would also split at characters that JSON allows in strings
            lines = file.read_text(encoding="utf-8-sig").split("\n")
            return [json.loads(line) for line in lines if line.strip()]
        if file.suffix == ".json":
            entries = json.loads(file.read_text(encoding="utf-8-sig"))
            if not isinstance(entries, list):
                raise EepolicyError(f"{file} is not a list of rows; got {entries!r:.60}")
            return entries
        if file.suffix == ".csv":
            return list(pd.read_csv(file, dtype=str, keep_default_na=False).to_dict("records"))
        if file.suffix == ".parquet":
            return list(pd.read_parquet(file).to_dict("records"))
    except EepolicyError:
        raise
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
        if isinstance(answer, str) and answer.strip().startswith("[") and name != "keys":
            answer = _listed(answer)
        if isinstance(answer, (str, int, float)) and str(answer):
            return [str(answer)]
        if isinstance(answer, (list, np.ndarray)):  # Parquet gives arrays for lists
            some = [str(alias) for alias in answer if alias is not None and str(alias)]
            if some:
                return list(some) if name == "keys" else [some]
    return None


def _audio(row: Mapping[str, Any]) -> Any:
    """The sound file of a row, relative to the folder of the task file."""
    name = row.get(AUDIO_FIELD)
    if isinstance(name, str) and name and "audio" not in row:
        return f"{AUDIO_FOLDER}/{name}"
    return row.get("audio")


def _listed(text: str) -> list[str] | str:
    """The strings of a list as Python or NumPy print it: `['a', 'b']`; other text as it is.

    NumPy prints no commas, and Python would join the strings.
    """
    try:
        parsed = ast.literal_eval(text.strip())
        tokens = list(tokenize.generate_tokens(io.StringIO(text.strip()).readline))
    except (ValueError, SyntaxError, tokenize.TokenError):
        return text
    if not isinstance(parsed, list):
        return text
    strings = [ast.literal_eval(t.string) for t in tokens if t.type == tokenize.STRING]
    return strings if all(isinstance(item, str) for item in parsed) else [str(p) for p in parsed]
