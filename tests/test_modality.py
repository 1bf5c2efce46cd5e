"""The chunk clock against a naive reading of whole replies."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from conftest import LAYOUT
from hypothesis import given
from hypothesis import strategies as st

from eepolicy import ChunkClock, EepolicyError, Modality, TokenLayout

TEXT, SPEECH = Modality.TEXT, Modality.SPEECH


def places(tokens: list[int]) -> list[tuple[Modality, int, int]]:
    clock, found = ChunkClock(LAYOUT), []
    for token in tokens:
        found.append((clock.modality, clock.chunk, clock.phase))
        clock.advance(token)
    return found


def test_text_and_speech_alternate():
    reply = [9, 9, 9, *[30] * 7, 9, 9, 9, *[30] * 7]
    assert places(reply) == [
        (m, chunk, phase)
        for chunk, (m, size) in enumerate([(TEXT, 3), (SPEECH, 7), (TEXT, 3), (SPEECH, 7)])
        for phase in range(size)
    ]


def test_speech_runs_on_after_the_end_of_text():
    found = places([9, LAYOUT.end_of_text, *[30] * 20])
    assert found[:2] == [(TEXT, 0, 0), (TEXT, 0, 1)]
    assert found[2:] == [(SPEECH, 1, phase) for phase in range(20)]


def test_a_reply_that_leaves_the_alternation_is_followed():
    # speech after one text token: the clock takes it as the first of a new chunk
    assert places([9, 30, 30])[1:] == [(TEXT, 0, 1), (SPEECH, 1, 1)]


@given(st.lists(st.integers(5, 59), max_size=80))
def test_phase_and_chunk_are_consistent(tokens):
    found = places(tokens)
    for (_, chunk, phase), (_, next_chunk, next_phase) in pairwise(found):
        assert (next_chunk, next_phase) == (chunk, phase + 1) or (
            next_chunk > chunk and next_phase <= 1
        )


@given(st.lists(st.integers(5, 59), max_size=80))
def test_ordinal_counts_the_tokens_of_the_modality_before(tokens):
    clock = ChunkClock(LAYOUT)
    for i, token in enumerate(tokens):
        same = [t for t in tokens[:i] if LAYOUT.modality(t) == clock.modality]
        assert clock.ordinal == len(same)
        clock.advance(token)


def test_units_and_text_of_a_reply():
    ids = torch.tensor([9, 8, LAYOUT.end_of_text, 20, 59, LAYOUT.end])
    assert LAYOUT.units(ids).tolist() == [0, 39]
    assert LAYOUT.text_ids(ids).tolist() == [9, 8]


def test_layout_round_trips():
    assert TokenLayout.from_dict(LAYOUT.to_dict()) == LAYOUT


def test_an_id_of_no_modality_is_refused():
    with pytest.raises(EepolicyError, match="token 60 belongs to no modality"):
        LAYOUT.modality(60)
