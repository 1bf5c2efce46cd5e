"""A deterministic generator of question-answer pairs over a closed spoken vocabulary.

Four suites, in the spirit of the tasks on which spoken language models are compared: reasoning,
facts, language and dialogue.  Every answer names the `keys` that make it right: phrases that must
all be heard (or read) in it.

What is held out is a sentence: none of its questions is trained on, behind whatever opening
("Good morning. ...").  What it says must be known from elsewhere: most facts are asked for in more
than one way, and a tenth of the sentences of a kind is held out.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import permutations, product

from pocket import facts as f


@dataclass(frozen=True)
class Pair:
    """A question, its answer, and the phrases without which the answer is wrong."""

    suite: str
    kind: str
    question: str
    answer: str
    keys: tuple[str, ...]

    def as_dict(self) -> dict:
        """The pair as plain JSON types."""
        return asdict(self) | {"keys": list(self.keys)}


Triple = tuple[str, str, tuple[str, ...]]  # question, answer, keys
Generator = Callable[[], Iterator[Triple]]


@dataclass(frozen=True)
class Kind:
    """A kind of question: its suite, its generator, and how many pairs are trained on."""

    suite: str
    triples: Generator
    count: int


KINDS: dict[str, Kind] = {}


def kind(suite: str, count: int = 700) -> Callable[[Generator], Generator]:
    """Register a generator of (question, answer, keys) under its function's name."""

    def register(triples: Generator) -> Generator:
        KINDS[triples.__name__] = Kind(suite, triples, count)
        return triples

    return register


def some(others: Iterable[str], of: str, count: int = 3) -> list[str]:
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


# --- reasoning ----------------------------------------------------------------------------------


@kind("reasoning", 1200)
def addition() -> Iterator[Triple]:
    for i, j in product(range(1, 11), repeat=2):
        x, y, z = f.NUMBERS[i], f.NUMBERS[j], f.NUMBERS[i + j]
        yield f"What is {x} plus {y}?", f"{sentence(x)} plus {y} is {z}.", (f"is {z}",)
        yield f"Add {x} and {y}.", f"{sentence(x)} and {y} make {z}.", (f"make {z}",)
        yield f"How much is {x} and {y}?", f"If you add {x} and {y}, you have {z}.", (f"have {z}",)


@kind("reasoning", 1000)
def subtraction() -> Iterator[Triple]:
    for i, j in product(range(1, 16), range(1, 11)):
        if j < i:
            x, y, z = f.NUMBERS[i], f.NUMBERS[j], f.NUMBERS[i - j]
            yield f"What is {x} minus {y}?", f"{sentence(x)} minus {y} is {z}.", (f"is {z}",)
            yield (
                f"Take {y} away from {x}.",
                f"If you take {y} away from {x}, you have {z}.",
                (f"have {z}",),
            )


@kind("reasoning")
def comparison() -> Iterator[Triple]:
    for i, j in permutations(range(1, 21), 2):
        x, y = f.NUMBERS[i], f.NUMBERS[j]
        low, high = (x, y) if i < j else (y, x)
        yield (
            f"Which is more, {x} or {y}?",
            f"{sentence(high)} is more than {low}.",
            (f"{high} is more",),
        )
        yield (
            f"Which is less, {x} or {y}?",
            f"{sentence(low)} is less than {high}.",
            (f"{low} is less",),
        )


@kind("reasoning")
def size() -> Iterator[Triple]:
    for i, j in permutations(range(len(f.ANIMALS_BY_SIZE)), 2):
        x, y = f.ANIMALS_BY_SIZE[i], f.ANIMALS_BY_SIZE[j]
        low, high = (x, y) if i < j else (y, x)
        yield (
            f"Which is bigger, {a(x)} or {a(y)}?",
            f"{sentence(a(high))} is bigger than {a(low)}.",
            (f"{high} is bigger",),
        )
        yield (
            f"Which is smaller, {a(x)} or {a(y)}?",
            f"{sentence(a(low))} is smaller than {a(high)}.",
            (f"{low} is smaller",),
        )


@kind("reasoning")
def sequence() -> Iterator[Triple]:
    for i, step in product(range(1, 18), (1, 2, 3)):
        if i + 3 * step <= 20:
            x, y, z, last = (f.NUMBERS[i + k * step] for k in range(4))
            by = f.NUMBERS[step]
            yield (
                f"What comes next: {x}, {y}, {z}?",
                f"In steps of {by}, after {z} comes {last}.",
                (f"comes {last}",),
            )
            yield (
                f"Continue: {x}, {y}, {z}.",
                f"The next number after {z} is {last}.",
                (f"is {last}",),
            )


