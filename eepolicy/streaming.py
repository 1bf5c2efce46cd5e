"""Speech while it is decoded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

from eepolicy.decode.output import Output
from eepolicy.decode.session import DecodeSession
from eepolicy.errors import EepolicyError
from eepolicy.html import paragraph
from eepolicy.modality import TokenLayout
from eepolicy.speech.vocoders import StreamingVocoder, sampling_rate_of

#: units that are collected for a vocoder that does not say how many it wants
CHUNK = 8


#: what a stream returns at its end
T = TypeVar("T")


class AudioStream(Generic[T]):
    """An iterator over the sound of a reply, which decodes as far as the next piece needs.

    Stopping early stops the decoding.  A second iteration continues the first one.

    Args:
        pieces: pieces of sound, (samples,) each; they are decoded on demand.
        sampling_rate: samples per second of the pieces.
        started_at: `time.perf_counter()` at the start of decoding.
        finish: makes the output when the pieces have ended.

    Attributes:
        sampling_rate: samples per second of the pieces.
        ttfa: time to first audio: seconds from the start of decoding to the first piece, prompt
            included; None until then.
        output: the reply; None until the stream has ended, and after an error.
    """

    def __init__(
        self,
        pieces: Iterator[Tensor],
        sampling_rate: int,
        started_at: float,
        finish: Callable[[], T],
    ) -> None:
        self.sampling_rate = sampling_rate
        self.ttfa: float | None = None
        self.output: T | None = None
        self._started_at, self._finish, self._pieces = started_at, finish, pieces
        self._has_failed = False

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def _repr_html_(self) -> str:
        """The reply in a notebook, with a player, once the stream has ended."""
        if self.output is None:
            return paragraph("(not at its end yet: iterate over the stream)")
        as_html = getattr(self.output, "_repr_html_", None)
        return as_html() if as_html is not None else paragraph(repr(self.output))

    def __next__(self) -> Tensor:
        """The next piece, (samples,) at `sampling_rate`."""
        had_failed, self._has_failed = self._has_failed, True  # unless a piece or the end comes
        try:
            piece = next(self._pieces)
        except StopIteration:
            self._has_failed = had_failed
            # a generator that has raised looks like one at its end
            if self.output is None and not had_failed:
                self.output = self._finish()
            raise
        self._has_failed = had_failed
        if self.ttfa is None:
            self.ttfa = time.perf_counter() - self._started_at
        return piece


def stream_units(
    session: DecodeSession,
    layout: TokenLayout,
    vocoder: StreamingVocoder,
    chunk: int,
    finish: Callable[[], Output],
) -> AudioStream[Output]:
    """The sound of the speech units of a session.

    Args:
        session: session that has not run; its first reply is streamed.
        layout: layout of the model.
        vocoder: turns units into sound while they arrive.
        chunk: speech units that are collected before they go to the vocoder.
        finish: makes the output when the session has run.
    """
    pieces = vocoder.stream(_chunks_of(session.steps(), layout, chunk))
    return AudioStream(pieces, sampling_rate_of(vocoder), session.started_at, finish)


def _chunks_of(steps: Iterable[list[int]], layout: TokenLayout, chunk: int) -> Iterator[Tensor]:
    """Collect the speech units of verified tokens.

    Args:
        steps: ids that each step has verified.
        layout: layout of the model.
        chunk: number of units that are collected.

    Yields:
        (units,), counted from 0; at least `chunk` of them, but for the last ones.
    """
    units = torch.zeros(0, dtype=torch.int64)
    for ids in steps:
        units = torch.cat([units, layout.units(torch.tensor(ids, dtype=torch.int64))])
        if len(units) >= chunk:
            yield units
            units = units[:0]
    if len(units):
        yield units


def check_stream(vocoder: object, num_rows: int, chunk: int | None) -> tuple[StreamingVocoder, int]:
    """Return the vocoder of a stream, and the number of units that are collected.

    Args:
        vocoder: vocoder of the model.
        num_rows: number of prompts.
        chunk: number of units that are collected; None for the choice of the vocoder.

    Raises:
        EepolicyError: the vocoder cannot stream, there are several rows, or `chunk` is below 1.
    """
    if not isinstance(vocoder, StreamingVocoder):
        reason = getattr(vocoder, "why_no_stream", "")
        raise EepolicyError(
            f"stream_audio() needs a vocoder with a method `stream`; this model has {vocoder!r}"
            f"{reason and ', ' + reason}: use generate(...).audio"
        )
    if num_rows != 1:
        raise EepolicyError(f"stream_audio() answers one prompt; got {num_rows} rows")
    chunk = getattr(vocoder, "stream_chunk", CHUNK) if chunk is None else chunk
    if chunk < 1:
        raise EepolicyError(f"`chunk` must be at least 1 unit; got {chunk}")
    return vocoder, chunk
