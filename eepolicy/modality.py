"""Token ids to modality, and where the next token stands in the alternation of chunks."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError


class Modality(IntEnum):
    """What a token is."""

    TEXT = 0
    SPEECH = 1


@dataclass(frozen=True)
class TokenLayout:
    """How a one-stream spoken language model lays out its vocabulary and its replies.

    Attributes:
        text: half-open range of the text ids, specials included.
        speech: half-open range of the speech ids.
        text_chunk: text tokens in a chunk; 0 for a model that answers in speech alone.
        speech_chunk: speech tokens in a chunk.
        end_of_text: id after which only speech follows; -1 for a model that says so by going on
            with speech where text is due.
        end: id that ends a reply.
        before_prompt: ids in front of a question.
        after_prompt: ids behind it, after which the reply starts.
        end_of_speech: id after which only text follows; -1 for none.
        non_text_ids: text ids that are no text, such as what fills up chunks when the text is over.
        num_codes: speech ids that sound, from the first on; those behind fill up chunks.  None for all.
    """

    text: tuple[int, int]
    speech: tuple[int, int]
    text_chunk: int
    speech_chunk: int
    end_of_text: int
    end: int
    before_prompt: tuple[int, ...] = ()
    after_prompt: tuple[int, ...] = ()
    end_of_speech: int = -1
    non_text_ids: tuple[int, ...] = ()
    num_codes: int | None = None

    @classmethod
    def text_only(cls, vocabulary: int) -> TokenLayout:
        """The layout of a model without speech: one chunk of text, ended by the model's own mark.

        Args:
            vocabulary: its size.
        """
        return cls((0, vocabulary), (vocabulary, vocabulary), sys.maxsize, sys.maxsize, -1, -1)

    @property
    def has_speech(self) -> bool:
        """Whether any id is speech."""
        return self.speech[0] < self.speech[1]

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> TokenLayout:
        """The layout that `to_dict` wrote, lists turned back into tuples."""
        read: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return cls(**read)

    def to_dict(self) -> dict[str, Any]:
        """The layout as plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def modality(self, token: int) -> Modality:
        """The modality of one id.

        Raises:
            EepolicyError: the id is in neither range.
        """
        if self._is_unit(token):
            return Modality.SPEECH
        if self.text[0] <= token < self.text[1]:
            return Modality.TEXT
        raise EepolicyError(
            f"token {token} belongs to no modality: text ids are {self.text[0]} to "
            f"{self.text[1] - 1}, speech ids {self.speech[0]} to {self.speech[1] - 1}"
        )

    def is_speech(self, ids: Tensor) -> Tensor:
        """Which ids are speech: (...,) -> (...,) of bool."""
        return (ids >= self.speech[0]) & (ids < self.speech[1])

    def units(self, ids: Tensor) -> Tensor:
        """The speech units among the ids, counted from 0: (tokens,) -> (units,)."""
        units = ids[self.is_speech(ids)] - self.speech[0]
        return units if self.num_codes is None else units[units < self.num_codes]

    def ids_in_speech(self, ends: Collection[int]) -> list[tuple[int, int]]:
        """Half-open ranges of the ids that a place in a chunk of speech may hold.

        Args:
            ends: ids that end a reply.
        """
        marks = sorted({*ends, self.end_of_speech})
        return [self.speech, *((m, m + 1) for m in marks if m >= 0 and not self._is_unit(m))]

    def _is_unit(self, token: int) -> bool:
        return self.speech[0] <= token < self.speech[1]

    def text_ids(self, ids: Tensor) -> Tensor:
        """The text among the ids, without the end marks: (tokens,) -> (text tokens,)."""
        marks = torch.tensor([self.end_of_text, self.end_of_speech, self.end, *self.non_text_ids])
        return ids[~self.is_speech(ids) & ~torch.isin(ids, marks)]


@dataclass
class ChunkClock:
    """Follows a reply and says where its next token stands.

    Attributes:
        layout: of the model that speaks.
        modality: of the next token, as the alternation has it.
        chunk: number of the next token's chunk in the reply, from 0.
        phase: place of the next token in its chunk, from 0.
        last: the modality that alone follows, once the other has ended.
        produced: tokens of each modality so far.
    """

    layout: TokenLayout
    modality: Modality = Modality.TEXT
    chunk: int = 0
    phase: int = 0
    last: Modality | None = None
    produced: list[int] = field(default_factory=lambda: [0] * len(Modality))

    def __post_init__(self) -> None:
        if self.layout.text_chunk == 0:
            self.modality = self.last = Modality.SPEECH

    @property
    def ordinal(self) -> int:
        """Tokens of the next token's modality before it."""
        return self.produced[self.modality]

    def advance(self, token: int) -> None:
        """Take the token that was produced at this place.

        A model may leave the alternation; the clock then follows what it really produced.
        """
        produced, layout = self.layout.modality(token), self.layout
        self.produced[produced] += 1
        if produced != self.modality:
            if layout.end_of_text < 0 < layout.text_chunk:
                # no token says that a modality is over: the other does, where it is due
                self.last = produced if self.last is None else None
            self._turn(produced)
        self.phase += 1
        if token == layout.end_of_text:
            self._alone(Modality.SPEECH)
        elif token == layout.end_of_speech:
            self._alone(Modality.TEXT)
        elif produced != self.last:
            full = layout.text_chunk if produced == Modality.TEXT else layout.speech_chunk
            if self.phase >= full:
                self._turn(Modality(1 - produced))

    def _alone(self, modality: Modality) -> None:
        """Nothing but a modality follows."""
        self.last = modality
        if self.modality != modality:
            self._turn(modality)

    def _turn(self, modality: Modality) -> None:
        self.modality, self.phase, self.chunk = modality, 0, self.chunk + 1
