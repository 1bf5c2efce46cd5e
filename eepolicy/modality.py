"""The modality of token ids, and the alternation of text and speech chunks."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from itertools import combinations
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from eepolicy.arguments import checked
from eepolicy.errors import EepolicyError
from eepolicy.fields import Count, Tuple, build, check_fields, check_value

#: half-open range of ids; ids; and an id, or -1 for none
Range = Annotated[tuple[Count, Count], Tuple]
Ids = Annotated[tuple[Count, ...], Tuple]
Mark = Annotated[int, Field(ge=-1, lt=2**31)]
#: a count for each modality
Produced = Annotated[list[Count], Field(min_length=2, max_length=2)]


class Modality(IntEnum):
    """Modality of a token or of a position."""

    TEXT = 0
    SPEECH = 1


def is_ids(tensor: Tensor) -> bool:
    """Whether a tensor has the type of ids: integers, and no truth values."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


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
        text_after: half-open range of the text ids after the speech ids; empty by default.
    """

    text: Range
    speech: Range
    text_chunk: Annotated[int, Field(ge=0, le=sys.maxsize)]
    speech_chunk: Annotated[int, Field(ge=1, le=sys.maxsize)]
    end_of_text: Mark
    end: Mark
    before_prompt: Ids = ()
    after_prompt: Ids = ()
    end_of_speech: Mark = -1
    non_text_ids: Ids = ()
    num_codes: Count | None = None
    other_ends: Ids = ()
    text_after: Range = (0, 0)

    def __post_init__(self) -> None:
        check_fields(self)
        for first, stop in self._ranges:
            if first > stop:
                raise EepolicyError(
                    f"TokenLayout: a range of ids begins before it ends; got {(first, stop)}"
                )
        if self.text_chunk and self.text[0] == self.text[1]:
            raise EepolicyError(f"TokenLayout: text chunks need text ids; got text {self.text}")
        for one, other in combinations(self._ranges, 2):
            if max(one[0], other[0]) < min(one[1], other[1]):
                raise EepolicyError(
                    f"TokenLayout: an id is text or speech; the ranges {one} and {other} overlap"
                )

    @property
    def _ranges(self) -> tuple[Range, Range, Range]:
        """All ids, in half-open ranges."""
        return self.text, self.speech, self.text_after

    def check(self, vocabulary: int) -> None:
        """Refuse ids that a model does not have.

        Args:
            vocabulary: size of the vocabulary of the model.

        Raises:
            EepolicyError: with the id and the size.
        """
        marks = (self.end_of_text, self.end_of_speech, *self.ends)
        ids = (*marks, *self.before_prompt, *self.after_prompt, *self.non_text_ids)
        largest = max(*ids, *(stop - 1 for _, stop in self._ranges))
        if largest >= vocabulary:
            raise EepolicyError(
                f"the layout names id {largest}, and the vocabulary of the model has {vocabulary} "
                f"ids, 0 to {vocabulary - 1}: {self!r} belongs to another model"
            )

    @classmethod
    @checked()
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
    def num_units(self) -> int:
        """Number of speech units."""
        return self.speech[1] - self.speech[0] if self.num_codes is None else self.num_codes

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end a reply."""
        return (self.end, *self.other_ends)

    @classmethod
    @checked()
    def from_dict(cls, plain: dict[str, Any]) -> TokenLayout:
        """Read what `to_dict` returns; lists become tuples."""
        return build(cls, plain)

    def to_dict(self) -> dict[str, Any]:
        """The layout as plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def modality(self, token: int) -> Modality:
        """The modality of one id.

        Raises:
            EepolicyError: the id is outside all ranges.
        """
        if type(token) is not int:
            token = check_value("token", Count, token)
        if self._is_unit(token):
            return Modality.SPEECH
        if self._is_text(token):
            return Modality.TEXT
        raise EepolicyError(
            f"token {token} belongs to no modality: text ids are {self.text[0]} to "
            f"{self.text[1] - 1}, speech ids {self.speech[0]} to {self.speech[1] - 1}"
        )

    def has_modality(self, token: int) -> bool:
        """Whether one id is in one of the ranges."""
        return self._is_unit(token) or self._is_text(token)

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

    def _is_text(self, token: int) -> bool:
        return any(first <= token < stop for first, stop in (self.text, self.text_after))

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
    chunk: Count = 0
    phase: Count = 0
    last: Modality | None = None
    produced: Produced = field(default_factory=lambda: [0] * len(Modality))

    def __post_init__(self) -> None:
        check_fields(self)
        if self.layout.text_chunk == 0:
            self.modality = self.last = Modality.SPEECH

    @property
    def ordinal(self) -> int:
        """Number of earlier tokens of the next token's modality."""
        return self.produced[self.modality]

    def copy(self) -> ChunkClock:
        """A clock of its own in the same state."""
        # every token copies a clock: without a check of the fields, and faster than `copy.copy`
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        new.produced = list(self.produced)
        return new

    def advance(self, token: int, is_draft: bool = False) -> None:
        """Advance by one generated token.

        A model may leave the alternation; the clock then follows the generated token.

        Args:
            token: its id.
            is_draft: whether it may be rejected.  A draft of no modality counts as one of the
                expected modality, and so does an end that does not end this reply.

        Raises:
            EepolicyError: the id is outside all ranges.
        """
        layout, produced = self.layout, self.modality
        if not (is_draft or token in layout.ends) or layout.has_modality(token):
            produced = layout.modality(token)
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