@kind("reasoning", 1500)
def story() -> Iterator[Triple]:
    for who, things, i, j in product(f.PEOPLE, f.COUNTED, range(2, 11), range(2, 9)):
        x, y = f.NUMBERS[i], f.NUMBERS[j]
        total = f.NUMBERS[i + j]
        yield (
            f"The {who} has {x} {things} and gets {y} more. How many {things} are there?",
            f"{sentence(x)} and {y} make {total}, so now the {who} has {total} {things}.",
            (f"has {total} {things}",),
        )
        if i > j:
            rest, left = f.NUMBERS[i - j], things if i - j > 1 else singular(things)
            yield (
                f"The {who} has {x} {things} and loses {y}. How many are left?",
                f"{sentence(x)} minus {y} is {rest}, so the {who} still has {rest} {left}.",
                (f"has {rest}",),
            )


def singular(things: str) -> str:
    """One of the counted things."""
    return "box" if things == "boxes" else things[:-1]


@kind("reasoning")
def order() -> Iterator[Triple]:
    for x, y in permutations(f.PEOPLE, 2):
        for more, less in (
            ("older", "younger"),
            ("taller", "shorter"),
            ("faster", "slower"),
            ("richer", "poorer"),
        ):
            yield (
                f"The {x} is {more} than the {y}. Who is {less}?",
                f"The {y} is {less} than the {x}.",
                (f"{y} is {less}",),
            )
            yield (
                f"The {x} is {less} than the {y}. Who is {more}?",
                f"The {y} is {more} than the {x}.",
                (f"{y} is {more}",),
            )


@kind("reasoning")
def calendar() -> Iterator[Triple]:
    for names, word in ((f.DAYS, "day"), (f.MONTHS, "month")):
        for i, x in enumerate(names):
            y, before = names[(i + 1) % len(names)], names[i - 1]
            yield f"Which {word} comes after {x}?", f"After {x} comes {y}.", (f"comes {y}",)
            yield f"Which {word} follows {x}?", f"The {word} after {x} is {y}.", (f"is {y}",)
            yield (
                f"Which {word} comes before {x}?",
                f"Before {x} comes {before}.",
                (f"comes {before}",),
            )
            yield (
                f"What is the {word} before {x}?",
                f"The {word} before {x} is {before}.",
                (f"is {before}",),
            )


# --- facts --------------------------------------------------------------------------------------


@kind("facts")
def capitals() -> Iterator[Triple]:
    for country, (city, _) in f.COUNTRIES.items():
        yield (
            f"What is the capital of {country}?",
            f"The capital of {country} is {city}.",
            (f"is {city}",),
        )
        yield (
            f"Which city is the capital of {country}?",
            f"{city} is the capital of {country}.",
            (f"{city} is the capital of {country}",),
        )
        yield f"In which country is {city}?", f"{city} is a city in {country}.", (f"in {country}",)
        yield f"Where is {city}?", f"You can find {city} in {country}.", (f"in {country}",)


@kind("facts")
def cities() -> Iterator[Triple]:
    for country, other in product(f.COUNTRIES, repeat=2):
        city = f.COUNTRIES[country][0]
        if country == other:
            yield (
                f"Is {city} in {other}?",
                f"Yes, {city} is in {country}.",
                ("yes", f"in {country}"),
            )
        else:
            yield f"Is {city} in {other}?", f"No, {city} is in {country}.", ("no", f"in {country}")
            yield (
                f"Is {city} the capital of {other} or of {country}?",
                f"{city} is the capital of {country}, not of {other}.",
                (f"capital of {country}",),
            )


@kind("facts")
def continents() -> Iterator[Triple]:
    for country, (city, continent) in f.COUNTRIES.items():
        yield f"Where is {country}?", f"{country} is in {continent}.", (f"in {continent}",)
        yield (
            f"On which continent is {city}?",
            f"{city} is in {country}, and {country} is in {continent}.",
            (f"in {continent}",),
        )
        for other in ("Europe", "Asia", "Africa", "America"):
            if other != continent:
                yield (
                    f"Is {country} in {other}?",
                    f"No, {country} is not in {other} but in {continent}.",
                    ("no", f"but in {continent}"),
                )


