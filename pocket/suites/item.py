"""What a generator of questions yields, and words that several of them need."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple


class Item(NamedTuple):
    """A question, its answer, and the phrases (`keys`) that must all be in a right answer.

    `fact` names what one must know to answer, and can be asked for in several wordings.  It is
    empty where the question says everything ("The king has the cup ...") or a rule must be learnt
    (sums in stories, sequences, orders of size, lengths of words, what to do in which weather).
    """

    question: str
    answer: str
    keys: tuple[str, ...]
    fact: str = ""


Generator = Callable[[], Iterator[Item]]


def some(others: Iterable[str], of: str, count: int = 2) -> list[str]:
    """A few of the others, always the same for the same word.

    A question with "no" for an answer can be made with each of them, one with "yes" with one only;
    taking a few keeps the two in proportion.
    """
    others = list(others)
    return random.Random(of).sample(others, min(count, len(others)))


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0].lower() in 'aeio' else 'a'} {noun}"


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[0].upper() + text[1:]
