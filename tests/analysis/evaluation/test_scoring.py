"""Accuracy and word errors against an edit distance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eepolicy.analysis.evaluation.scoring import is_right, word_alignment, word_errors


@pytest.mark.parametrize(
    ("text", "keys", "right"),
    [
        ("The capital of France is Paris.", ["is Paris"], True),
        ("the capital of france is parish", ["is Paris"], False),
        ("Three plus five is 8.", ["is eight"], True),
        ("Three plus five is eighteen.", ["is eight"], False),
        ("No, snow is white.", ["no", "is white"], True),
        ("Now, snow is white.", ["no", "is white"], False),
        ("", [["!!!"]], False),
        ("Wow!", [["!!!", "wow"]], True),
        ("Anything.", ["..."], False),
    ],
)
def test_right_answers(text, keys, right):
    assert is_right(text, keys) is right


@pytest.mark.parametrize(
    ("reference", "transcript", "errors"),
    [
        ("the U.S.A.", "The USA", 0),
        ("the U.S.A.", "the U.S.A", 0),
        ("He lives in the U.S. today.", "he lives in the US today", 0),
        ("J. K. Rowling", "J.K. Rowling", 0),
        ("J.K. Rowling", "JK Rowling", 0),
        ("at 7:30 a.m.", "At seven thirty AM.", 0),
        ("at 7:30 a.m.", "at 7:40 a.m.", 1),
        ("Mt. Everest", "Mount Everest", 0),
        ("it cannot", "it can't", 0),
        ("He is 7.5 feet tall. A dog.", "he is 7.5 feet tall a dog", 0),
        ("I am I. You are you.", "I am I you are you", 0),
        ("a ratio of 1:100", "a ratio of 1100", 2),
    ],
)
def test_spellings_of_one_word(reference, transcript, errors):
    assert word_errors(reference, transcript)[0] == errors


def levenshtein(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, above = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


@given(*[st.lists(st.sampled_from(["cat", "dog", "sees", "a"]), max_size=8)] * 2)
def test_word_errors_are_the_edit_distance(reference, transcript):
    errors, words = word_errors(" ".join(reference), " ".join(transcript))
    # the normaliser drops no word of this vocabulary
    assert words == len(reference)
    assert errors == (levenshtein(reference, transcript) if reference else len(transcript))


@given(*[st.lists(st.sampled_from(["cat", "dog", "sees", "a"]), max_size=8)] * 2)
def test_an_alignment_has_the_words_and_the_errors(reference, transcript):
    own, heard = " ".join(reference), " ".join(transcript)
    aligned = word_alignment(own, heard)
    assert [word for _, word, _ in aligned if word] == reference
    assert [word for _, _, word in aligned if word] == transcript
    assert sum(operation != "equal" for operation, *_ in aligned) == word_errors(own, heard)[0]
    for operation, word, other in aligned:
        kinds = {
            "equal": word == other != "",
            "substitution": "" != word != other != "",
            "insertion": word == "" != other,
            "deletion": other == "" != word,
        }
        assert kinds[operation]


def test_british_spellings_are_no_errors():
    pairs = (
        ("His favourite colour is grey.", "His favorite color is gray."),
        (
            "She organised and analysed it at the theatre.",
            "She organized and analyzed it at the theater.",
        ),
        ("It travelled two kilometres.", "It traveled two kilometers."),
        ("Unrecognisable neighbours in defence", "Unrecognizable neighbors in defense"),
    )
    for british, american in pairs:
        assert word_errors(british, american) == (0, len(american.split()))
    # words that only look like one of these
    assert word_errors("four hours our tour", "for hors or tor") == (4, 4)
    assert word_errors("a wise promise, more", "a wize promize, mer") == (3, 4)


def test_scripts_without_spaces_are_scored_by_characters():
    assert word_errors("北京是中国的首都。", "北京是中国首都") == (1, 8)
    assert word_errors("東京です", "東京です") == (0, 4)
