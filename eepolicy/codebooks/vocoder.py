"""Vocoders for frames of several codes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eepolicy.codebooks.mimi_stream import MimiStream, is_causal
from eepolicy.errors import EepolicyError

#: frames of `Code2WavVocoder` that are decoded together, and earlier ones that it reads again
CHUNK, LEFT_CONTEXT = 300, 25


class CodebookVocoder(Protocol):
    """Decodes frames of codes into a waveform.

    One with a method `stream(chunks)` also supports `stream_audio`: it takes an iterable of chunks
    (frames, codebooks) and yields pieces of sound (samples,).
    """

    @property
    def sampling_rate(self) -> int:
        """Samples per second."""

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (frames, codebooks), -1 for those left out, into (samples,)."""
        ...


class MimiVocoder:
    """The codec Mimi of transformers, which is a part of CSM.

    Mimi sums what its codebooks give for a frame.  Each codebook refines those before it.  A frame
    is decoded from its codes before the first one that is left out, or that the codec does not
    have, such as a special code of the language model.  A frame without any such code is silent
    before the decoder: its sum is zero.

    Args:
        codec: a `MimiModel`.

    Attributes:
        stream_chunk: number of frames in a chunk of `stream_audio`; 240 ms of CSM.
    """

    stream_chunk = 3

    def __init__(self, codec: PreTrainedModel) -> None:
        self.codec: Any = codec

    def __repr__(self) -> str:
        return f"MimiVocoder({self.sampling_rate} Hz)"

    @property
    def sampling_rate(self) -> int:
        """Samples per second."""
        return int(self.codec.config.sampling_rate)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode frames.

        Args:
            codes: (frames, codebooks), -1 for codes left out.

        Returns:
            (samples,) at `sampling_rate`, on the CPU; empty for no frame.
        """
        if not len(codes):
            return torch.zeros(0)
        wave: Tensor = self.codec.decoder(self._latents(codes)).audio_values
        return wave[0, 0].float().cpu()

    @torch.no_grad()
    def stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode frames while they arrive.

        Args:
            chunks: chunks of frames, (frames, codebooks) each.

        Yields:
            (samples,) of each chunk.  Together they are the sound of `decode`, up to rounding.

        Raises:
            EepolicyError: the convolutions of the codec read later frames.
        """
        if not is_causal(self.codec):
            raise EepolicyError(
                f"{self!r} cannot stream: the convolutions of the codec read later frames; use "
                "generate(...).audio"
            )
        stream = MimiStream(self.codec)
        for codes in chunks:
            if len(codes):
                yield stream.decode(self._latents(codes))[0, 0].float().cpu()

    def _latents(self, codes: Tensor) -> Tensor:
        """What the decoder of the codec reads: (frames, codebooks) -> (1, width, frames)."""
        codes = codes.to(self.codec.device)
        is_code = (codes >= 0) & (codes < self.codec.config.codebook_size)
        used = is_code.long().cumprod(1).sum(1)  # (frames,) codes before the first missing one
        latents = codes.new_zeros(
            (1, self.codec.config.hidden_size, len(codes)), dtype=self.codec.dtype
        )
        for count in used.unique().tolist():
            if count:
                frames = used == count
                own = codes[frames, :count].T[None]  # (1, codes, frames)
                latents[..., frames] = self.codec.quantizer.decode(own).to(latents.dtype)
        return latents


class Code2WavVocoder:
    """The vocoder of Qwen3-Omni, `code2wav` of the whole model.

    It reads the mean of what all codes of a frame give, so it needs all of them.

    Args:
        code2wav: a `Qwen3OmniMoeCode2Wav`.

    Attributes:
        stream_chunk: number of frames in a chunk of `stream_audio`.
    """

    stream_chunk = 5

    #: samples per second of Qwen3-Omni's speech, as in the authors' examples
    sampling_rate = 24_000

    def __init__(self, code2wav: PreTrainedModel) -> None:
        self.code2wav: Any = code2wav

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode frames in chunks, as the whole model does.

        Args:
            codes: (frames, codebooks).

        Returns:
            (samples,) at `sampling_rate`, on the CPU; empty for no frame.

        Raises:
            EepolicyError: a code is left out, or is a special code of the talker.
        """
        if not len(codes):
            return torch.zeros(0)
        wave: Tensor = self.code2wav.chunked_decode(
            self._checked(codes), chunk_size=CHUNK, left_context_size=LEFT_CONTEXT
        )
        return wave[0, 0].float().cpu()

    @torch.no_grad()
    def stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode frames while they arrive, each chunk with `LEFT_CONTEXT` frames before it.

        The attention of the vocoder reads more frames, so the sound of a reply of more than
        `LEFT_CONTEXT` frames differs slightly from that of `decode`.

        Args:
            chunks: chunks of frames, (frames, codebooks) each.

        Yields:
            (samples,), which begin where the piece before ends.

        Raises:
            EepolicyError: as for `decode`.
        """
        frames = torch.zeros(0)
        num_frames = num_samples = 0  # of all chunks so far, and of all pieces
        for codes in chunks:
            if not len(codes):
                continue
            context = frames[-LEFT_CONTEXT:] if len(frames) else codes[:0]
            frames, start = torch.cat([context, codes]), num_frames - len(context)
            num_frames += len(codes)
            wave = self.code2wav(self._checked(frames))[0, 0].float().cpu()
            # the vocoder trims its output, so that a piece ends before its last frame does
            piece = wave[num_samples - start * int(self.code2wav.total_upsample) :]
            num_samples += len(piece)
            yield piece

    def _checked(self, codes: Tensor) -> Tensor:
        """Codes as the stock vocoder takes them: (frames, codebooks) -> (1, codebooks, frames)."""
        limit = int(self.code2wav.config.codebook_size)
        if int(codes.min()) < 0 or int(codes.max()) >= limit:
            raise EepolicyError(
                f"this vocoder needs all codes of a frame, 0 to {limit - 1} each; got "
                f"{int(codes.min())} to {int(codes.max())}: decode with all codebooks, or "
                "with missing='code:NUMBER'"
            )
        return codes.T[None].to(self.code2wav.device)