@kind("facts")
def colours() -> Iterator[Triple]:
    for thing, colour in f.COLOUR_OF.items():
        yield f"What color is {thing}?", f"{sentence(thing)} is {colour}.", (f"is {colour}",)
        yield (
            f"Which color does {thing} have?",
            f"The color of {thing} is {colour}.",
            (f"is {colour}",),
        )
        yield f"Is {thing} {colour}?", f"Yes, {thing} is {colour}.", ("yes", f"is {colour}")
        for other in some((c for c in f.COLOURS if c != colour), thing):
            yield f"Is {thing} {other}?", f"No, {thing} is {colour}.", ("no", f"is {colour}")
            yield (
                f"Is {thing} {other} or {colour}?",
                f"{sentence(thing)} is {colour}, not {other}.",
                (f"is {colour}",),
            )


@kind("facts")
def animals() -> Iterator[Triple]:
    for animal, (food, home, legs, can) in f.ANIMALS.items():
        one = a(animal)
        yield f"What does {one} eat?", f"{sentence(one)} eats {food}.", (f"eats {food}",)
        yield f"What is the food of {one}?", f"The food of {one} is {food}.", (f"is {food}",)
        yield (
            f"Where does {one} live?",
            f"{sentence(one)} lives in the {home}.",
            (f"in the {home}",),
        )
        yield f"Where can I find {one}?", f"You can find {one} in the {home}.", (f"in the {home}",)
        yield (
            f"How many legs does {one} have?",
            f"{sentence(one)} has {legs} legs.",
            (f"{legs} legs",),
        )
        for ability in f.ABILITIES:
            if ability in can:
                yield (
                    f"Can {one} {ability}?",
                    f"Yes, {one} can {ability}.",
                    ("yes", f"can {ability}"),
                )
            else:
                yield (
                    f"Can {one} {ability}?",
                    f"No, {one} cannot {ability}.",
                    ("no", f"cannot {ability}"),
                )
            able = "is able" if ability in can else "is not able"
            yield (
                f"Is {one} able to {ability}?",
                f"{sentence(one)} {able} to {ability}.",
                (f"{able} to {ability}",),
            )
        for other, (_, place, _, _) in f.ANIMALS.items():
            if place != home:
                yield (
                    f"Does {one} live in the {home} like {a(other)}?",
                    f"No, {one} lives in the {home}, but {a(other)} lives in the {place}.",
                    ("no", f"{other} lives in the {place}"),
                )


@kind("facts")
def categories() -> Iterator[Triple]:
    for name, members in f.KINDS.items():
        for member in members:
            one = member if name in ("color", "number", "country") else a(member)
            yield f"What is {one}?", f"{sentence(one)} is {a(name)}.", (f"is {a(name)}",)
            yield f"Is {one} {a(name)}?", f"Yes, {one} is {a(name)}.", ("yes", f"is {a(name)}")
            for other in some((k for k in f.KINDS if k != name), member):
                yield (
                    f"Is {one} {a(other)}?",
                    f"No, {one} is not {a(other)} but {a(name)}.",
                    ("no", f"but {a(name)}"),
                )


# --- language -----------------------------------------------------------------------------------


@kind("language", 1000)
def opposites() -> Iterator[Triple]:
    both = [*f.OPPOSITES, *((y, x) for x, y in f.OPPOSITES)]
    for x, y in both:
        yield f"What is the opposite of {x}?", f"The opposite of {x} is {y}.", (f"is {y}",)
        yield (
            f"Which word is the opposite of {x}?",
            f"{sentence(y)} is the opposite of {x}.",
            (f"{y} is the opposite of {x}",),
        )
        yield f"Say the opposite of {x}.", f"If it is not {x}, it is {y}.", (f"it is {y}",)
        yield (
            f"Is {x} the opposite of {y}?",
            f"Yes, {x} is the opposite of {y}.",
            ("yes", f"opposite of {y}"),
        )
        for other in some((w for w, _ in both if w not in (x, y)), x, 4):
            yield (
                f"Is {x} the opposite of {other}?",
                f"No, the opposite of {x} is {y}.",
                ("no", f"is {y}"),
            )
            yield (
                f"Is the opposite of {x} {other} or {y}?",
                f"The opposite of {x} is {y}, not {other}.",
                (f"is {y}",),
            )


def spelled_words() -> list[str]:
    """The words whose letters are asked for."""
    words = {w for members in f.KINDS.values() for w in members}
    words |= {*f.OBJECTS, *f.ANIMALS_BY_SIZE, *f.FOOD, *f.DRINKS, *f.PEOPLE}
    return sorted(words)


