"""Facts: capitals, continents, colours, animals, categories."""

from __future__ import annotations

from collections.abc import Iterator

from pocket import world as w
from pocket.suites.item import Item, a, sentence, some


def capitals() -> Iterator[Item]:
    for country, (city, _) in w.COUNTRIES.items():
        fact = f"capital of {country}"
        yield Item(
            f"What is the capital of {country}?",
            f"The capital of {country} is {city}.",
            (f"is {city}",),
            fact,
        )
        yield Item(
            f"Which city is the capital of {country}?",
            f"{city} is the capital of {country}.",
            (f"{city} is the capital of {country}",),
            fact,
        )
        yield Item(
            f"In which country is {city}?",
            f"{city} is a city in {country}.",
            (f"in {country}",),
            fact,
        )
        yield Item(
            f"Where is {city}?", f"You can find {city} in {country}.", (f"in {country}",), fact
        )


def cities() -> Iterator[Item]:
    for country, (city, _) in w.COUNTRIES.items():
        fact = f"capital of {country}"
        here = f"in {country}"
        yield Item(f"Is {city} in {country}?", f"Yes, {city} is {here}.", ("yes", here), fact)
        yield Item(
            f"Is {city} the capital of {country}?",
            f"Yes, the capital of {country} is {city}.",
            ("yes", f"is {city}"),
            fact,
        )
        for other in some((c for c in w.COUNTRIES if c != country), country, 12):
            yield Item(
                f"Is {city} the capital of {other} or of {country}?",
                f"{city} is the capital of {country}, not of {other}.",
                (f"capital of {country}",),
                fact,
            )
        for other in some((c for c in w.COUNTRIES if c != country), city, 3):
            yield Item(f"Is {city} in {other}?", f"No, {city} is {here}.", ("no", here), fact)
            yield Item(
                f"Is {city} the capital of {other}?",
                f"No, the capital of {other} is {w.COUNTRIES[other][0]}.",
                ("no", f"is {w.COUNTRIES[other][0]}"),
                f"capital of {other}",
            )


def continents() -> Iterator[Item]:
    for country, (city, continent) in w.COUNTRIES.items():
        fact = f"continent of {country}"
        here = f"in {continent}"
        yield Item(f"Where is {country}?", f"{country} is {here}.", (here,), fact)
        yield Item(
            f"On which continent is {country}?",
            f"The continent of {country} is {continent}.",
            (f"is {continent}",),
            fact,
        )
        yield Item(
            f"On which continent is {city}?",
            f"{city} is in {country}, and {country} is {here}.",
            (here,),
            fact,
        )
        yield Item(f"Is {country} {here}?", f"Yes, {country} is {here}.", ("yes", here), fact)
        for other in some((c for c in w.CONTINENTS if c != continent), country):
            yield Item(
                f"Is {country} in {other}?",
                f"No, {country} is not in {other} but {here}.",
                ("no", f"but {here}"),
                fact,
            )


def colours() -> Iterator[Item]:
    for thing, colour in w.COLOUR_OF.items():
        fact, known = f"colour of {thing}", f"is {colour}"
        yield Item(f"What color is {thing}?", f"{sentence(thing)} is {colour}.", (known,), fact)
        yield Item(
            f"Which color does {thing} have?",
            f"The color of {thing} is {colour}.",
            (known,),
            fact,
        )
        yield Item(f"Is {thing} {colour}?", f"Yes, {thing} is {colour}.", ("yes", known), fact)
        for other in some((c for c in w.COLOURS if c != colour), thing):
            yield Item(f"Is {thing} {other}?", f"No, {thing} is {colour}.", ("no", known), fact)
        for other in some((c for c in w.COLOURS if c != colour), colour + thing, 5):
            yield Item(
                f"Is {thing} {other} or {colour}?",
                f"{sentence(thing)} is {colour}, not {other}.",
                (known,),
                fact,
            )


def animals() -> Iterator[Item]:
    for animal, (food, home, legs, can) in w.ANIMALS.items():
        one = a(animal)
        eats, lives, has = (f"{what} of {animal}" for what in ("food", "home", "legs"))
        yield Item(
            f"What does {one} eat?", f"{sentence(one)} eats {food}.", (f"eats {food}",), eats
        )
        yield Item(
            f"What is the food of {one}?", f"The food of {one} is {food}.", (f"is {food}",), eats
        )
        yield Item(
            f"I have {food}. Is it good for {one}?",
            f"Yes, it is good, because {one} eats {food}.",
            ("yes", f"eats {food}"),
            eats,
        )
        yield Item(
            f"Where does {one} live?",
            f"{sentence(one)} lives in the {home}.",
            (f"in the {home}",),
            lives,
        )
        yield Item(
            f"Where can I find {one}?",
            f"You can find {one} in the {home}.",
            (f"in the {home}",),
            lives,
        )
        yield Item(
            f"How many legs does {one} have?",
            f"{sentence(one)} has {legs} legs.",
            (f"{legs} legs",),
            has,
        )
        yield Item(
            f"I see {one}. How many legs do I see?",
            f"You see {legs} legs, because {one} has {legs} legs.",
            (f"see {legs} legs",),
            has,
        )
        for ability in w.ABILITIES:
            fact = f"{animal}: {ability}"
            if ability in can:
                answer = f"Yes, {one} can {ability}."
                keys, able = ("yes", f"can {ability}"), "is able"
            else:
                answer = f"No, {one} cannot {ability}."
                keys, able = ("no", f"cannot {ability}"), "is not able"
            yield Item(f"Can {one} {ability}?", answer, keys, fact)
            yield Item(
                f"Is {one} able to {ability}?",
                f"{sentence(one)} {able} to {ability}.",
                (f"{able} to {ability}",),
                fact,
            )
        homes = {other: place for other, (_, place, _, _) in w.ANIMALS.items() if other != animal}
        for other in some((x for x in homes if homes[x] == home), animal):
            yield Item(
                f"Does {one} live in the {home} like {a(other)}?",
                f"Yes, {one} and {a(other)} live in the {home}.",
                ("yes", f"live in the {home}"),
                lives,
            )
        for other in some((x for x in homes if homes[x] != home), animal):
            yield Item(
                f"Does {one} live in the {home} like {a(other)}?",
                f"No, {one} lives in the {home}, but {a(other)} lives in the {homes[other]}.",
                ("no", f"{other} lives in the {homes[other]}"),
                f"home of {other}",
            )


def categories() -> Iterator[Item]:
    for name, members in w.KINDS.items():
        for member in members:
            one = member if name in ("color", "number", "country") else a(member)
            fact, known = f"kind of {member}", f"is {a(name)}"
            yield Item(f"What is {one}?", f"{sentence(one)} is {a(name)}.", (known,), fact)
            yield Item(f"Is {one} {a(name)}?", f"Yes, {one} is {a(name)}.", ("yes", known), fact)
            yield Item(
                f"Tell me what {one} is.",
                f"The word {member} is the name of {a(name)}.",
                (f"name of {a(name)}",),
                fact,
            )
            for other in some((k for k in w.KINDS if k != name), member):
                yield Item(
                    f"Is {one} {a(other)}?",
                    f"No, {one} is not {a(other)} but {a(name)}.",
                    ("no", f"but {a(name)}"),
                    fact,
                )
                yield Item(
                    f"Is {one} {a(name)} or {a(other)}?",
                    f"{sentence(one)} is {a(name)}, not {a(other)}.",
                    (known,),
                    fact,
                )
