"""A small neural vocoder: a network computes the parameters of speech from units in context.

The parameters drive pulses and noise through filters (`source_filter`), as in differentiable signal
processing (Engel et al. 2020, arXiv 2001.04643).  This needs far less training than a network that
computes the waveform itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from eepolicy.errors import EepolicyError
from eepolicy.io import write_atomically
from eepolicy.speech.mel import HOP, MELS
from eepolicy.speech.source_filter import SpeechParameters, noise_at, phase_of, synthesize
from eepolicy.tensor_files import read_tensors

PITCH = 180.0  # Hz; the network computes the logarithm of the ratio to it
KERNEL = 7  # frames that a block sees
MEAN, SCALE = -5.0, 2.5  # of log-mel values, to normalise them
BEFORE, AFTER = 8, 4  # frames around a piece whose sound reaches into it


class ContextBlock(nn.Module):
    """A ConvNeXt block (Liu et al. 2022, arXiv 2201.03545) over time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 3 * width)
        self.reduce = nn.Linear(3 * width, width)

    def forward(self, frames: Tensor) -> Tensor:
        """(rows, frames, width) -> (rows, frames, width)."""
        mixed = self.mix(frames.transpose(1, 2)).transpose(1, 2)
        update: Tensor = self.reduce(F.gelu(self.expand(self.norm(mixed))))
        return frames + update


