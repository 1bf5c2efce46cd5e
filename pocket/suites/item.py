"""Items that generators of questions yield, and helpers that several of them use."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple


class Item(NamedTuple):
    """A question and its answer.

    Attributes:
        question: the question.
        answer: the right answer.
        keys: phrases that a right answer contains.
        fact: the fact that the answer needs; several questions can need the same one.  It is empty
            if the question contains all information ("The king has the cup ...") or the answer
            follows from a rule (sums in stories, sequences, orders of size, lengths of words,
            advice for the weather).
    """

    question: str
    answer: str
    keys: tuple[str, ...]
    fact: str = ""


Generator = Callable[[], Iterator[Item]]


def some(others: Iterable[str], of: str, count: int = 2) -> list[str]:
    """Sample a few of the other words, always the same for the same word.

    Every other word gives a question with the answer "no", and only one word gives "yes".  A sample
    keeps the two in proportion.

    Args:
        others: the other words.
        of: the word, which seeds the sample.
        count: maximum number of words.
    """
    others = list(others)
    return random.Random(of).sample(others, min(count, len(others)))


def a(noun: str) -> str:
    """Return a noun with its indefinite article."""
    return f"{'an' if noun[0].lower() in 'aeio' else 'a'} {noun}"


def sentence(text: str) -> str:
    """Return a text with a capital first letter."""
    return text[0].upper() + text[1:]
