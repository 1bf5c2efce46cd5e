"""A record for tests to change, and how to store it."""

from __future__ import annotations

from collections.abc import Iterable

from eepolicy.analysis.evaluation.formats import (
    JudgementLine,
    QuestionLine,
    RatingLine,
    RecordLine,
    Speech,
    SpeechLine,
    TimingLine,
)
from eepolicy.analysis.evaluation.records import Record, RunFolder

RECORD = Record(
    question="q0",
    policy="full",
    text="a b",
    transcript="a b",
    right_text=True,
    right_speech=True,
    errors=0,
    words=2,
    mos=2.0,
    ended=True,
    seconds=1.0,
    ttft=0.25,
    speech_seconds=1.0,
    layer_calls=120,
    readouts=6,
    tokens=[1] * 6,
    depths=[20] * 6,
    modalities=[0, 0, 1, 1, 1, 1],
)


def store(folder: RunFolder, records: Iterable[Record]) -> None:
    """Write records as a run does, each with its own speech.

    Reading computes `right_*`, `errors` and `words` again.  A transcript that equals the text gets
    as many further words as the record has errors.
    """
    for record in records:
        name, speech = record.question, f"{record.question} {record.policy} {record.seed}"
        keys = None if record.right_text is None else ["a"] if record.right_text else ["zz"]
        if name not in folder.questions():
            folder.append([QuestionLine(question=name, keys=keys)])
        fields = ("policy seed spoken text ended layer_calls readouts").split()
        same = {field: getattr(record, field) for field in fields}
        lists = {
            field: list(getattr(record, field)) for field in ("tokens", "depths", "modalities")
        }
        folder.append([RecordLine(question=name, speech=speech, **same, **lists)])
        seconds, transcript = record.speech_seconds, record.transcript
        if transcript == record.text:
            transcript += " zz" * (record.errors or 0)
        clip = Speech(speech=speech, seconds=seconds, transcript=transcript)
        folder.append([SpeechLine(clips=[clip])])
        if record.mos is not None:
            folder.append([RatingLine(speech=speech, rater="test", mos=record.mos)])
        if record.seconds is not None:
            times = {"seconds": record.seconds, "ttft": record.ttft or 0.0}
            tokens = len(record.tokens)
            folder.append([TimingLine(question=name, policy=record.policy, tokens=tokens, **times)])
        if record.judge_score is not None:
            score, key = record.judge_score, {"policy": record.policy, "seed": record.seed}
            folder.append([JudgementLine(question=name, score=score, **key)])
