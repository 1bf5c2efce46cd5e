"""Dialogue: short exchanges; the question contains all information."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import permutations, product

from pocket import world as w
from pocket.suites.item import Item, a, sentence


def place() -> Iterator[Item]:
    for who, thing, where in product([*w.PEOPLE, *w.FAMILY], w.OBJECTS, w.PLACES):
        my = "my" if who in w.FAMILY else "the"
        your = "your" if who in w.FAMILY else "the"
        yield Item(
            f"{sentence(my)} {who} put the {thing} {where}. Where is the {thing}?",
            f"The {thing} is {where}, because {your} {who} put it there.",
            (f"{thing} is {where}",),
        )


def owner() -> Iterator[Item]:
    rng = random.Random(3)
    people, things = list(permutations(w.PEOPLE, 2)), list(permutations(w.OBJECTS, 2))
    for _ in range(4000):
        (x, y), (p, q) = rng.choice(people), rng.choice(things)
        yield Item(
            f"The {x} has the {p} and the {y} has the {q}. Who has the {q}?",
            f"The {y} has the {q}, and the {x} has the {p}.",
            (f"{y} has the {q} and the {x}",),
        )


def colour_of_mine() -> Iterator[Item]:
    for (p, q), (c, d) in product(permutations(w.OBJECTS, 2), permutations(w.COLOURS, 2)):
        yield Item(
            f"I have {a(c)} {p} and {a(d)} {q}. What color is my {q}?",
            f"Your {q} is {d}, and your {p} is {c}.",
            (f"{q} is {d}",),
        )


def visit() -> Iterator[Item]:
    for who, day, where in product(
        w.FAMILY, w.DAYS, [*w.COUNTRIES, *(c for c, _ in w.COUNTRIES.values())]
    ):
        yield Item(
            f"My {who} goes to {where} on {day}. When does my {who} leave?",
            f"Your {who} leaves on {day} and goes to {where}.",
            (f"leaves on {day}",),
        )
        yield Item(
            f"On {day} my {who} comes back from {where}. Where is my {who} now?",
            f"Your {who} is in {where} and comes back on {day}.",
            (f"is in {where}",),
        )


def hunger() -> Iterator[Item]:
    for who, have in product([*w.PEOPLE, *w.FAMILY], [*w.FOOD, *w.DRINKS]):
        my, your = ("my", "Your") if who in w.FAMILY else ("the", "The")
        state, act = ("hungry", "eat") if have in w.FOOD else ("thirsty", "drink")
        yield Item(
            f"{sentence(my)} {who} is {state} and has {have}. What now?",
            f"{your} {who} is {state} and should {act} the {have}.",
            (f"{act} the {have}",),
        )
        yield Item(
            f"{sentence(my)} {who} wants to {act} something. I have {have}.",
            f"Give the {have} to {your.lower()} {who}, because it is good to {act}.",
            (f"give the {have} to {your.lower()} {who}",),
        )


def weather() -> Iterator[Item]:
    for (state, advice), what in product(w.WEATHER.items(), w.ACTIVITIES):
        mine = what.replace("my", "your")
        yield Item(
            f"It is {state}. Can I {what}?",
            f"Yes, you can {mine}, but {advice}, because it is {state}.",
            ("yes", advice),
        )
        yield Item(
            f"I want to {what}, but it is {state}.",
            f"If it is {state} and you want to {mine}, {advice}.",
            (advice,),
        )


def choice() -> Iterator[Item]:
    for (x, y), who in product(permutations([*w.FOOD, *w.DRINKS], 2), w.FAMILY):
        yield Item(
            f"My {who} likes {x} but not {y}. What should I get?",
            f"Get {x} for your {who}, and do not get {y}.",
            (f"get {x} for",),
        )
