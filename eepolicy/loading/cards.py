"""Model cards in files: the shipped ones, and those that users write."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from eepolicy.arguments import checked
from eepolicy.errors import EepolicyError
from eepolicy.io import read_toml
from eepolicy.speech.model_card import ModelCard


def read_card(file: str | Path) -> ModelCard:
    """Read a model card from a TOML file.

    Raises:
        EepolicyError: the file is missing or is not TOML; or a field is missing or unknown, or has
            a wrong type or range.
    """
    return ModelCard.from_dict(read_toml(file, "a model card"), str(file))


def shipped_cards() -> dict[str, ModelCard]:
    """Return the cards that ship with the package, by name."""
    folder = Path(str(files("eepolicy") / "loading" / "model_cards"))
    return {file.stem: read_card(file) for file in sorted(folder.glob("*.toml"))}


@checked()
def card_named(card: str | Path | ModelCard) -> ModelCard:
    """Return the card that a name or a file stands for; a card is returned unchanged.

    Raises:
        EepolicyError: no card has this name, or the file is not a card.
    """
    if isinstance(card, ModelCard):
        return card
    shipped = shipped_cards()
    if str(card) in shipped:
        return shipped[str(card)]
    if Path(card).suffix == ".toml":
        return read_card(Path(card))
    raise EepolicyError(
        f"{str(card)!r} is not a card: give one of {', '.join(shipped)}, "
        "or the path of a .toml file"
    )
