"""Reasoning: arithmetic, comparisons, sequences, the calendar, short stories."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product

from pocket import world as w
from pocket.suites.item import Item, a, sentence


def addition() -> Iterator[Item]:
    for i, j in product(range(1, 11), repeat=2):
        x, y, z = w.NUMBERS[i], w.NUMBERS[j], w.NUMBERS[i + j]
        fact = f"{min(i, j)} + {max(i, j)}"
        yield Item(f"What is {x} plus {y}?", f"{sentence(x)} plus {y} is {z}.", (f"is {z}",), fact)
        yield Item(f"Add {x} and {y}.", f"{sentence(x)} and {y} make {z}.", (f"make {z}",), fact)
        yield Item(
            f"How much is {x} and {y}?",
            f"If you add {x} and {y}, you have {z}.",
            (f"have {z}",),
            fact,
        )


def subtraction() -> Iterator[Item]:
    for i, j in product(range(2, 16), range(1, 11)):
        if j < i:
            x, y, z = w.NUMBERS[i], w.NUMBERS[j], w.NUMBERS[i - j]
            fact = f"{i} - {j}"
            yield Item(
                f"What is {x} minus {y}?", f"{sentence(x)} minus {y} is {z}.", (f"is {z}",), fact
            )
            yield Item(
                f"Take {y} away from {x}.",
                f"If you take {y} away from {x}, you have {z}.",
                (f"have {z}",),
                fact,
            )
            yield Item(
                f"How much is {x} without {y}?",
                f"{sentence(x)} without {y} leaves {z}.",
                (f"leaves {z}",),
                fact,
            )


def comparison() -> Iterator[Item]:
    for i, j in permutations(range(1, 21), 2):
        x, y = w.NUMBERS[i], w.NUMBERS[j]
        low, high = (x, y) if i < j else (y, x)
        yield Item(
            f"Which is more, {x} or {y}?",
            f"{sentence(high)} is more than {low}.",
            (f"{high} is more",),
        )
        yield Item(
            f"Which is less, {x} or {y}?",
            f"{sentence(low)} is less than {high}.",
            (f"{low} is less",),
        )


def size() -> Iterator[Item]:
    for i, j in permutations(range(len(w.ANIMALS_BY_SIZE)), 2):
        x, y = w.ANIMALS_BY_SIZE[i], w.ANIMALS_BY_SIZE[j]
        low, high = (x, y) if i < j else (y, x)
        yield Item(
            f"Which is bigger, {a(x)} or {a(y)}?",
            f"{sentence(a(high))} is bigger than {a(low)}.",
            (f"{high} is bigger",),
        )
        yield Item(
            f"Which is smaller, {a(x)} or {a(y)}?",
            f"{sentence(a(low))} is smaller than {a(high)}.",
            (f"{low} is smaller",),
        )


def sequence() -> Iterator[Item]:
    for i, step in product(range(1, 18), (1, 2, 3)):
        if i + 3 * step <= 20:
            x, y, z, last = (w.NUMBERS[i + k * step] for k in range(4))
            yield Item(
                f"What comes next: {x}, {y}, {z}?",
                f"In steps of {w.NUMBERS[step]}, after {z} comes {last}.",
                (f"comes {last}",),
            )
            yield Item(
                f"Continue: {x}, {y}, {z}.",
                f"The next number after {z} is {last}.",
                (f"is {last}",),
            )


def story() -> Iterator[Item]:
    for who, things, i, j in product(w.PEOPLE, w.COUNTED, range(2, 11), range(2, 9)):
        x, y = w.NUMBERS[i], w.NUMBERS[j]
        total = w.NUMBERS[i + j]
        yield Item(
            f"The {who} has {x} {things} and gets {y} more. How many {things} are there?",
            f"{sentence(x)} and {y} make {total}, so now the {who} has {total} {things}.",
            (f"has {total} {things}",),
        )
        if i > j:
            rest, left = w.NUMBERS[i - j], things if i - j > 1 else singular(things)
            yield Item(
                f"The {who} has {x} {things} and loses {y}. How many are left?",
                f"{sentence(x)} minus {y} is {rest}, so the {who} still has {rest} {left}.",
                (f"has {rest} {left}",),
            )


def singular(things: str) -> str:
    """Return the singular of a counted thing."""
    return "box" if things == "boxes" else things[:-1]


def order() -> Iterator[Item]:
    for x, y in permutations(w.PEOPLE, 2):
        for more, less in (
            ("older", "younger"),
            ("taller", "shorter"),
            ("faster", "slower"),
            ("richer", "poorer"),
        ):
            yield Item(
                f"The {x} is {more} than the {y}. Who is {less}?",
                f"The {y} is {less} than the {x}.",
                (f"{y} is {less}",),
            )
            yield Item(
                f"The {x} is {less} than the {y}. Who is {more}?",
                f"The {y} is {more} than the {x}.",
                (f"{y} is {more}",),
            )


def calendar() -> Iterator[Item]:
    for names, word in ((w.DAYS, "day"), (w.MONTHS, "month")):
        for i, x in enumerate(names):
            y = names[(i + 1) % len(names)]
            fact = f"{x} {y}"
            yield Item(
                f"Which {word} comes after {x}?", f"After {x} comes {y}.", (f"comes {y}",), fact
            )
            yield Item(
                f"Which {word} follows {x}?",
                f"The {word} after {x} is {y}.",
                (f"is {y}",),
                fact,
            )
            yield Item(
                f"It is {x} now. Which {word} is next?",
                f"If it is {x} now, the next {word} is {y}.",
                (f"next {word} is {y}",),
                fact,
            )
            yield Item(
                f"Which {word} comes before {y}?", f"Before {y} comes {x}.", (f"comes {x}",), fact
            )
            yield Item(
                f"What is the {word} before {y}?",
                f"The {word} before {y} is {x}.",
                (f"is {x}",),
                fact,
            )
            yield Item(
                f"It is {y} now. Which {word} was the last one?",
                f"If it is {y} now, the last {word} was {x}.",
                (f"last {word} was {x}",),
                fact,
            )
