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


def positions_of(tokens: list[int]) -> list[tuple[Modality, int, int]]:
    clock, positions = ChunkClock(LAYOUT), []
    for token in tokens:
        positions.append((clock.modality, clock.chunk, clock.phase))
        clock.advance(token)
    return positions


def test_text_and_speech_alternate():
    reply = [9, 9, 9, *[30] * 7, 9, 9, 9, *[30] * 7]
    assert positions_of(reply) == [
        (m, chunk, phase)
        for chunk, (m, size) in enumerate([(TEXT, 3), (SPEECH, 7), (TEXT, 3), (SPEECH, 7)])
        for phase in range(size)
    ]


def test_speech_runs_on_after_the_end_of_text():
    positions = positions_of([9, LAYOUT.end_of_text, *[30] * 20])
    assert positions[:2] == [(TEXT, 0, 0), (TEXT, 0, 1)]
    assert positions[2:] == [(SPEECH, 1, phase) for phase in range(20)]


def test_a_reply_that_leaves_the_alternation_is_followed():
    # speech after one text token: the clock takes it as the first of a new chunk
    assert positions_of([9, 30, 30])[1:] == [(TEXT, 0, 1), (SPEECH, 1, 1)]


def clocked(layout: TokenLayout, tokens: list[int]) -> list[Modality]:
    """What the clock expected at each token."""
    clock, positions = ChunkClock(layout), []
    for token in tokens:
        positions.append(clock.modality)
        clock.advance(token)
    return positions


#: as GLM-4-Voice: no token says that the text is over
UNMARKED = TokenLayout((0, 20), (20, 60), 13, 26, end_of_text=-1, end=4)
#: as Step-Audio-2-mini: chunks are filled up, and text may follow the speech
FILLED = TokenLayout(
    (0, 20), (20, 60), 1, 4, end_of_text=-1, end=4, end_of_speech=5, non_text_ids=(6,), num_codes=38
)


@pytest.mark.parametrize("text", [5, 13, 20, 26, 30])
def test_speech_at_an_expected_text_position_ends_the_text(text):
    """After text of any length, also whole chunks; the clock is wrong at one position at most."""
    reply, left = [], text
    while left:
        reply += [9] * min(13, left) + [30] * 26
        left -= min(13, left)
    reply += [30] * 80
    expected = clocked(UNMARKED, reply)
    wrong = [i for i, (m, t) in enumerate(zip(expected, reply, strict=True)) if m != (t >= 20)]
    assert len(wrong) == 1
    # if more text follows, the clock resumes the alternation
    more = reply + [9] * 13 + [30] * 26 + [9] * 13
    assert clocked(UNMARKED, more)[-52:] == [SPEECH, *[TEXT] * 12, *[SPEECH] * 26, *[TEXT] * 13]


def test_padded_chunks_follow_the_expected_alternation():
    spoken = [9, 30, 30, 30, 30] * 3 + [6, 30, 30, 58, 58] + [6, 58, 58, 58, 58]
    reply = [*spoken, 5, 9, 9, 9, 9, 9, 9]
    assert clocked(FILLED, reply) == [TEXT, *[SPEECH] * 4] * 5 + [TEXT] * 7
    ids = torch.tensor(reply)
    assert FILLED.text_ids(ids).tolist() == [9] * 9
    assert FILLED.units(ids).tolist() == [10] * 14  # padding has no sound


def test_a_reply_in_text_alone_is_followed():
    """A text reply of Step-Audio-2-mini: the clock expects one wrong position."""
    assert clocked(FILLED, [9] * 12) == [TEXT, SPEECH, *[TEXT] * 10]
    assert clocked(FILLED, [9] * 4 + [30] * 4 + [9, 30])[4:] == [TEXT, *[SPEECH] * 3, TEXT, SPEECH]


def test_a_model_that_answers_in_speech_alone():
    layout = TokenLayout((0, 20), (20, 60), 0, 7, end_of_text=-1, end=4)
    assert clocked(layout, [30] * 30) == [SPEECH] * 30
    assert clocked(layout, [30, 9, 30, 30]) == [SPEECH] * 4


@given(st.lists(st.integers(5, 59), max_size=80))
def test_phase_and_chunk_are_consistent(tokens):
    positions = positions_of(tokens)
    for (_, chunk, phase), (_, next_chunk, next_phase) in pairwise(positions):
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


@pytest.mark.parametrize(
    "wrong", [{"text_after": (70, 60)}, {"text_after": (59, 64)}, {"text": (0, 0)}]
)
def test_ranges_are_disjoint_and_rise(wrong):
    ranges = {"text": (0, 20), "speech": (20, 60), "text_after": (60, 64)}
    rest = {"text_chunk": 3, "speech_chunk": 7, "end_of_text": 3, "end": 4}
    layout = TokenLayout(**ranges, **rest)
    layout.check(64)
    with pytest.raises(EepolicyError, match="names id 63, and the vocabulary of the model has 63"):
        layout.check(63)
    with pytest.raises(EepolicyError, match="TokenLayout: "):
        TokenLayout(**ranges | wrong, **rest)
