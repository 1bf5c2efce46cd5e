"""The record of one reply, and the folder that stores the records of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from eepolicy.errors import EepolicyError
from eepolicy.formats import RecordLine, RunFile, parse
from eepolicy.hooked import HookedModel
from eepolicy.io import append_line, read_json, read_numbered_jsonl, write_json
from eepolicy.modality import Modality
from eepolicy.probing import Document


@dataclass(frozen=True)
class Record:
    """Measurements of one policy's reply to one question.

    Attributes:
        question: text of the question.
        policy: spec string of the policy.
        text: text of the reply.
        transcript: transcript of the reply's speech; None without speech recognition.
        right_text: whether the text contains every key phrase of the right answer; None if the
            question has no right answer.
        right_speech: the same for the transcript.
        errors: word errors of the transcript against the reply's own text.
        words: number of words in that text.
        mos: predicted mean opinion score; None without a rater.
        ended: whether the reply ended with its end token, not at the token limit.
        seconds: wall-clock time of decoding, prefill included.
        speech_seconds: duration of the speech.
        text_tokens: number of text tokens.
        speech_tokens: number of speech tokens.
        text_layers: sum of the depths of the text tokens.
        speech_layers: sum of the depths of the speech tokens.
        layer_calls: number of layer calls of decoding, prefill excluded.
        readouts: number of exit head evaluations.
        tokens: (tokens,) ids of the reply.
        depths: (tokens,) depth of each token.
        modalities: (tokens,) modality of each token, see `Modality`.
        seed: seed of sampling.
        spoken: whether the question was given as audio.
        judge_score: a judge's score from 0 to 1; None without a judge.
    """

    question: str
    policy: str
    text: str
    transcript: str | None
    right_text: bool | None
    right_speech: bool | None
    errors: int | None
    words: int | None
    mos: float | None
    ended: bool
    seconds: float
    speech_seconds: float
    text_tokens: int
    speech_tokens: int
    text_layers: int
    speech_layers: int
    layer_calls: int
    readouts: int
    tokens: list[int] = field(repr=False)
    depths: list[int] = field(repr=False)
    modalities: list[int] = field(repr=False)
    seed: int = 0
    spoken: bool = False
    judge_score: float | None = None

    @property
    def repeats(self) -> int:
        """Number of speech tokens that equal the speech token before them."""
        pairs = zip(self.tokens, self.modalities, strict=True)
        speech = [token for token, modality in pairs if modality == Modality.SPEECH]
        return sum(a == b for a, b in pairwise(speech))

    def document(self, model: HookedModel) -> Document:
        """Make a document of question and reply for `eepolicy.probe`."""
        prompt = model.encode(self.question)
        return Document(torch.cat([prompt, torch.tensor(self.tokens)]), len(prompt))


class RunFolder:
    """Folder of one run: `run.json`, `records.jsonl` with one record per line, and `audio/`.

    A stopped run continues with the first record that is missing.

    Args:
        path: path of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def audio(self) -> Path:
        """Folder of the replies' speech."""
        return self.path / "audio"

    def open(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Create the folder, or check that its run has the same identity.

        Args:
            identity: settings that all records of a run share, as JSON types.

        Returns:
            The notes stored so far, see `note`.

        Raises:
            EepolicyError: the folder contains another run or other files.
        """
        if not (self.path / "run.json").exists():
            self._create(identity)
            return {}
        stored, notes = self.read()
        self.audio.mkdir(exist_ok=True)
        differing = _differing_fields(stored, identity)
        if differing:
            raise EepolicyError(
                f"{self.path} contains a run with another {', '.join(differing)}; "
                "give another folder with --out, or remove it"
            )
        return notes

    def _create(self, identity: Mapping[str, Any]) -> None:
        if self.path.exists() and any(f.suffix != ".part" for f in self.path.iterdir()):
            raise EepolicyError(
                f"{self.path} contains files that are not of a run; give another folder with --out"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._write(identity, {})
        self.audio.mkdir()

    def read(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `run.json`: the identity and the notes of the run.

        Raises:
            EepolicyError: the file cannot be read.
        """
        file = self.path / "run.json"
        try:
            run = parse(RunFile, read_json(file), str(file))
        except EepolicyError as error:
            raise EepolicyError(
                f"{error}; give another folder with --out, or remove {self.path}"
            ) from error
        return run.identity, run.notes

    def note(self, **notes: Any) -> None:
        """Store notes beside the identity, such as the calibrated policies."""
        identity, stored = self.read()
        self._write(identity, stored | notes)

    def _write(self, identity: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        write_json(self.path / "run.json", {"identity": identity, "notes": notes}, indent=1)

    def records(self) -> dict[tuple[str, str], list[Record]]:
        """Read all records by question and policy, one per seed; a damaged last line is skipped.

        Raises:
            EepolicyError: another line is not a record.
        """
        file = self.path / "records.jsonl"
        records: dict[tuple[str, str], list[Record]] = {}
        for number, value in read_numbered_jsonl(file) if file.exists() else ():
            line = parse(RecordLine, value, f"{file}, line {number}")
            record = Record(**line.model_dump(exclude={"version"}))
            records.setdefault((record.question, record.policy), []).append(record)
        return records

    def append(self, record: Record) -> None:
        """Append a record and sync it to the disk."""
        append_line(self.path / "records.jsonl", json.dumps(asdict(record)))


def _differing_fields(stored: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the fields that differ, those of nested settings as `decoding.fill`."""
    names: list[str] = []
    for name in sorted({*stored, *new}):
        one, other = stored.get(name), new.get(name)
        if one == other:
            continue
        if name in ("decoding", "sampling") and isinstance(one, dict) and isinstance(other, dict):
            names += [f"{name}.{nested}" for nested in _differing_fields(one, other)]
        else:
            names.append(name)
    return names
