"""The audio encoder of Step-Audio-2: a Whisper encoder, halved in time twice, and an adapter to the decoder.

Written after its authors' modeling file, on the encoder layers of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from eepolicy.errors import EepolicyError
from eepolicy.speech.mel import SAMPLE_RATE

#: speech is heard in pieces of so many samples, each followed by so much silence
PIECE, SILENCE = 25 * SAMPLE_RATE, 479
#: width between the two layers of the adapter
INNER = 2048


@dataclass(frozen=True)
class StepAudio2EncoderConfig:
    """Sizes of the audio encoder, named as in `audio_encoder_config` of the checkpoint."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    llm_dim: int
    kernel_size: int
    adapter_stride: int

    @classmethod
    def from_dict(cls, theirs: dict[str, Any]) -> StepAudio2EncoderConfig:
        """The sizes among the fields of a checkpoint.

        Raises:
            EepolicyError: one is missing.
        """
        try:
            return cls(**{name: int(theirs[name]) for name in cls.__dataclass_fields__})
        except KeyError as error:
            raise EepolicyError(f"audio_encoder_config has no {error}") from error


class StepAudio2Encoder(nn.Module):
    """Waves to what stands in a prompt in place of tokens, about 12.5 a second.

    Args:
        config: sizes.
    """

    def __init__(self, config: StepAudio2EncoderConfig) -> None:
        super().__init__()
        width = config.n_audio_state
        whisper = WhisperConfig(
            d_model=width,
            encoder_attention_heads=config.n_audio_head,
            encoder_ffn_dim=4 * width,
            activation_function="gelu",
            attn_implementation="sdpa",
        )
        self.config = config
        self.conv1 = nn.Conv1d(config.n_mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.positions = nn.Embedding(config.n_audio_ctx, width)
        self.layers = nn.ModuleList(
            WhisperEncoderLayer(whisper) for _ in range(config.n_audio_layer)
        )
        self.norm = nn.LayerNorm(width)
        self.shrink = nn.Conv1d(width, width, config.kernel_size, config.adapter_stride, padding=1)
        self.widen = nn.Linear(width, INNER)
        self.project = nn.Linear(INNER, config.llm_dim)

    def mels(self, piece: Tensor) -> Tensor:
        """Log-mel spectrum of a piece and the silence behind it: (samples,) -> (mels, frames)."""
        extract = WhisperFeatureExtractor(feature_size=self.config.n_mels)
        wave = F.pad(piece.float().cpu(), (0, SILENCE)).numpy()
        found = extract(wave, sampling_rate=SAMPLE_RATE, padding=False, return_tensors="pt")
        mels: Tensor = found.input_features[0]
        return mels

    def forward(self, mels: Tensor) -> Tensor:
        """Encode one piece: (mels, frames) -> (tokens, width of the decoder)."""
        frames = mels.shape[1]
        hidden: Tensor = F.gelu(self.conv2(F.gelu(self.conv1(mels[None])))).transpose(1, 2)
        hidden = hidden + self.positions.weight[: hidden.shape[1]]
        # the last two frames are no speech; every other frame has a place in the layers
        heard = torch.arange(frames, device=mels.device)[(frames + 1) % 2 :: 2] < frames - 2
        mask = torch.zeros(heard.shape, dtype=hidden.dtype, device=mels.device)
        mask = mask.masked_fill(~heard, torch.finfo(hidden.dtype).min)[None, None, None]
        for layer in self.layers:
            hidden = layer(hidden, mask.expand(-1, -1, hidden.shape[1], -1))
        hidden = F.avg_pool1d(hidden.transpose(1, 2), 2).transpose(1, 2)
        hidden = self.norm(hidden).transpose(1, 2)
        hidden = F.gelu(self.shrink(hidden)).transpose(1, 2)
        hidden = self.project(F.relu(self.widen(hidden)))[0]
        pooled = (frames - 1) // 2 // 2
        return hidden[: (pooled + 2 - self.config.kernel_size) // self.config.adapter_stride + 1]

    @torch.no_grad()
    def encode(self, wave: Tensor) -> list[Tensor]:
        """What is heard, piece by piece of 25 seconds.

        Args:
            wave: (samples,) at 16 kHz, in -1..1.

        Returns:
            (tokens, width of the decoder) each.

        Raises:
            EepolicyError: the wave is empty or too short, or has more than one channel.
        """
        if wave.ndim != 1 or not len(wave):
            raise EepolicyError(f"a wave is (samples,) at 16 kHz; got {tuple(wave.shape)}")
        like = self.norm.weight
        heard = [
            self(self.mels(piece).to(device=like.device, dtype=like.dtype))
            for piece in wave.split(PIECE)
        ]
        heard = [piece for piece in heard if len(piece)]
        if not heard:
            raise EepolicyError(f"{len(wave)} samples at 16 kHz are too short to be heard")
        return heard
