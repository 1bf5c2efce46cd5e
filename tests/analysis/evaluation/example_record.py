"""A record for tests to change."""

from __future__ import annotations

from eepolicy.analysis.evaluation.records import Record

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
    speech_seconds=1.0,
    text_tokens=2,
    speech_tokens=4,
    text_layers=40,
    speech_layers=80,
    layer_calls=120,
    readouts=6,
    tokens=[1] * 6,
    depths=[20] * 6,
    modalities=[0, 0, 1, 1, 1, 1],
)
