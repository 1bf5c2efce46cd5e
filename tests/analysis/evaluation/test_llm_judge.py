"""What judges write, and the score that a reader takes from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from example_record import RECORD

from eepolicy.analysis.evaluation.judge_scores import read_rating, read_verdict
from eepolicy.analysis.evaluation.llm_judge import LlmJudge, unscored, unscored_note

RATINGS = {
    # in the requested form
    "[[8]]": 0.8,
    "[[10]]": 1.0,
    "[[ 7.5 ]]": 0.75,
    "[[8/10]]": 0.8,
    "Rating: [[6]]": 0.6,
    "The answer names 3 of 10 trees, out of 12. [[4]]": 0.4,
    "It could be [[5]], but the depth is good: [[7]]": 0.7,
    "**[[9]]**": 0.9,
    "<think>Maybe [[2]]? No.</think>\n\n[[6]]": 0.6,
    "[[85]]": None,
    "[[0]]": 0.1,
    # fractions
    "Score: 6/10": 0.6,
    "6/10": 0.6,
    "**Score:** **6/10**": 0.6,
    "I would give it 8 out of 10.": 0.8,
    "10 out of 10": 1.0,
    "On a scale from 1 to 10, I rate it 7/10.": 0.7,
    "seven out of ten": 0.7,
    "4/5": 0.8,
    "Overall 85/100.": 0.85,
    "The answer covers 2 of 3 points. I give it 6 out of 10": 0.6,
    # labels
    "Rating: 7.5": 0.75,
    "Rating: 7,5": 0.75,
    "rating = 9": 0.9,
    '{"score": 7}': 0.7,
    "The score is 4.": 0.4,
    "I would rate this answer a 7.": 0.7,
    "I rate it 1 to 10 as usual: 8.": 0.8,
    "On a 10-point scale, the rating is 6.": 0.6,
    "I'd give it an 8 because it names 3 oaks.": 0.8,
    "Rating: eight": 0.8,
    "**Rating:** 9\n\nThe answer lists 4 facts.": 0.9,
    # a number at the start, alone on a line, or the only one
    "8": 0.8,
    "8.": 0.8,
    "8.5": 0.85,
    "**8**": 0.8,
    "7 - It names 3 trees.": 0.7,
    "It names 3 trees and 2 shrubs.\n\n7": 0.7,
    "Ten": 1.0,
    "seven.": 0.7,
    "This deserves an 8!": 0.8,
    # no score, or several
    "": None,
    "Correct.": None,
    "A good answer.": None,
    "11": None,
    "Somewhere between 4 and 6, perhaps.": None,
    "3 trees are named, and 2 of them exist.": None,
    "The year 1999 is right.": None,
}

VERDICTS = {
    # in the requested form
    "[[yes]]": 1.0,
    "[[No]]": 0.0,
    "Yes or no? [[no]]": 0.0,
    "It could be [[no]]. But the year fits: [[yes]]": 1.0,
    "[[1]]": 1.0,
    "[[correct]]": 1.0,
    "<think>no, no</think>[[yes]]": 1.0,
    # at the start
    "Yes.": 1.0,
    "yes": 1.0,
    "**Yes**": 1.0,
    "No": 0.0,
    "No, yes is not what was asked": 0.0,
    "No, it is not right.": 0.0,
    "No it is not.": 0.0,
    "Yes, there is no error.": 1.0,
    "Yes it is": 1.0,
    "Correct.": 1.0,
    "Incorrect.": 0.0,
    "Not correct.": 0.0,
    "Right!": 1.0,
    "Wrong: it is Ann.": 0.0,
    "True": 1.0,
    "False.": 0.0,
    # labels
    "Answer: Yes. There is no error.": 1.0,
    "Answer: No. Yes would need Ann.": 0.0,
    "**Answer:** yes": 1.0,
    '{"answer": "no"}': 0.0,
    "The final answer is yes.": 1.0,
    "The reply says Bob. Verdict: incorrect.": 0.0,
    "Judgment: right": 1.0,
    # sentences
    "The answer is correct.": 1.0,
    "The answer is incorrect.": 0.0,
    "The answer is not correct.": 0.0,
    "The answer isn't right.": 0.0,
    "The answer isn’t right.": 0.0,
    "The assistant's reply is factually accurate.": 1.0,
    "No errors found. The answer is correct.": 1.0,
    "The answer is wrong, as the right answer is Ann.": 0.0,
    "Is the answer right? Yes.": 1.0,
    "The answer is correct? No.": 0.0,
    # the last word
    "There is no mistake: yes": 1.0,
    "I would say yes.": 1.0,
    "It names Bob, so: no.": 0.0,
    "It names Ann.\nYes": 1.0,
    # no verdict, or several
    "": None,
    "8": None,
    "There is no error.": None,
    "The answer is partially correct.": None,
    "Not quite": None,
    "The answer is right. The reply is wrong.": None,
    "Right answers name Ann.": None,
}


@pytest.mark.parametrize(("response", "score"), RATINGS.items())
def test_ratings_as_judges_write_them(response, score):
    assert read_rating(response) == (None if score is None else pytest.approx(score))


@pytest.mark.parametrize(("response", "score"), VERDICTS.items())
def test_verdicts_as_judges_write_them(response, score):
    assert read_verdict(response) == score


def test_the_prompts_ask_for_what_is_read(monkeypatch):
    prompts: list[str] = []
    monkeypatch.setattr(LlmJudge, "_request", lambda _, prompt: prompts.append(prompt) or "[[no]]")
    judge = LlmJudge("http://nowhere", "some-model")
    assert judge.judge({"question": "Who?", "keys": ["Ann"]}, "Bob") == 0.0
    assert judge.judge({"question": "A tree?"}, "oak") is None
    assert "[[yes]] or [[no]]" in prompts[0]
    assert "[[5]]" in prompts[1]


def test_replies_without_a_score_are_counted():
    records = [
        replace(RECORD, question=f"q{i}", policy=policy, judge_score=score)
        for policy, scores in {
            "full": [1.0, None],
            "static@4": [None, None],
            "oracle": [0.0, 0.1],
        }.items()
        for i, score in enumerate(scores)
    ]
    assert unscored(records) == 3
    note = unscored_note(records)
    assert note is not None
    assert "no score to 3 of 6 replies" in note
    assert note.endswith("full 1, static@4 2.")
    assert unscored_note(r for r in records if r.policy == "oracle") is None
