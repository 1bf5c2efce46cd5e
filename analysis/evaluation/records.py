"""One reply of one policy to one question, measured; and the folder that keeps them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.modality import Modality
from eepolicy.probing import Document


@dataclass(frozen=True)
class Record:
    """What was measured of one reply.

    Attributes:
        question: that was asked.
        policy: spec string.
        text: of the reply.
        heard: the transcript of its speech; None without speech recognition.
        right_text: the text holds every key phrase of the right answer; None where there is none.
        right_speech: the transcript does.
        errors: word errors of the transcript against the reply's own text.
        words: of that text.
        mos: estimated opinion; None without a rater.
        ended: the reply ended by itself.
        seconds: of decoding, the prompt included.
        speech_seconds: length of the speech.
        text_tokens: places of text.
        speech_tokens: places of speech.
        text_layers: sum of their depths.
        speech_layers: sum of their depths.
        layer_calls: of decoding, the prompt not counted.
        readouts: head evaluations.
        tokens: ids of the reply.
        depths: of each.
        modalities: of each place.
        seed: of the draws.
        spoken: the question was asked in sound.
        judged: a judge's verdict, from 0 to 1; None without a judge.
    """

    question: str
    policy: str
    text: str
    heard: str | None
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
    judged: float | None = None

    @property
    def repeats(self) -> int:
        """Speech tokens that are the same as the speech token before them."""
        pairs = zip(self.tokens, self.modalities, strict=True)
        spoken = [t for t, m in pairs if m == Modality.SPEECH]
        return sum(a == b for a, b in pairwise(spoken))

    def document(self, model: HookedModel) -> Document:
        """Question and reply, to be probed."""
        prompt = model.encode(self.question)
        return Document(torch.cat([prompt, torch.tensor(self.tokens)]), len(prompt))


class RunFolder:
    """Records of one run on disk, a line each; a run that was cut off goes on where it stopped.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def audio(self) -> Path:
        """Where the speech lies."""
        return self.path / "audio"

    def open(self, identity: dict[str, Any]) -> dict[str, Any]:
        """Start a run, or go on with the one that the folder holds.

        Args:
            identity: what must be the same for records to belong together.

        Returns:
            What `note` has kept so far.

        Raises:
            EepolicyError: the folder holds another run, or something else.
        """
        file = self.path / "run.json"
        if not file.exists():
            if self.path.exists() and any(f.suffix != ".part" for f in self.path.iterdir()):
                raise EepolicyError(
                    f"{self.path} holds files that are no run of ours; "
                    "give another folder with --out"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            self._write({"identity": identity, "notes": {}})
            self.audio.mkdir()
            return {}
        try:
            held: dict[str, dict[str, Any]] = json.loads(file.read_text())
            before, notes = held["identity"], held["notes"]
        except (ValueError, KeyError, TypeError) as error:
            raise EepolicyError(
                f"{file} cannot be read; give another folder with --out, or remove {self.path}"
            ) from error
        self.audio.mkdir(exist_ok=True)
        differing = sorted(k for k in {*before, *identity} if before.get(k) != identity.get(k))
        if differing:
            raise EepolicyError(
                f"{self.path} holds a run with another {', '.join(differing)}; "
                "give another folder with --out, or remove it"
            )
        return notes

    def note(self, **notes: Any) -> None:
        """Keep something with the run, such as its calibrated policies."""
        held = json.loads((self.path / "run.json").read_text())
        self._write({"identity": held["identity"], "notes": held["notes"] | notes})

    def _write(self, content: dict[str, Any]) -> None:
        write_whole(self.path / "run.json", json.dumps(content, indent=1))

    def records(self) -> dict[tuple[str, str], list[Record]]:
        """All records, by question and policy, one a seed; a last line cut off is left out."""
        file = self.path / "records.jsonl"
        found: dict[tuple[str, str], list[Record]] = {}
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                record = Record(**json.loads(line))
            except (ValueError, TypeError) as error:
                if number == len(lines):
                    continue
                raise EepolicyError(
                    f"line {number} of {file} is no record; remove the line, or the folder"
                ) from error
            found.setdefault((record.question, record.policy), []).append(record)
        return found

    def append(self, record: Record) -> None:
        """Add a record; it is on disk when this returns."""
        file = self.path / "records.jsonl"
        with file.open("a+b") as out:
            if out.tell():
                out.seek(-1, os.SEEK_END)
                if out.read(1) != b"\n":  # a line that was cut off
                    out.seek(0)
                    out.truncate(out.read().rfind(b"\n") + 1)
            out.write((json.dumps(asdict(record)) + "\n").encode())
            out.flush()
            os.fsync(out.fileno())


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)
