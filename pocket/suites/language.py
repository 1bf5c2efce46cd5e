"""Language: opposites, letters, definitions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

from pocket import world as w
from pocket.suites.item import Item, a, sentence, some


def opposites() -> Iterator[Item]:
    both = [*w.OPPOSITES, *((y, x) for x, y in w.OPPOSITES)]
    for x, y in both:
        fact = f"opposite of {min(x, y)}"
        yield Item(
            f"What is the opposite of {x}?", f"The opposite of {x} is {y}.", (f"is {y}",), fact
        )
        yield Item(
            f"Which word is the opposite of {x}?",
            f"{sentence(y)} is the opposite of {x}.",
            (f"{y} is the opposite of {x}",),
            fact,
        )
        yield Item(
            f"Say the opposite of {x}.", f"If it is not {x}, it is {y}.", (f"it is {y}",), fact
        )
        yield Item(
            f"Is {x} the opposite of {y}?",
            f"Yes, {x} is the opposite of {y}.",
            ("yes", f"opposite of {y}"),
            fact,
        )
        yield Item(
            f"Are {x} and {y} opposites?",
            f"Yes, {x} and {y} are opposites.",
            ("yes", "are opposites"),
            fact,
        )
        others = [word for word, _ in both if word not in (x, y)]
        for other in some(others, x):
            yield Item(
                f"Is {x} the opposite of {other}?",
                f"No, {x} is the opposite of {y}, not of {other}.",
                ("no", f"opposite of {y}"),
                fact,
            )
        for other in some(others, x + y):
            yield Item(
                f"Are {x} and {other} opposites?",
                f"No, {x} and {other} are not opposites.",
                ("no", "are not opposites"),
                fact,
            )
        for other in some(others, y + x, 5):
            yield Item(
                f"Is the opposite of {x} {other} or {y}?",
                f"The opposite of {x} is {y}, not {other}.",
                (f"is {y}",),
                fact,
            )


def spelled_words() -> list[str]:
    """Return the words of the questions about letters."""
    words = {word for members in w.KINDS.values() for word in members}
    words |= {*w.OBJECTS, *w.ANIMALS_BY_SIZE, *w.FOOD, *w.DRINKS, *w.PEOPLE}
    return sorted(words)


def letters() -> Iterator[Item]:
    words = spelled_words()
    for word in words:
        first, last, n = word[0].upper(), word[-1].upper(), w.NUMBERS[len(word)]
        starts, ends, length = (f"{what} of {word}" for what in ("start", "end", "length"))
        yield Item(
            f"Which letter does {word} start with?",
            f"The word {word} starts with {first}.",
            (f"with {first}",),
            starts,
        )
        yield Item(
            f"Which letter does {word} end with?",
            f"The word {word} ends with {last}.",
            (f"with {last}",),
            ends,
        )
        yield Item(
            f"How long is the word {word}?",
            f"The length of the word {word} is {n}.",
            (f"is {n}",),
            length,
        )
        yield Item(
            f"What does {word} begin with?",
            f"{sentence(word)} begins with {first}.",
            (f"with {first}",),
            starts,
        )
        yield Item(
            f"What does {word} end in?",
            f"{sentence(word)} ends in {last}.",
            (f"in {last}",),
            ends,
        )
        yield Item(
            f"How many letters are in {word}?",
            f"The word {word} has a length of {n}.",
            (f"of {n}",),
            length,
        )
        yield Item(
            f"Tell me the first letter of {word}.",
            f"The first letter of {word} is {first}.",
            (f"is {first}",),
            starts,
        )
        yield Item(
            f"Tell me the last letter of {word}.",
            f"The last letter of {word} is {last}.",
            (f"is {last}",),
            ends,
        )
        yield Item(
            f"Count the letters of {word}.",
            f"There are {n} letters in {word}.",
            (f"{n} letters",),
            length,
        )


def definitions() -> Iterator[Item]:
    for who, (does, can) in w.WORK.items():
        fact, known = f"work of {who}", f"is {a(who)}"
        yield Item(
            f"What is {a(who)}?", f"{sentence(a(who))} is a person who {does}.", (does,), fact
        )
        yield Item(f"Who {does}?", f"The {who} {does}.", (f"the {who}",), fact)
        yield Item(f"What can {a(who)} do?", f"{sentence(a(who))} can {can}.", (can,), fact)
        yield Item(f"Who can {can}?", f"A person who can {can} {known}.", (known,), fact)
        yield Item(
            f"Does {a(who)} {can}?",
            f"Yes, {a(who)} is a person who can {can}.",
            ("yes", f"can {can}"),
            fact,
        )
        for relative in w.FAMILY:
            if who == "king" and relative in ("mother", "sister"):
                continue
            yield Item(
                f"My {relative} is {a(who)}. What does my {relative} do?",
                f"Your {relative} {does}.",
                (does,),
                fact,
            )
            yield Item(
                f"My {relative} {does}. What is my {relative}?",
                f"Your {relative} {known}.",
                (known,),
                fact,
            )
        for other, (works, _) in w.WORK.items():
            if other != who:
                yield Item(
                    f"Who {does} and who {works}?",
                    f"The {who} {does}, and the {other} {works}.",
                    (f"{who} {does}", f"{other} {works}"),
                    fact,
                )
        for other in some((x for x in w.WORK if x != who), who):
            yield Item(
                f"Does {a(who)} {w.WORK[other][1]}?",
                f"No, {a(who)} {does}, and {a(other)} {w.WORK[other][0]}.",
                ("no", f"{who} {does}"),
                fact,
            )


def longer() -> Iterator[Item]:
    for x, y in permutations(spelled_words()[::3], 2):
        if len(x) != len(y):
            long, short = (x, y) if len(x) > len(y) else (y, x)
            yield Item(
                f"Which word is longer, {x} or {y}?",
                f"The word {long} is longer than {short}.",
                (f"{long} is longer",),
            )