class VocoderNetwork(nn.Module):
    """Log-mel frames of units to the parameters of speech.

    Args:
        width: width of the blocks.
        blocks: number of blocks.
        order: coefficients of a filter.
    """

    def __init__(self, width: int = 256, blocks: int = 6, order: int = 40) -> None:
        super().__init__()
        self.width, self.order = width, order
        self.read = nn.Conv1d(MELS, width, KERNEL, padding=KERNEL // 2)
        self.blocks = nn.ModuleList([ContextBlock(width) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, 2 * order + 2)

    def __repr__(self) -> str:
        return f"VocoderNetwork({self.width}, {len(self.blocks)}, {self.order})"

    @property
    def context(self) -> int:
        """Frames on each side that a frame's parameters depend on."""
        return KERNEL // 2 * (1 + len(self.blocks))

    def raw(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """(rows, frames, 80) -> (rows, frames, 2 * order + 2); `mask` is (rows, frames)."""
        keep = 1 if mask is None else mask[..., None].to(frames.dtype)
        hidden = ((frames - MEAN) / SCALE * keep).transpose(1, 2)
        hidden = self.read(hidden).transpose(1, 2) * keep
        for block in self.blocks:
            hidden = block(hidden) * keep
        written: Tensor = self.write(self.norm(hidden))
        return written

    def parameters_of(self, raw: Tensor) -> SpeechParameters:
        """Split the output of `raw` into parameters."""
        pitch = PITCH * raw[..., 0].clamp(-1, 1).exp()
        filters = raw[..., 2:]
        return SpeechParameters(
            pitch, raw[..., 1].sigmoid(), filters[..., : self.order], filters[..., self.order :]
        )


def save_network(network: VocoderNetwork, path: Path) -> None:
    """Write a network to a safetensors file, in bfloat16.

    Raises:
        EepolicyError: the file cannot be written.
    """
    tensors = {k: v.detach().bfloat16().contiguous() for k, v in network.state_dict().items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_atomically(path, lambda part: save_file(tensors, part), size)


def load_network(path: Path) -> VocoderNetwork:
    """Read a file that `save_network` wrote; the sizes follow from its tensors.

    Raises:
        EepolicyError: the file is damaged, or is none of a vocoder.
    """
    stored = read_tensors(path, "a vocoder", ["write.weight"])
    tensors = {name: tensor.float() for name, tensor in stored.items()}
    try:
        blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        written, width = tensors["write.weight"].shape
        network = VocoderNetwork(width, blocks, (written - 2) // 2)
        network.load_state_dict(tensors)
    except (RuntimeError, ValueError) as error:
        raise EepolicyError(f"{path} is not a vocoder: {error}") from error
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def synthesize_frames(network: VocoderNetwork, rows: Sequence[Tensor]) -> list[Tensor]:
    """Compute the speech of log-mel frames, all rows together.

    Args:
        network: the vocoder's network.
        rows: (frames, 80) each, at least one frame.

    Returns:
        (frames * 160,) each, at 16 kHz, in -1..1.
    """
    lengths = torch.tensor([len(row) for row in rows])
    frames = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)  # (rows, frames, 80)
    at = torch.arange(frames.shape[1]).expand(len(rows), -1)
    mask = at < lengths[:, None]
    raw = network.raw(frames, mask)
    last = (lengths - 1)[:, None].minimum(at)[..., None].expand_as(raw)
    parameters = _decided(network.parameters_of(raw.gather(1, last)))  # the last frame is repeated
    phase = phase_of(parameters.pitch, torch.zeros(len(rows), dtype=torch.float64))[:, :-1]
    noise = noise_at(0, phase.shape[1]).expand(len(rows), -1)
    inside = mask.repeat_interleave(HOP, dim=1).float()
    waves = synthesize(parameters, phase, noise, inside).clamp(-1, 1)
    return [wave[: int(length) * HOP].clone() for wave, length in zip(waves, lengths, strict=True)]


@torch.inference_mode()
def pitch_of_frames(network: VocoderNetwork, frames: Tensor) -> Tensor:
    """The pitch with which the network speaks log-mel frames.

    Args:
        network: the vocoder's network.
        frames: (frames, 80), at least one frame.

    Returns:
        (frames,) in Hz; nan where a frame is unvoiced.
    """
    parameters = _decided(network.parameters_of(network.raw(frames[None])))
    return parameters.pitch.where(parameters.voiced > 0, torch.nan)[0]


def _decided(parameters: SpeechParameters) -> SpeechParameters:
    """Make each frame voiced or unvoiced."""
    return parameters._replace(voiced=(parameters.voiced > 0.5).float())


@torch.inference_mode()
def stream_frames(network: VocoderNetwork, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Compute speech while its log-mel frames arrive.

    The sound of a frame comes when `network.context + AFTER` later frames have arrived, or the last
    one.  The pieces together are what `synthesize_frames` returns, up to rounding.

    Args:
        network: the vocoder's network.
        chunks: (frames, 80) each.

    Yields:
        (samples,) at 16 kHz, in -1..1, at least one sample.
    """
    stream = _FrameStream(network)
    for chunk in chunks:
        piece = stream.feed(chunk)
        if len(piece):
            yield piece
    piece = stream.feed(None)
    if len(piece):
        yield piece


class _FrameStream:
    """Frames that arrived, and the phase of the pulses where the next piece starts."""

    def __init__(self, network: VocoderNetwork) -> None:
        self.network = network
        self.frames = torch.zeros(0, MELS)
        self.first = 0  # position of frames[0] in the reply
        self.done = 0  # frames whose sound was returned
        self.phase = torch.zeros(1, dtype=torch.float64)  # at frame max(0, done - BEFORE)

    def feed(self, chunk: Tensor | None) -> Tensor:
        """Add frames, or None at the end; return the sound that they complete: (samples,)."""
        if chunk is not None:
            self.frames = torch.cat([self.frames, chunk])
        end = self.first + len(self.frames)
        ready = end if chunk is None else end - self.network.context - AFTER
        if ready <= self.done:
            return torch.zeros(0)
        piece = self._piece(self.done, ready, end)
        self.done = ready
        needed = max(0, ready - BEFORE - self.network.context)
        self.frames, self.first = self.frames[needed - self.first :], needed
        return piece

    def _piece(self, start: int, stop: int, end: int) -> Tensor:
        """The sound of the frames from `start` to `stop`; `end` frames have arrived."""
        raw = self.network.raw(self.frames[None])
        left, right = max(0, start - BEFORE), min(end, stop + AFTER)
        parameters = _decided(self.network.parameters_of(raw))
        parameters = parameters.cut(left - self.first, right - self.first)
        phase = phase_of(parameters.pitch, self.phase)
        self.phase = phase[:, (max(0, stop - BEFORE) - left) * HOP]
        noise = noise_at(left * HOP, (right - left) * HOP)[None]
        wave = synthesize(parameters, phase[:, :-1], noise)[0]
        return wave[(start - left) * HOP : (stop - left) * HOP].clamp(-1, 1).clone()
