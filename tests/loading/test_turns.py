"""Conversations with speech models, in the templates of their authors."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from eepolicy import EepolicyError
from eepolicy.loading import shipped_cards
from eepolicy.turns import Sound, TurnTemplate, has_sound

#: what the authors' code makes of two turns before a third one, with the sound as None
SYSTEMS = {
    "glm-4-voice": (
        "User will provide you with a text instruction. Do it step by step. First, think about "
        "the instruction and respond in a interleaved manner, with 13 text token followed by 26 "
        "audio tokens."
    ),
    "step-audio-2-mini": "You are a helpful assistant.",
}
RENDERED = {
    "glm-4-voice": [
        "[gMASK]<sop><|system|>\n{system}<|user|>\nHi?<|assistant|>streaming_transcription\nYo."
        "<|user|>\nWhy?",
        None,
        "<|assistant|>streaming_transcription\n",
    ],
    "step-audio-2-mini": [
        "<|BOT|>system\n{system}<|EOT|><|BOT|>human\nHi?<|EOT|><|BOT|>assistant\n<tts_start>Yo."
        "<|EOT|><|BOT|>human\nWhy?",
        None,
        "<|EOT|><|BOT|>assistant\n<tts_start>",
    ],
    "covo-audio-chat": [
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n"
        "<|im_start|>assistant\nYo.<|im_end|>\n<|im_start|>user\nWhy?",
        None,
        "<|im_end|>\n<|im_start|>assistant\n",
    ],
}
WAVE = torch.zeros(3)
TURNS = [
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": [{"type": "text", "text": "Yo."}]},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Why?"}, {"type": "audio", "audio": WAVE}],
    },
]


def template(name):
    return TurnTemplate.of(shipped_cards()[name].turns)


def render(name, turns=TURNS, ends=()):
    return [None if isinstance(p, Sound) else p for p in template(name).render(turns, ends)]


@pytest.mark.parametrize("name", RENDERED)
def test_turns_are_rendered_as_by_the_authors(name):
    system = SYSTEMS.get(name, template(name).default_system)
    parts = [part and part.replace("{system}", system) for part in RENDERED[name]]
    assert render(name) == parts
    with_system = [{"role": "system", "content": "Be short."}, *TURNS]
    parts = [part and part.replace("{system}", "Be short.") for part in RENDERED[name]]
    assert render(name, with_system) == parts


@pytest.mark.parametrize("name", RENDERED)
def test_one_turn_is_the_prompt_of_the_card(name):
    card = shipped_cards()[name]
    (text,) = render(name, [{"role": "user", "content": "Hi?"}])
    assert text == card.prompt_prefix + "Hi?" + card.prompt_suffix
    before, sound, after = render(name, TURNS[2:])
    before_spoken, after_spoken = card.affixes.around(True)
    assert (before, sound, after) == (before_spoken + "Why?", None, after_spoken)


def test_the_end_of_an_earlier_reply_is_left_out():
    turns = [TURNS[0], {"role": "assistant", "content": torch.tensor([5, 7])}, TURNS[0]]
    for ends, expected in (((7,), [5]), ((5,), [5, 7])):
        ids = [p for p in render("glm-4-voice", turns, ends) if isinstance(p, torch.Tensor)]
        assert [part.tolist() for part in ids] == [expected]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (TURNS[:2], "ends with a turn of the role 'user'"),
        ([*TURNS[:1], {"role": "system", "content": "x"}, *TURNS[:1]], "the first turn"),
        ([{"role": "tool", "content": "x"}], "role of a turn is system, user, assistant"),
        ([{"role": "user", "content": None}], "content of a turn of the role 'user'"),
        ([{"role": "user", "content": [{"type": "image", "image": 3}]}], "content of a turn"),
        (
            [{"role": "system", "content": [{"type": "audio", "audio": WAVE}]}, *TURNS[:1]],
            "content of a turn of the role 'system'",
        ),
    ],
)
def test_wrong_turns_are_refused(turns, message):
    with pytest.raises(EepolicyError, match=message):
        render("step-audio-2-mini", turns)


@pytest.mark.parametrize(
    "change", [{"user": "no place"}, {"tool": "x"}, {"system": "{content}{content}"}]
)
def test_wrong_templates_are_refused(change):
    card = shipped_cards()["step-audio-2-mini"]
    with pytest.raises(EepolicyError, match=f"see '{next(iter(change))}'"):
        dataclasses.replace(card, turns=card.turns | change)
    with pytest.raises(EepolicyError, match="see 'reply'"):
        TurnTemplate.of({k: v for k, v in card.turns.items() if k != "reply"})


def test_parts_of_the_wrong_role_or_type_are_refused():
    for role, item in (
        ("assistant", {"type": "audio", "audio": "reply.wav"}),
        ("assistant", {"type": "audio", "audio": torch.zeros(3).short()}),
        ("user", {"type": "tokens", "tokens": "abc"}),
        ("user", {"type": "text", "text": torch.tensor([1])}),
        ("user", {"type": ["text"], "text": "abc"}),
    ):
        with pytest.raises(EepolicyError, match=f"a turn of the role '{role}' is text, ids"):
            render("glm-4-voice", [*TURNS[:1], {"role": role, "content": [item]}, *TURNS[2:]])


def test_a_single_part_needs_no_list():
    turns = [{"role": "user", "content": {"type": "audio", "audio": WAVE}}]
    assert has_sound(turns)
    assert not has_sound(TURNS[:2])
    assert None in render("glm-4-voice", turns)


def test_end_tokens_are_removed_from_the_end_of_replies_only():
    ids = torch.tensor([5, 7])
    both = [{"type": "tokens", "tokens": ids}] * 2
    turns = [{"role": "user", "content": ids}, {"role": "assistant", "content": both}, *TURNS[2:]]
    parts = [
        p.tolist() for p in render("glm-4-voice", turns, ends=[7]) if isinstance(p, torch.Tensor)
    ]
    assert parts == [[5, 7], [5, 7], [5]]