@kind("language", 1000)
def letters() -> Iterator[Triple]:
    words = spelled_words()
    for word in words:
        first, last, n = word[0].upper(), word[-1].upper(), f.NUMBERS[len(word)]
        yield (
            f"Which letter does {word} start with?",
            f"The word {word} starts with {first}.",
            (f"with {first}",),
        )
        yield (
            f"Which letter does {word} end with?",
            f"The word {word} ends with {last}.",
            (f"with {last}",),
        )
        yield (
            f"How long is the word {word}?",
            f"The length of the word {word} is {n}.",
            (f"is {n}",),
        )
        yield (
            f"What does {word} begin with?",
            f"{sentence(word)} begins with {first}.",
            (f"with {first}",),
        )
        yield f"What does {word} end in?", f"{sentence(word)} ends in {last}.", (f"in {last}",)
        yield (
            f"How many letters are in {word}?",
            f"The word {word} has a length of {n}.",
            (f"of {n}",),
        )
    for x, y in permutations(words[::3], 2):
        if len(x) != len(y):
            long, short = (x, y) if len(x) > len(y) else (y, x)
            yield (
                f"Which word is longer, {x} or {y}?",
                f"The word {long} is longer than {short}.",
                (f"{long} is longer",),
            )


@kind("language")
def definitions() -> Iterator[Triple]:
    for who, (does, can) in f.WORK.items():
        yield f"What is {a(who)}?", f"{sentence(a(who))} is a person who {does}.", (does,)
        yield f"Who {does}?", f"The {who} {does}.", (f"the {who}",)
        yield f"What can {a(who)} do?", f"{sentence(a(who))} can {can}.", (can,)
        yield f"Who can {can}?", f"A person who can {can} is {a(who)}.", (f"is {a(who)}",)
        for relative in f.FAMILY:
            yield (
                f"My {relative} is {a(who)}. What does my {relative} do?",
                f"Your {relative} {does}.",
                (does,),
            )
            yield (
                f"My {relative} {does}. What is my {relative}?",
                f"Your {relative} is {a(who)}.",
                (f"is {a(who)}",),
            )
        for other in f.WORK:
            if other != who:
                yield (
                    f"Does {a(who)} {f.WORK[other][1]}?",
                    f"No, {a(who)} {does}, and {a(other)} {f.WORK[other][0]}.",
                    ("no", f"{who} {does}"),
                )


# --- dialogue -----------------------------------------------------------------------------------


@kind("dialogue")
def place() -> Iterator[Triple]:
    for who, thing, where in product([*f.PEOPLE, *f.FAMILY], f.OBJECTS, f.PLACES):
        my = "my" if who in f.FAMILY else "the"
        your = "your" if who in f.FAMILY else "the"
        yield (
            f"{sentence(my)} {who} put the {thing} {where}. Where is the {thing}?",
            f"The {thing} is {where}, because {your} {who} put it there.",
            (f"{thing} is {where}",),
        )


@kind("dialogue")
def owner() -> Iterator[Triple]:
    rng = random.Random(3)
    people, things = list(permutations(f.PEOPLE, 2)), list(permutations(f.OBJECTS, 2))
    for _ in range(4000):
        (x, y), (p, q) = rng.choice(people), rng.choice(things)
        yield (
            f"The {x} has the {p} and the {y} has the {q}. Who has the {q}?",
            f"The {y} has the {q}, and the {x} has the {p}.",
            (f"{y} has the {q}",),
        )


@kind("dialogue")
def colour_of_mine() -> Iterator[Triple]:
    for (p, q), (c, d) in product(permutations(f.OBJECTS, 2), permutations(f.COLOURS, 2)):
        yield (
            f"I have a {c} {p} and a {d} {q}. What color is my {q}?",
            f"Your {q} is {d}, and your {p} is {c}.",
            (f"{q} is {d}",),
        )


@kind("dialogue")
def visit() -> Iterator[Triple]:
    for who, day, where in product(
        f.FAMILY, f.DAYS, [*f.COUNTRIES, *(c for c, _ in f.COUNTRIES.values())]
    ):
        yield (
            f"My {who} goes to {where} on {day}. When does my {who} leave?",
            f"Your {who} leaves on {day} and goes to {where}.",
            (f"on {day}",),
        )
        yield (
            f"On {day} my {who} comes back from {where}. Where is my {who} now?",
            f"Your {who} is in {where} and comes back on {day}.",
            (f"in {where}",),
        )


@kind("dialogue")
def hunger() -> Iterator[Triple]:
    for who, have in product([*f.PEOPLE, *f.FAMILY], [*f.FOOD, *f.DRINKS]):
        my, your = ("my", "Your") if who in f.FAMILY else ("the", "The")
        state, act = ("hungry", "eat") if have in f.FOOD else ("thirsty", "drink")
        yield (
            f"{sentence(my)} {who} is {state} and has {have}. What now?",
            f"{your} {who} is {state} and should {act} the {have}.",
            (f"{act} the {have}",),
        )
        yield (
            f"{sentence(my)} {who} wants to {act} something. I have {have}.",
            f"Give the {have} to {your.lower()} {who}, because it is good to {act}.",
            (f"give the {have}",),
        )


