"""The generator of the pocket model's questions: deterministic, closed, without leaks."""

from __future__ import annotations

from collections import Counter

import pytest

from analysis.scoring import is_right
from eepolicy import held_out
from pocket import facts
from pocket.corpus import PER_KIND, pairs
from pocket.questions import OPENINGS, generate, without_opening, words
from pocket.sequences import END, END_OF_TEXT, LAYOUT, UNIT_OFFSET, interleave


@pytest.fixture(scope="module")
def sets():
    return pairs()


def test_the_same_seed_gives_the_same_pairs():
    assert generate(50, seed=1) == generate(50, seed=1) != generate(50, seed=2)


def test_no_held_out_pair_is_trained_on(sets):
    trained = {t for p in sets["train"] for t in (p.question, p.answer)}
    for name in ("test", "familiar", "dev"):
        assert not {t for p in sets[name] for t in (p.question, p.answer)} & trained
        answers = [p.answer for p in sets[name]]
        assert len(set(answers)) == len(answers)
    # what is chosen on dev is not judged on its sentences
    chosen_on = {without_opening(t) for p in sets["dev"] for t in (p.question, p.answer)}
    assert (
        not {without_opening(t) for p in sets["test"] for t in (p.question, p.answer)} & chosen_on
    )


def test_no_sentence_of_the_test_set_is_trained_on_behind_any_opening(sets):
    # openings are the only sentences in front of a question: cut them off by hand, here
    openings = [text for pair in OPENINGS for text in pair]

    def bare(text: str) -> str:
        return next((text[len(o) + 1 :] for o in openings if text.startswith(o)), text)

    trained = {bare(t) for p in sets["train"] for t in (p.question, p.answer)}
    assert not {bare(t) for p in sets["test"] for t in (p.question, p.answer)} & trained
    assert {bare(t) for p in sets["familiar"] for t in (p.question, p.answer)} & trained


def test_every_held_out_word_is_heard_in_ten_training_answers(sets):
    seen = Counter(w for p in sets["train"] for w in set(words(p.answer)))
    held_out = [
        w for name in ("test", "familiar", "dev") for p in sets[name] for w in words(p.answer)
    ]
    assert min(seen[w] for w in held_out) >= 10


def test_size_suites_and_vocabulary(sets):
    assert len(sets["train"]) >= 10_000
    assert len(sets["test"]) == len(sets["familiar"]) == len(sets["dev"]) == 300
    for part in sets.values():
        assert {p.suite for p in part} == {"reasoning", "facts", "language", "dialogue"}
    assert max(Counter(p.kind for p in sets["train"]).values()) <= PER_KIND
    assert 200 <= len({w for p in sets["train"] for w in words(p.answer)}) <= 600


def test_every_answer_is_right_by_its_own_keys(sets):
    for pair in sets["test"] + sets["familiar"] + sets["dev"]:
        assert is_right(pair.answer, pair.keys), pair


def test_arithmetic_is_right(sets):
    number = {w: i for i, w in enumerate(facts.NUMBERS)}
    checked = 0
    for pair in sets["train"]:
        found = [number[w] for w in words(pair.answer) if w in number]
        if pair.kind == "addition":
            assert found[0] + found[1] == found[2], pair
        elif pair.kind == "subtraction":
            a, b, c = found
            assert (a - b == c) or (b - a == c), pair  # "take three away from nine"
        elif pair.kind == "comparison":
            assert (found[0] > found[1]) == ("more" in pair.answer), pair
        else:
            continue
        checked += 1
    assert checked > 2000


def test_interleave_by_hand():
    units = list(range(40))
    ids = interleave([9, 8, 7, 6, 5], units)
    speech = [UNIT_OFFSET + u for u in units]
    assert ids == [9, 8, 7, 6, *speech[:16], 5, END_OF_TEXT, *speech[16:], END]
    assert all(LAYOUT.modality(i) == (i >= UNIT_OFFSET) for i in ids)


def test_the_package_ships_these_held_out_questions(sets):
    for name in ("test", "familiar", "dev"):
        assert held_out(name) == [p.as_dict() for p in sets[name]]
