"""How near the test set is to what was trained on."""

from __future__ import annotations

import re
from typing import Any

from pocket.questions import OPENINGS, words

#: kinds whose questions give the answer away by the place of what they name
BY_PLACE = ("owner", "colour_of_mine", "choice")
#: the same, where two things are offered
OFFERED = ("colours", "cities", "opposites", "categories")


def bare(text: str) -> str:
    """A text without the opening in front of it."""
    openings = [o for pair in OPENINGS for o in pair]
    return next((text[len(o) + 1 :] for o in openings if text.startswith(f"{o} ")), text)


def plain(text: str) -> str:
    """Its words, lower case, without an opening, "yes" or "no" in front."""
    return re.sub(r"^(yes|no) ", "", " ".join(words(bare(text))))


def inside(test: list[dict[str, Any]], train: list[dict[str, Any]], of: str) -> int:
    """How many test sentences stand, as or inside a longer one, in training texts.

    Args:
        test: pairs.
        train: pairs.
        of: `"answer"` or `"question"`, of the training pairs.
    """
    trained = " | ".join(" ".join(words(p[of])) for p in train)
    trained = f" {trained} "
    return sum(f" {plain(p['answer'])} " in trained for p in test)


def by_place(test: list[dict[str, Any]]) -> int:
    """How many test questions give their answer away by its place."""
    return sum(
        p["kind"] in BY_PLACE or (p["kind"] in OFFERED and " or " in p["question"]) for p in test
    )
