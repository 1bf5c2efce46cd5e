"""The pocket model's questions: deterministic pairs over a closed spoken vocabulary.

Four suites, in the spirit of the tasks on which spoken language models are compared: reasoning,
facts, language and dialogue.

What is held out is a sentence: none of its questions is trained on, behind whatever opening
("Good morning. ...").  The sentences stand in `held_out.txt`, at most a tenth of those of a kind
and at most 60; they were drawn once, before the first training, and stay as they are when the
generator changes.  What a held-out sentence says is known from elsewhere: where it names a fact,
two training answers or more tell it, in at least one other sentence.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from pocket import world as w
from pocket.suites import dialogue, facts, language, reasoning
from pocket.suites.item import Generator


@dataclass(frozen=True)
class Pair:
    """A question, its answer, the phrases of a right answer, and the fact that it tells."""

    suite: str
    kind: str
    question: str
    answer: str
    keys: tuple[str, ...]
    fact: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The pair as plain JSON types, without its fact."""
        return {k: v for k, v in asdict(self).items() if k != "fact"} | {"keys": list(self.keys)}


#: of each suite the generators, and how many pairs of each are trained on at most
SUITES: dict[str, dict[Generator, int]] = {
    "reasoning": {
        reasoning.addition: 1200,
        reasoning.subtraction: 1200,
        reasoning.comparison: 600,
        reasoning.size: 600,
        reasoning.sequence: 700,
        reasoning.story: 1500,
        reasoning.order: 700,
        reasoning.calendar: 700,
    },
    "facts": {
        facts.capitals: 500,
        facts.cities: 700,
        facts.continents: 500,
        facts.colours: 700,
        facts.animals: 1000,
        facts.categories: 800,
    },
    "language": {
        language.opposites: 1300,
        language.letters: 1400,
        language.longer: 500,
        language.definitions: 700,
    },
    "dialogue": {
        dialogue.place: 800,
        dialogue.owner: 900,
        dialogue.colour_of_mine: 800,
        dialogue.visit: 700,
        dialogue.hunger: 700,
        dialogue.weather: 600,
        dialogue.choice: 700,
    },
}

#: Openings: what comes before a question, and what the answer then starts with.
OPENINGS = [
    *((f"{g}.", f"{g}.") for g in ("Good morning", "Good evening", "Good afternoon")),
    ("Please help me.", "Of course."),
    ("I have a question.", "Good question."),
    *((f"I am the {p}.", f"Hello, {p}.") for p in w.PEOPLE),
]


#: share of the pairs of a kind that have an opening, or more where the kind is small
OPENED = 0.25
#: least number of training answers that hold each word of a held-out answer
LEAST_SEEN = 10
#: least number of training answers that tell the fact of a held-out answer, openings counted
LEAST_TOLD = 2


def opened(pair: Pair, opening: tuple[str, str]) -> Pair:
    """The pair with an opening in front of its question and the matching one of its answer."""
    asks, says = opening
    return replace(pair, question=f"{asks} {pair.question}", answer=f"{says} {pair.answer}")


def words(text: str) -> list[str]:
    """The words of a text, lower case."""
    return re.findall(r"[a-z]+", text.lower())


def kept_out() -> frozenset[str]:
    """The sentences that are no answer in training."""
    return frozenset(Path(__file__).with_name("held_out.txt").read_text().splitlines())


def sentences(suite: str, generator: Generator) -> list[list[Pair]]:
    """The pairs of a kind without openings: for each answer, the questions that have it."""
    by_answer: dict[str, dict[str, Pair]] = defaultdict(dict)
    for item in generator():
        pair = Pair(suite, generator.__name__, *item)
        by_answer[item.answer][item.question] = pair
    return [list(group.values()) for group in by_answer.values()]


def drawn(pairs: list[Pair], count: int, rng: random.Random) -> list[Pair]:
    """So many pairs, a quarter of them, or more where the pairs run out, behind openings."""
    plain = rng.sample(pairs, min(len(pairs), int(count * (1 - OPENED))))
    behind = [opened(p, o) for p, o in product(pairs, rng.sample(OPENINGS, 8))]
    return plain + rng.sample(behind, min(len(behind), count - len(plain)))


def split(held_out: int, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and pairs that are held out.

    Held-out pairs are drawn from the sentences that are kept out of training, evenly over the kinds
    as far as a kind has them, each with another answer, each of its words in at least `LEAST_SEEN`
    training answers and its fact, where it needs one, in at least `LEAST_TOLD`.

    Args:
        held_out: how many pairs to hold out.
        seed: of all choices; the same seed gives the same pairs.

    Returns:
        Training pairs, their questions distinct, and held-out pairs; both shuffled.
    """
    out = kept_out()
    train: list[Pair] = []
    fresh: list[list[Pair]] = []
    for suite, kinds in SUITES.items():
        for generator, count in kinds.items():
            name = generator.__name__
            rng = random.Random(f"{seed} {name}")  # a change of one kind leaves the others alone
            groups = sentences(suite, generator)
            train += drawn([p for g in groups if g[0].answer not in out for p in g], count, rng)
            fresh.append([rng.choice(g) for g in groups if g[0].answer in out])
            rng.shuffle(fresh[-1])
    rng = random.Random(seed)
    rng.shuffle(train)
    seen = Counter(word for p in train for word in set(words(p.answer)))
    told = Counter(p.fact for p in train)
    chosen: list[Pair] = []
    while len(chosen) < held_out and any(fresh):
        for left in fresh:
            if left and len(chosen) < held_out:
                pair = left.pop()
                known = not pair.fact or told[pair.fact] >= LEAST_TOLD
                if known and min(seen[word] for word in words(pair.answer)) >= LEAST_SEEN:
                    asked = rng.random() < OPENED
                    chosen.append(opened(pair, rng.choice(OPENINGS)) if asked else pair)
    rng.shuffle(chosen)
    return train, chosen
