"""Token ids to modality, and where the next token stands in the alternation of chunks."""

from __future__ import annotations

import sys
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
        text_chunk: text tokens in a chunk.
        speech_chunk: speech tokens in a chunk.
        end_of_text: id after which only speech follows.
        end: id that ends a reply.
        before_prompt: ids in front of a question.
        after_prompt: ids behind it, after which the reply starts.
    """

    text: tuple[int, int]
    speech: tuple[int, int]
    text_chunk: int
    speech_chunk: int
    end_of_text: int
    end: int
    before_prompt: tuple[int, ...] = ()
    after_prompt: tuple[int, ...] = ()

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
        if self.speech[0] <= token < self.speech[1]:
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
        return ids[self.is_speech(ids)] - self.speech[0]

    def text_ids(self, ids: Tensor) -> Tensor:
        """The text among the ids, without the end marks: (tokens,) -> (text tokens,)."""
        marks = torch.tensor([self.end_of_text, self.end])
        return ids[~self.is_speech(ids) & ~torch.isin(ids, marks)]


@dataclass
class ChunkClock:
    """Follows a reply and says where its next token stands.

    Attributes:
        layout: of the model that speaks.
        modality: of the next token, as the alternation has it.
        chunk: number of the next token's chunk in the reply, from 0.
        phase: place of the next token in its chunk, from 0.
        text_ended: the end of the text has been seen; only speech follows.
        produced: tokens of each modality so far.
    """

    layout: TokenLayout
    modality: Modality = Modality.TEXT
    chunk: int = 0
    phase: int = 0
    text_ended: bool = False
    produced: list[int] = field(default_factory=lambda: [0] * len(Modality))

    @property
    def ordinal(self) -> int:
        """Tokens of the next token's modality before it."""
        return self.produced[self.modality]

    def advance(self, token: int) -> None:
        """Take the token that was produced at this place.

        A model may leave the alternation; the clock then follows what it really produced.
        """
        produced = self.layout.modality(token)
        self.produced[produced] += 1
        if produced != self.modality:
            self._turn(produced)
        self.phase += 1
        if token == self.layout.end_of_text:
            self.text_ended = True
            self._turn(Modality.SPEECH)
        elif produced == Modality.TEXT and self.phase >= self.layout.text_chunk:
            self._turn(Modality.SPEECH)
        elif (
            produced == Modality.SPEECH
            and self.phase >= self.layout.speech_chunk
            and not self.text_ended
        ):
            self._turn(Modality.TEXT)

    def _turn(self, modality: Modality) -> None:
        self.modality, self.phase, self.chunk = modality, 0, self.chunk + 1
