"""The record of one reply, and the folder that stores what a run measured of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch

from eepolicy.analysis.evaluation.formats import (
    JudgementLine,
    QuestionLine,
    RatingLine,
    RecordLine,
    RunFile,
    Speech,
    SpeechLine,
    TimingLine,
)
from eepolicy.analysis.evaluation.scoring import is_right, word_errors
from eepolicy.errors import EepolicyError
from eepolicy.folder_lock import LOCK
from eepolicy.formats import FileFormat, parse
from eepolicy.hooked import HookedModel
from eepolicy.io import append_lines, make_folder, read_json, read_numbered_jsonl, write_json
from eepolicy.modality import Modality
from eepolicy.probing import Document

L = TypeVar("L", bound=FileFormat)

#: file of each kind of line
FILES: dict[type[FileFormat], str] = {
    QuestionLine: "questions.jsonl",
    RecordLine: "records.jsonl",
    SpeechLine: "speech.jsonl",
    RatingLine: "ratings.jsonl",
    TimingLine: "timings.jsonl",
    JudgementLine: "judgements.jsonl",
}


@dataclass(frozen=True)
class Record:
    """Measurements of one policy's reply to one question.

    Attributes:
        question: text of the question.
        policy: spec string of the policy.
        text: text of the reply.
        tokens: (tokens,) ids of the reply.
        depths: (tokens,) depth of each token, plus its calls of a branch.
        modalities: (tokens,) modality of each token, see `Modality`.
        layer_calls: number of layer calls of decoding, prefill excluded.
        readouts: number of exit head evaluations.
        ended: whether the reply ended with its end token, not at the token limit.
        seed: seed of sampling.
        spoken: whether the question was given as audio.
        speech: key of the reply's speech; empty without speech.
        speech_seconds: duration of the speech.
        transcript: transcript of the speech; None without speech recognition.
        right_text: whether the text contains every key phrase of the right answer; None if the
            question has no right answer.
        right_speech: the same for the transcript.
        errors: word errors of the transcript against the reply's own text.
        words: number of words in that text.
        mos: predicted mean opinion score; None if it was not rated.
        judge_score: a judge's score from 0 to 1; None without a judge.
        seconds: wall-clock time of decoding the reply alone, prefill included; None if the
            question was not timed.
        ttft: time to the first token in seconds; None if the question was not timed.
        timed_tokens: number of tokens of the reply that was timed; it can be another one, since it
            is decoded alone.
    """

    question: str
    policy: str
    text: str
    tokens: list[int] = field(repr=False)
    depths: list[int] = field(repr=False)
    modalities: list[int] = field(repr=False)
    layer_calls: int
    readouts: int
    ended: bool
    seed: int = 0
    spoken: bool = False
    speech: str = ""
    speech_seconds: float = 0.0
    transcript: str | None = None
    right_text: bool | None = None
    right_speech: bool | None = None
    errors: int | None = None
    words: int | None = None
    mos: float | None = None
    judge_score: float | None = None
    seconds: float | None = None
    ttft: float | None = None
    timed_tokens: int | None = None

    @cached_property
    def speech_tokens(self) -> int:
        """Number of speech tokens."""
        return self.modalities.count(Modality.SPEECH)

    @property
    def text_tokens(self) -> int:
        """Number of text tokens."""
        return len(self.tokens) - self.speech_tokens

    @cached_property
    def speech_layers(self) -> int:
        """Sum of the depths of the speech tokens."""
        pairs = zip(self.depths, self.modalities, strict=True)
        return sum(depth for depth, modality in pairs if modality == Modality.SPEECH)

    @property
    def text_layers(self) -> int:
        """Sum of the depths of the text tokens."""
        return sum(self.depths) - self.speech_layers

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
    """Folder of one run: `run.json`, a JSON Lines file per kind of line, and `audio/`.

    Decoding, speech recognition, rating, timing and judging write files of their own, each as soon
    as it has a result.  A stopped run continues with what is missing.  `records` joins the files.

    Args:
        path: path of the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def audio(self) -> Path:
        """Folder of the replies' speech."""
        return self.path / "audio"

    def speech_file(self, speech: str) -> Path:
        """File of a speech, which need not exist.

        Args:
            speech: key of the speech, see `Record.speech`.
        """
        return self.audio / f"{speech}.flac"

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
        make_folder(self.audio)
        differing = _differing_fields(stored, identity)
        if differing:
            raise EepolicyError(
                f"{self.path} contains a run with another {', '.join(differing)}; "
                "give another folder with --out, or remove it"
            )
        return notes

    def _create(self, identity: Mapping[str, Any]) -> None:
        if self.path.exists() and any(
            f.suffix != ".part" and f.name != LOCK for f in self.path.iterdir()
        ):
            raise EepolicyError(
                f"{self.path} contains files that are not of a run; give another folder with --out"
            )
        make_folder(self.path)
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

    def append(self, lines: Sequence[FileFormat]) -> None:
        """Append lines of one kind to their file and sync it to the disk."""
        if lines:
            file = self.path / FILES[type(lines[0])]
            append_lines(file, [line.model_dump_json(exclude_defaults=True) for line in lines])

    def lines(self, kind: type[L]) -> list[L]:
        """Read the lines of one kind; a damaged last line is skipped.

        Args:
            kind: a key of `FILES`.

        Raises:
            EepolicyError: another line is not of this kind.
        """
        file = self.path / FILES[kind]
        if not file.exists():
            return []
        numbered = read_numbered_jsonl(file)
        return [parse(kind, value, f"{file}, line {number}") for number, value in numbered]

    def questions(self) -> dict[str, QuestionLine]:
        """Read the questions by their text."""
        return {line.question: line for line in self.lines(QuestionLine)}

    def records(self) -> dict[tuple[str, str], list[Record]]:
        """Join what was measured: records by question and policy, one per seed.

        Raises:
            EepolicyError: a line of a file has another form.
        """
        questions = self.questions()
        speech = {clip.speech: clip for line in self.lines(SpeechLine) for clip in line.clips}
        mos = {line.speech: line.mos for line in self.lines(RatingLine)}
        timings = {(t.question, t.policy): t for t in self.lines(TimingLine)}
        scores = {(j.question, j.policy, j.seed): j.score for j in self.lines(JudgementLine)}
        records: dict[tuple[str, str], list[Record]] = {}
        for line in self.lines(RecordLine):
            question = questions.get(line.question)
            # the time is that of one reply
            timing = timings.get((line.question, line.policy)) if line.seed == 0 else None
            record = Record(
                **line.model_dump(exclude={"version"}),
                **_scored(line.text, speech.get(line.speech), question.keys if question else None),
                mos=mos.get(line.speech),
                judge_score=scores.get((line.question, line.policy, line.seed)),
                seconds=timing.seconds if timing else None,
                ttft=timing.ttft if timing else None,
                timed_tokens=timing.tokens if timing else None,
            )
            records.setdefault((line.question, line.policy), []).append(record)
        return records


def question_key(question: str) -> str:
    """A short key of a question, for the notes of a run."""
    return hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _scored(text: str, speech: Speech | None, keys: list[str | list[str]] | None) -> dict[str, Any]:
    """Fields of a record that compare a text and its transcript with the right answer."""
    transcript = speech.transcript if speech else None
    errors, words = (None, None) if transcript is None else word_errors(text, transcript)
    return {
        "transcript": transcript,
        "speech_seconds": speech.seconds if speech else 0.0,
        "errors": errors,
        "words": words,
        "right_text": is_right(text, keys) if keys else None,
        "right_speech": is_right(transcript, keys) if keys and transcript is not None else None,
    }


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
