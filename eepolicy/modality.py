"""The modality of token ids, and the alternation of text and speech chunks."""

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
    """Modality of a token or of a position."""

    TEXT = 0
    SPEECH = 1


@dataclass(frozen=True)
class TokenLayout:
    """How a one-stream spoken language model lays out its vocabulary and its replies.

    Attributes:
        text: half-open range of the text ids, special tokens included.
        speech: half-open range of the speech ids.
        text_chunk: number of text tokens in a chunk; 0 for a model that replies in speech only.
        speech_chunk: number of speech tokens in a chunk.
        end_of_text: id after which only speech follows.  -1 for a model that continues with
            speech where a text token is expected.
        end: id that ends a reply.
        before_prompt: ids before a question.
        after_prompt: ids between a question and its reply.
        end_of_speech: id after which only text follows; -1 for none.
        non_text_ids: ids in the text range that are not text, such as padding of chunks.
        num_codes: number of speech ids that are speech units, counted from the first.  The ids
            after them pad chunks.  None if all are units.
        other_ends: further ids that end a reply.
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
    other_ends: tuple[int, ...] = ()

    @classmethod
    def text_only(cls, vocabulary: int) -> TokenLayout:
        """The layout of a text model: one chunk of text, ended by the model's own end token.

        Args:
            vocabulary: size of the vocabulary.
        """
        return cls((0, vocabulary), (vocabulary, vocabulary), sys.maxsize, sys.maxsize, -1, -1)

    @property
    def has_speech(self) -> bool:
        """Whether the vocabulary has speech ids."""
        return self.speech[0] < self.speech[1]

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end a reply."""
        return (self.end, *self.other_ends)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> TokenLayout:
        """Read what `to_dict` returns; lists become tuples."""
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()
        }
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The layout as plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def modality(self, token: int) -> Modality:
        """The modality of one id.

        Raises:
            EepolicyError: the id is outside both ranges.
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
        """Whether each id is a speech id: (...,) -> (...,) of bool."""
        return (ids >= self.speech[0]) & (ids < self.speech[1])

    def units(self, ids: Tensor) -> Tensor:
        """Select the speech units, counted from 0: (tokens,) -> (units,)."""
        units = ids[self.is_speech(ids)] - self.speech[0]
        return units if self.num_codes is None else units[units < self.num_codes]

    def ids_in_speech(self, ends: Collection[int]) -> list[tuple[int, int]]:
        """Half-open ranges of the ids that may occur in a speech chunk.

        Args:
            ends: ids that end a reply.
        """
        marks = sorted({*ends, self.end_of_speech})
        return [self.speech, *((m, m + 1) for m in marks if m >= 0 and not self._is_unit(m))]

    def _is_unit(self, token: int) -> bool:
        return self.speech[0] <= token < self.speech[1]

    def text_ids(self, ids: Tensor) -> Tensor:
        """Select the text ids without end tokens: (tokens,) -> (text tokens,)."""
        marks = torch.tensor([self.end_of_text, self.end_of_speech, *self.ends, *self.non_text_ids])
        return ids[~self.is_speech(ids) & ~torch.isin(ids, marks)]


@dataclass
class ChunkClock:
    """Tracks the chunks of a reply and describes the position of its next token.

    Attributes:
        layout: layout of the model.
        modality: expected modality of the next token.
        chunk: number of the next token's chunk in the reply, from 0.
        phase: index of the next token in its chunk, from 0.
        last: the only modality that follows, once the other has ended.
        produced: number of tokens of each modality so far.
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
        """Number of earlier tokens of the next token's modality."""
        return self.produced[self.modality]

    def advance(self, token: int) -> None:
        """Advance by one generated token.

        A model may leave the alternation; the clock then follows the generated token.
        """
        produced, layout = self.layout.modality(token), self.layout
        self.produced[produced] += 1
        if produced != self.modality:
            if layout.end_of_text < 0 < layout.text_chunk:
                # the layout has no end token for a modality: a token of the other one ends it
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
        """Only one modality follows."""
        self.last = modality
        if self.modality != modality:
            self._turn(modality)

    def _turn(self, modality: Modality) -> None:
        self.modality, self.phase, self.chunk = modality, 0, self.chunk + 1
