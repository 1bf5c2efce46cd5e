"""A run folder made by hand, with a page's input: no model decodes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from example_record import RECORD

from eepolicy.analysis.evaluation.columns import COLUMNS
from eepolicy.analysis.evaluation.page import PageInput
from eepolicy.analysis.evaluation.records import Record
from eepolicy.analysis.evaluation.scoring import word_errors

#: a browser that runs one of these sets `window.ran`
SCRIPT = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
POLICIES = ("full", "static@16", "spark:triple@14", f"mine:{SCRIPT}")


@dataclass(frozen=True)
class Margins:
    wer: float = 2.0
    accuracy: float = 5.0
    mos: float = 0.1


def replies(count: int, policies: Sequence[str] = POLICIES) -> dict[str, list[Record]]:
    """By question: a record per policy; on every third question all policies say the same."""
    made: dict[str, list[Record]] = {}
    for number in range(count):
        question = f"Question {number}?" + (SCRIPT if number == 0 else "")
        text = "Snow is white and cold" + (f" </script>{SCRIPT}" if number == 0 else "")
        made[question] = []
        for row, policy in enumerate(policies):
            heard = text
            if number % 3 and row:
                heard = "Snow was white and very" + " much" * (number if row == 2 else 0)
            errors, words = word_errors(text, heard)
            changes = {"question": question, "policy": policy, "text": text, "transcript": heard}
            depths = [20, 20] + [20 - 2 * row] * 4
            record = replace(RECORD, **changes, errors=errors, words=words, depths=depths)
            record = replace(
                record,
                speech=speech_key(question, policy),
                tokens=[1, 2, 3, 4, 5, row % 2 * number],
            )
            made[question].append(replace(record, seconds=1.0 + 0.1 * row))
    return made


def speech_key(question: str, policy: str) -> str:
    """Key of the speech of a reply; each reply has its own."""
    return hashlib.sha256(f"{question} {policy}".encode()).hexdigest()[:16]


def write_sound(folder: Path, question: str, policy: str, pitch: float) -> Path:
    """Write a second of a tone as the reply's sound."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    file = folder / "audio" / f"{speech_key(question, policy)}.flac"
    tone = 0.5 * np.sin(2 * np.pi * pitch * np.arange(16_000) / 16_000)
    soundfile.write(file, tone, 16_000, subtype="PCM_16")
    return file


def example(folder: Path, questions: int = 15, policies: Sequence[str] = POLICIES) -> PageInput:
    """Input of a page, with a sound file for each reply but one."""
    made = replies(questions, policies)
    rows = []
    for i, policy in enumerate(policies):
        row = {"policy": policy, "prompts": questions, "seeds": 1}
        for column in COLUMNS:
            value = None if column.name == "mos" else (0.1 + 0.02 * ((i * 3) % 4))
            for end, change in (("", 0), ("_low", -0.01), ("_high", 0.01)):
                row[f"{column.name}{end}"] = None if value is None else value + change
                row[f"{column.name}_diff{end}"] = None if value is None else value - 0.1 + change
        row |= {"speedup": 1 + 0.1 * i, "speedup_low": 1 + 0.05 * i, "speedup_high": 1 + 0.2 * i}
        row["status"] = ("baseline", "not worse", "worse", "undecided")[i % 4]
        row["verdict"] = f"verdict of {policy}"
        rows.append(row)
    for number, (question, records) in enumerate(made.items()):
        for i, record in enumerate(records):
            if (number, i) != (1, 1):
                write_sound(folder, question, record.policy, 200 + 20 * number + 5 * i)
    about = {"model": "a model", "prompts": questions, "seeds": 1, "notes": [f"note {SCRIPT}"]}
    about |= {"command": f"eepolicy compare '{SCRIPT}'", "versions": "torch", "figure": None}
    return PageInput(rows, COLUMNS, made, 20, folder, Margins(), {1: "Sn", 2: "</script>"}, about)
