"""How similar the test set is to the training set."""

from __future__ import annotations

import re
from typing import Any

from pocket.questions import OPENINGS, words

#: kinds whose questions reveal the answer by the order of the things that they name
BY_POSITION = ("owner", "colour_of_mine", "choice")
#: kinds that do so only in questions with two alternatives
WITH_ALTERNATIVES = ("colours", "cities", "opposites", "categories")


def bare(text: str) -> str:
    """Remove the opening of a text."""
    openings = [o for pair in OPENINGS for o in pair]
    return next((text[len(o) + 1 :] for o in openings if text.startswith(f"{o} ")), text)


def plain(text: str) -> str:
    """Return the words of a text in lower case, without opening, "yes" or "no" at its start."""
    return re.sub(r"^(yes|no) ", "", " ".join(words(bare(text))))


def inside(test: list[dict[str, Any]], train: list[dict[str, Any]], of: str) -> int:
    """Count the test answers that equal a training text or are contained in one.

    Args:
        test: test pairs.
        train: training pairs.
        of: which training text: `"answer"` or `"question"`.
    """
    trained = " | ".join(" ".join(words(p[of])) for p in train)
    trained = f" {trained} "
    return sum(f" {plain(p['answer'])} " in trained for p in test)


def by_position(test: list[dict[str, Any]]) -> int:
    """Count the test questions that reveal their answer by its position."""
    return sum(
        p["kind"] in BY_POSITION or (p["kind"] in WITH_ALTERNATIVES and " or " in p["question"])
        for p in test
    )