@kind("dialogue")
def weather() -> Iterator[Triple]:
    for (state, advice), what in product(f.WEATHER.items(), f.ACTIVITIES):
        mine = what.replace("my", "your")
        yield (
            f"It is {state}. Can I {what}?",
            f"Yes, you can {mine}, but {advice}, because it is {state}.",
            ("yes", advice),
        )
        yield (
            f"I want to {what}, but it is {state}.",
            f"If it is {state} and you want to {mine}, {advice}.",
            (advice,),
        )


@kind("dialogue")
def choice() -> Iterator[Triple]:
    for (x, y), who in product(permutations([*f.FOOD, *f.DRINKS], 2), f.FAMILY):
        yield (
            f"My {who} likes {x} but not {y}. What should I get?",
            f"Get {x} for your {who}, and do not get {y}.",
            (f"get {x} for",),
        )


#: Openings: what comes before a question, and what the answer then starts with.
OPENINGS = [
    *((f"{g}.", f"{g}.") for g in ("Good morning", "Good evening", "Good afternoon")),
    ("Please help me.", "Of course."),
    ("I have a question.", "Good question."),
    *((f"I am the {p}.", f"Hello, {p}.") for p in f.PEOPLE),
]


#: share of the pairs of a kind that have an opening, or more where the kind is small
OPENED = 0.25
#: share of the sentences of a kind that is never trained on
KEPT_OUT = 0.1
#: least number of training answers that hold each word of a held-out answer
LEAST_SEEN = 10


def opened(pair: Pair, opening: tuple[str, str]) -> Pair:
    """The pair with an opening in front of its question and the matching one of its answer."""
    asks, says = opening
    return Pair(
        pair.suite, pair.kind, f"{asks} {pair.question}", f"{says} {pair.answer}", pair.keys
    )


def words(text: str) -> list[str]:
    """The words of a text, lower case."""
    return re.findall(r"[a-z]+", text.lower())


def sentences(name: str) -> list[list[Pair]]:
    """The pairs of a kind without openings: for each answer, the questions that have it."""
    by_answer: dict[str, dict[str, Pair]] = defaultdict(dict)
    for question, answer, keys in KINDS[name].triples():
        by_answer[answer][question] = Pair(KINDS[name].suite, name, question, answer, keys)
    return [list(group.values()) for group in by_answer.values()]


def drawn(pairs: list[Pair], count: int, rng: random.Random) -> list[Pair]:
    """So many pairs, a quarter of them, or more where the pairs run out, behind openings."""
    plain = rng.sample(pairs, min(len(pairs), int(count * (1 - OPENED))))
    behind = [opened(p, o) for p, o in product(pairs, rng.sample(OPENINGS, 8))]
    return plain + rng.sample(behind, min(len(behind), count - len(plain)))


def split(held_out: int, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and pairs that are held out.

    A tenth of the sentences of each kind is kept out of training, with every question that they
    answer and behind any opening.  The held-out pairs are drawn from those, evenly over the kinds
    as far as a kind has them, each with another answer and each of its words in at least
    `LEAST_SEEN` training answers.

    Args:
        held_out: how many pairs to hold out.
        seed: of all choices; the same seed gives the same pairs.

    Returns:
        Training pairs, their questions distinct, and held-out pairs; both shuffled.
    """
    train: list[Pair] = []
    fresh: list[list[Pair]] = []
    for name, of_kind in KINDS.items():
        rng = random.Random(f"{seed} {name}")  # a change of one kind leaves the others as they are
        groups = sentences(name)
        rng.shuffle(groups)
        kept_out = round(len(groups) * KEPT_OUT)
        train += drawn([p for g in groups[kept_out:] for p in g], of_kind.count, rng)
        fresh.append([rng.choice(g) for g in groups[:kept_out]])
    rng = random.Random(seed)
    rng.shuffle(train)
    seen = Counter(w for p in train for w in set(words(p.answer)))
    chosen: list[Pair] = []
    while len(chosen) < held_out and any(fresh):
        for left in fresh:
            if left and len(chosen) < held_out:
                pair = left.pop()
                if min(seen[w] for w in words(pair.answer)) >= LEAST_SEEN:
                    asked = rng.random() < OPENED
                    chosen.append(opened(pair, rng.choice(OPENINGS)) if asked else pair)
    rng.shuffle(chosen)
    return train, chosen
