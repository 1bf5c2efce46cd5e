"""Questions of the pocket model: deterministic, with a closed vocabulary, without leaks."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from eepolicy import held_out
from eepolicy.analysis.evaluation import scoring
from eepolicy.analysis.evaluation.scoring import is_right
from pocket import world
from pocket.closeness import bare, by_position, inside
from pocket.corpus import pairs
from pocket.questions import SUITES, held_out_sentences, sentences, split, words
from pocket.sequences import END, END_OF_TEXT, LAYOUT, UNIT_OFFSET, interleave


@pytest.fixture(scope="module")
def splits():
    return pairs()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_pairs(splits):
    train, held_out = split(600)
    assert (train, held_out) == (splits["train"], splits["dev"] + splits["test"])
    assert split(600, seed=1)[1] != held_out


def test_no_held_out_sentence_is_trained_on_with_any_opening(splits):
    seen: set[str] = set()
    for name in ("train", "dev", "test"):  # dev and test share no sentences either
        questions = [bare(p.question) for p in splits[name]]
        answers = [bare(p.answer) for p in splits[name]]
        assert not {*questions, *answers} & seen
        if name != "train":
            assert len(set(answers)) == len(answers)
        seen |= {*questions, *answers}
    assert any(p.answer != bare(p.answer) for p in splits["test"])


def test_held_out_sentences_are_a_fixed_list_that_the_generators_make(splits):
    excluded = held_out_sentences()
    made = {g[0].answer for s, kinds in SUITES.items() for k in kinds for g in sentences(s, k)}
    assert excluded <= made
    assert not {bare(p.answer) for p in splits["train"]} & excluded
    assert {bare(p.answer) for name in ("dev", "test") for p in splits[name]} <= excluded


def test_another_sentence_states_each_held_out_fact(splits):
    statements: dict[str, list[str]] = {}
    for pair in splits["train"]:
        statements.setdefault(pair.fact, []).append(bare(pair.answer))
    needed = [p for p in splits["dev"] + splits["test"] if p.fact]
    assert len(needed) > 100
    assert min(len(statements[p.fact]) for p in needed) >= 2
    assert all(set(statements[p.fact]) - {bare(p.answer)} for p in needed)


def test_ten_training_answers_contain_each_held_out_word(splits):
    seen = Counter(w for p in splits["train"] for w in set(words(p.answer)))
    assert min(seen[w] for p in splits["dev"] + splits["test"] for w in words(p.answer)) >= 10


def test_size_suites_and_vocabulary(splits):
    assert len(splits["train"]) >= 10_000
    assert len(splits["test"]) == len(splits["dev"]) == 300
    for part in splits.values():
        assert {p.suite for p in part} == {"reasoning", "facts", "language", "dialogue"}
    assert {p.kind for p in splits["test"]} == {
        k.__name__ for kinds in SUITES.values() for k in kinds
    }
    assert len({p.question for p in splits["train"]}) == len(splits["train"])
    assert 200 <= len({w for p in splits["train"] for w in words(p.answer)}) <= 600


@pytest.mark.slow
def test_each_answer_contains_its_own_keys(splits, monkeypatch):
    # most keys, and many answers, occur many times
    monkeypatch.setattr(scoring, "normalized", cache(scoring.normalized))
    for pair in splits["train"] + splits["dev"] + splits["test"]:
        assert is_right(pair.answer, pair.keys), pair
        # an answer that only repeats the question is wrong
        assert not is_right(pair.question, pair.keys), pair
        assert pair.keys


def test_arithmetic_is_right(splits):
    number = {w: i for i, w in enumerate(world.NUMBERS)}
    checked = 0
    for pair in splits["train"] + splits["dev"] + splits["test"]:
        numbers = [number[w] for w in words(pair.answer) if w in number]
        if pair.kind == "addition":
            assert numbers[0] + numbers[1] == numbers[2], pair
        elif pair.kind == "subtraction":
            a, b, c = numbers
            assert (a - b == c) or (b - a == c), pair  # "take three away from nine"
        elif pair.kind == "comparison":
            assert (numbers[0] > numbers[1]) == ("more" in pair.answer), pair
        elif pair.kind == "story":
            a, b, c, answer = numbers
            assert (a - b if "minus" in pair.answer else a + b) == c == answer, pair
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


def test_the_package_ships_these_held_out_questions(splits):
    for name in ("test", "dev"):
        assert held_out(name) == [p.as_dict() for p in splits[name]]


def test_closeness_by_hand():
    def pair(question, answer, kind="order"):
        return {"question": question, "answer": answer, "kind": kind}

    test = [
        pair("Who is older?", "Good morning. Yes, the king is older."),
        pair("Is it red or blue?", "It is blue.", "colours"),
        pair("Who has the cup?", "The king has the cup.", "owner"),
    ]
    train = [
        pair("The king is older. Who is younger?", "The queen is younger."),
        pair("What is it?", "No, it is blue, not red."),
        pair("What is it?", "It is bluebell."),
    ]
    assert inside(test, train, "question") == 1
    assert inside(test, train, "answer") == 1
    assert by_position(test) == 2
