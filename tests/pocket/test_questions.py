"""The generator of the pocket model's questions: deterministic, closed, without leaks."""

from __future__ import annotations

from collections import Counter

import pytest

from eepolicy import held_out
from eepolicy.analysis.evaluation.scoring import is_right
from pocket import world
from pocket.closeness import bare, by_place, inside
from pocket.corpus import pairs
from pocket.questions import SUITES, kept_out, sentences, split, words
from pocket.sequences import END, END_OF_TEXT, LAYOUT, UNIT_OFFSET, interleave


@pytest.fixture(scope="module")
def sets():
    return pairs()


def test_the_same_seed_gives_the_same_pairs(sets):
    train, held_out = split(600)
    assert (train, held_out) == (sets["train"], sets["dev"] + sets["test"])
    assert split(600, seed=1)[1] != held_out


def test_no_held_out_sentence_is_trained_on_behind_any_opening(sets):
    seen: set[str] = set()
    for name in ("train", "dev", "test"):  # what is chosen on dev is not judged on its sentences
        questions = [bare(p.question) for p in sets[name]]
        answers = [bare(p.answer) for p in sets[name]]
        assert not {*questions, *answers} & seen
        if name != "train":
            assert len(set(answers)) == len(answers)
        seen |= {*questions, *answers}
    assert any(p.answer != bare(p.answer) for p in sets["test"])


def test_what_is_kept_out_is_a_fixed_list_of_sentences_that_exist(sets):
    out = kept_out()
    made = {g[0].answer for s, kinds in SUITES.items() for k in kinds for g in sentences(s, k)}
    assert out <= made
    assert not {bare(p.answer) for p in sets["train"]} & out
    assert {bare(p.answer) for name in ("dev", "test") for p in sets[name]} <= out


def test_every_held_out_fact_is_told_in_another_sentence(sets):
    told: dict[str, list[str]] = {}
    for pair in sets["train"]:
        told.setdefault(pair.fact, []).append(bare(pair.answer))
    needed = [p for p in sets["dev"] + sets["test"] if p.fact]
    assert len(needed) > 100
    assert min(len(told[p.fact]) for p in needed) >= 2
    assert all(set(told[p.fact]) - {bare(p.answer)} for p in needed)


def test_every_held_out_word_is_heard_in_ten_training_answers(sets):
    seen = Counter(w for p in sets["train"] for w in set(words(p.answer)))
    assert min(seen[w] for p in sets["dev"] + sets["test"] for w in words(p.answer)) >= 10


def test_size_suites_and_vocabulary(sets):
    assert len(sets["train"]) >= 10_000
    assert len(sets["test"]) == len(sets["dev"]) == 300
    for part in sets.values():
        assert {p.suite for p in part} == {"reasoning", "facts", "language", "dialogue"}
    assert {p.kind for p in sets["test"]} == {
        k.__name__ for kinds in SUITES.values() for k in kinds
    }
    assert len({p.question for p in sets["train"]}) == len(sets["train"])
    assert 200 <= len({w for p in sets["train"] for w in words(p.answer)}) <= 600


def test_every_answer_is_right_by_its_own_keys(sets):
    for pair in sets["train"] + sets["dev"] + sets["test"]:
        assert is_right(pair.answer, pair.keys), pair
        # who only repeats the question is wrong
        assert not is_right(pair.question, pair.keys), pair
        assert pair.keys


def test_arithmetic_is_right(sets):
    number = {w: i for i, w in enumerate(world.NUMBERS)}
    checked = 0
    for pair in sets["train"] + sets["dev"] + sets["test"]:
        found = [number[w] for w in words(pair.answer) if w in number]
        if pair.kind == "addition":
            assert found[0] + found[1] == found[2], pair
        elif pair.kind == "subtraction":
            a, b, c = found
            assert (a - b == c) or (b - a == c), pair  # "take three away from nine"
        elif pair.kind == "comparison":
            assert (found[0] > found[1]) == ("more" in pair.answer), pair
        elif pair.kind == "story":
            a, b, c, told = found
            assert (a - b if "minus" in pair.answer else a + b) == c == told, pair
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
    for name in ("test", "dev"):
        assert held_out(name) == [p.as_dict() for p in sets[name]]


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
    assert by_place(test) == 2
