"""The pocket model's questions: deterministic pairs over a closed spoken vocabulary.

The four suites follow the benchmarks of spoken language models: reasoning, facts, language and
dialogue.

The held-out unit is an answer sentence.  None of its questions is trained on, with any opening
("Good morning. ...").  `held_out.txt` lists these sentences: at most a tenth of those of a kind,
and at most 60.  They were drawn once, before the first training, and do not change when the
generator changes.  The model can know the fact of a held-out sentence: at least two training
answers state it, in at least one other sentence.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from eepolicy.io import read_lines
from pocket import world as w
from pocket.suites import dialogue, facts, language, reasoning
from pocket.suites.item import Generator


@dataclass(frozen=True)
class Pair:
    """A question with its answer: see `pocket.suites.item.Item`.

    Attributes:
        suite: name of the suite.
        kind: name of the generator.
        question: the question.
        answer: the right answer.
        keys: phrases that a right answer contains.
        fact: the fact that the answer states; empty for none.
    """

    suite: str
    kind: str
    question: str
    answer: str
    keys: tuple[str, ...]
    fact: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the pair in JSON types, without its fact."""
        return {k: v for k, v in asdict(self).items() if k != "fact"} | {"keys": list(self.keys)}


#: for each suite its generators, with the maximum number of training pairs of each
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

#: number of pairs in each held-out split, dev and test
HELD_OUT = 300

#: openings: the text before a question, and the text before its answer
OPENINGS = [
    *((f"{g}.", f"{g}.") for g in ("Good morning", "Good evening", "Good afternoon")),
    ("Please help me.", "Of course."),
    ("I have a question.", "Good question."),
    *((f"I am the {p}.", f"Hello, {p}.") for p in w.PEOPLE),
]

#: share of pairs with an opening; larger for kinds with few pairs
OPENING_SHARE = 0.25
#: minimum number of training answers that contain a word of a held-out answer
MIN_WORD_COUNT = 10
#: minimum number of training answers that state the fact of a held-out answer; pairs that differ
#: only in the opening count separately
MIN_FACT_COUNT = 2


def with_opening(pair: Pair, opening: tuple[str, str]) -> Pair:
    """Add an opening to the question, and the matching one to the answer."""
    before_question, before_answer = opening
    return replace(
        pair,
        question=f"{before_question} {pair.question}",
        answer=f"{before_answer} {pair.answer}",
    )


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return re.findall(r"[a-z]+", text.lower())


def held_out_sentences() -> frozenset[str]:
    """Return the sentences that are not an answer in training."""
    return frozenset(read_lines(Path(__file__).with_name("held_out.txt")))


def sentences(suite: str, generator: Generator) -> list[list[Pair]]:
    """Return the pairs of a kind without openings, grouped by answer."""
    by_answer: dict[str, dict[str, Pair]] = defaultdict(dict)
    for item in generator():
        pair = Pair(suite, generator.__name__, *item)
        by_answer[item.answer][item.question] = pair
    return [list(group.values()) for group in by_answer.values()]


def sample(pairs: list[Pair], count: int, rng: random.Random) -> list[Pair]:
    """Sample pairs; a quarter of them get openings, or more if there are too few pairs.

    Args:
        pairs: pairs without openings.
        count: number of pairs to sample.
        rng: random number generator.
    """
    plain = rng.sample(pairs, min(len(pairs), int(count * (1 - OPENING_SHARE))))
    extended = [with_opening(p, o) for p, o in product(pairs, rng.sample(OPENINGS, 8))]
    return plain + rng.sample(extended, min(len(extended), count - len(plain)))


def split(held_out: int, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Make training pairs and held-out pairs.

    Held-out pairs come from the held-out sentences, in equal numbers per kind as far as a kind has
    enough.  Each has a different answer.  At least `MIN_WORD_COUNT` training answers contain each
    of its words, and at least `MIN_FACT_COUNT` state its fact.

    Args:
        held_out: number of held-out pairs.
        seed: seed of all random choices; the same seed gives the same pairs.

    Returns:
        Training pairs with distinct questions, and held-out pairs; both shuffled.
    """
    excluded = held_out_sentences()
    train: list[Pair] = []
    fresh: list[list[Pair]] = []
    for suite, kinds in SUITES.items():
        for generator, count in kinds.items():
            name = generator.__name__
            rng = random.Random(
                f"{seed} {name}"
            )  # so that a change of one kind does not change others
            groups = sentences(suite, generator)
            train += sample(
                [p for g in groups if g[0].answer not in excluded for p in g], count, rng
            )
            fresh.append([rng.choice(g) for g in groups if g[0].answer in excluded])
            rng.shuffle(fresh[-1])
    rng = random.Random(seed)
    rng.shuffle(train)
    seen = Counter(word for p in train for word in set(words(p.answer)))
    facts_seen = Counter(p.fact for p in train)
    chosen: list[Pair] = []
    while len(chosen) < held_out and any(fresh):
        for left in fresh:
            if left and len(chosen) < held_out:
                pair = left.pop()
                known = not pair.fact or facts_seen[pair.fact] >= MIN_FACT_COUNT
                if known and min(seen[word] for word in words(pair.answer)) >= MIN_WORD_COUNT:
                    if rng.random() < OPENING_SHARE:
                        pair = with_opening(pair, rng.choice(OPENINGS))
                    chosen.append(pair)
    rng.shuffle(chosen)
    return train, chosen
