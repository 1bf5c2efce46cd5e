"""Model cards: what the library must know of a spoken language model beside its weights."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from eepolicy.errors import EepolicyError
from eepolicy.modality import TokenLayout

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class ModelCard:
    """How a model writes one stream of text and speech over one vocabulary.

    Tokens are named as its tokenizer has them, so that their ids need not be known.

    Attributes:
        name: of the model, as `eepolicy.load(folder, card=name)` takes it.
        source: id on the Hugging Face Hub.
        model_type: of its `config.json`.
        unit: its speech tokens, with `{i}` for their number from 0, such as `"<|audio_{i}|>"`; or
            the id of the first one.
        text_chunk: text tokens in a chunk; 0 for a model that answers in speech alone.
        speech_chunk: speech tokens in a chunk.
        end: token that ends a reply.
        prompt_prefix: what stands in front of a question.
        prompt_suffix: what stands behind it; the reply follows.
        num_codes: how many of the speech tokens sound; all that the tokenizer has where none is given.
        rate: speech tokens a second.
        end_of_text: token after which only speech follows.
        end_of_speech: token after which only text follows.
        non_text_tokens: text tokens that are no text.
        sampling: options of `generate`, as its authors sample.
        vocoder: what makes sound of its units.
    """

    name: str
    source: str
    model_type: str
    unit: str | int
    text_chunk: int
    speech_chunk: int
    end: str | int
    prompt_prefix: str = ""
    prompt_suffix: str = ""
    num_codes: int | None = None
    rate: float | None = None
    end_of_text: str | None = None
    end_of_speech: str | None = None
    non_text_tokens: tuple[str, ...] = ()
    sampling: dict[str, Any] = field(default_factory=dict)
    vocoder: str = ""

    @classmethod
    def from_dict(cls, held: dict[str, Any]) -> ModelCard:
        """A card from the plain types of TOML and JSON.

        Raises:
            EepolicyError: a field is missing, unknown or of another kind.
        """
        names = {f.name for f in fields(cls)}
        unknown = sorted(set(held) - names)
        if unknown:
            raise EepolicyError(f"it has {unknown[0]!r}; a card has {', '.join(sorted(names))}")
        unit = held.get("unit", 0)
        if isinstance(unit, str) and "{i}" not in unit:
            raise EepolicyError(f"unit has {{i}} where its number stands; got {unit!r}")
        for name in ("num_codes", "text_chunk", "speech_chunk"):
            if not isinstance(held.get(name) or 0, int):
                raise EepolicyError(f"{name} is a whole number; got {held[name]!r}")
        try:
            return cls(**held | {"non_text_tokens": tuple(held.get("non_text_tokens", ()))})
        except TypeError as error:
            raise EepolicyError(f"it is not whole: {error}") from error

    def _unit(self, number: int) -> str:
        """The name of a speech token."""
        return str(self.unit).replace("{i}", str(number))

    def layout(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> TokenLayout:
        """The model's chunks and ids.

        What lies behind the speech tokens in the vocabulary only fills it up, and counts as speech
        that does not sound.

        Args:
            tokenizer: of the model.
            vocabulary: its size, by `config.json`.

        Raises:
            EepolicyError: the tokenizer lacks a token, or its speech tokens do not lie together.
        """
        known: dict[str, int] = tokenizer.get_vocab()

        def id_of(token: str | int) -> int:
            if isinstance(token, int):
                return token
            if token not in known:
                raise EepolicyError(f"the tokenizer has no {token}: it is none of {self.name}")
            return known[token]

        if isinstance(self.unit, int):
            first, num_codes = self.unit, self.num_codes or vocabulary - self.unit
            last = first + num_codes - 1
        else:
            num_codes = self.num_codes or next(i for i in count() if self._unit(i) not in known)
            first, last = id_of(self._unit(0)), id_of(self._unit(max(num_codes, 1) - 1))
        if last - first != num_codes - 1 or last >= vocabulary:
            raise EepolicyError(
                f"the {num_codes} speech tokens of {self.name} are ids {first} to {last} of "
                f"{vocabulary}: they do not lie side by side in it"
            )
        return TokenLayout(
            text=(0, first),
            speech=(first, vocabulary),
            text_chunk=self.text_chunk,
            speech_chunk=self.speech_chunk,
            end_of_text=-1 if self.end_of_text is None else id_of(self.end_of_text),
            end=id_of(self.end),
            end_of_speech=-1 if self.end_of_speech is None else id_of(self.end_of_speech),
            non_text_ids=tuple(id_of(token) for token in self.non_text_tokens),
            num_codes=num_codes,
        )


def read_card(file: Path) -> ModelCard:
    """A model card from a TOML file.

    Raises:
        EepolicyError: the file is missing or damaged, or a field is missing, unknown or of another
            kind.
    """
    try:
        held = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EepolicyError(f"{file} is no model card: {error}") from error
    try:
        return ModelCard.from_dict(held)
    except EepolicyError as error:
        raise EepolicyError(f"{file} is no model card: {error}") from error


def shipped_cards() -> dict[str, ModelCard]:
    """The cards that ship with the package, by name."""
    folder = Path(str(files("eepolicy") / "loading" / "model_cards"))
    return {file.stem: read_card(file) for file in sorted(folder.glob("*.toml"))}


def card_named(card: str | Path | ModelCard) -> ModelCard:
    """A card by its name, its file, or itself.

    Raises:
        EepolicyError: there is none.
    """
    if isinstance(card, ModelCard):
        return card
    shipped = shipped_cards()
    if str(card) in shipped:
        return shipped[str(card)]
    if Path(card).suffix == ".toml":
        return read_card(Path(card))
    raise EepolicyError(f"cards are {', '.join(shipped)}, or a .toml file; got {str(card)!r}")
