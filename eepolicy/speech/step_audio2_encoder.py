"""The audio encoder of Step-Audio-2 (arXiv 2507.16632).

A Whisper encoder, whose output is pooled by two, and an adapter that halves it again and projects
it to the width of the decoder.  Reimplemented after the authors' modeling file, on the encoder
layers of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from eepolicy.speech.audio_prompt import check_shape, too_short
from eepolicy.speech.config_fields import read_sizes
from eepolicy.speech.mel import SAMPLE_RATE

#: samples in a segment (25 s); the encoder takes longer speech segment by segment
SEGMENT = 25 * SAMPLE_RATE
#: samples of silence after each segment
SILENCE = 479
#: width between the two linear layers of the adapter
ADAPTER_WIDTH = 2048


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
    def from_dict(
        cls, data: dict[str, Any], where: str = "audio_encoder_config in config.json"
    ) -> StepAudio2EncoderConfig:
        """Take the sizes from a config; other fields are ignored.

        Raises:
            EepolicyError: a size is missing, or is not a whole number from 1.
        """
        return read_sizes(cls, data, where)


class StepAudio2Encoder(nn.Module):
    """Turns waveforms into embeddings of the decoder, about 12.5 per second.

    Args:
        config: sizes of the encoder.
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
        self.widen = nn.Linear(width, ADAPTER_WIDTH)
        self.project = nn.Linear(ADAPTER_WIDTH, config.llm_dim)

    def mels(self, segment: Tensor) -> Tensor:
        """Log-mel spectrum of a segment and its silence: (samples,) -> (mels, frames)."""
        extract = WhisperFeatureExtractor(feature_size=self.config.n_mels)
        wave = F.pad(segment.float().cpu(), (0, SILENCE)).numpy()
        features = extract(wave, sampling_rate=SAMPLE_RATE, padding=False, return_tensors="pt")
        mels: Tensor = features.input_features[0]
        return mels

    def forward(self, mels: Tensor) -> Tensor:
        """Encode a segment: (mels, frames) -> (tokens, width of the decoder)."""
        frames = mels.shape[1]
        hidden: Tensor = F.gelu(self.conv2(F.gelu(self.conv1(mels[None])))).transpose(1, 2)
        hidden = hidden + self.positions.weight[: hidden.shape[1]]
        # conv2 keeps every other frame; the last two frames are silence, which is masked
        is_speech = torch.arange(frames, device=mels.device)[(frames + 1) % 2 :: 2] < frames - 2
        mask = torch.zeros(is_speech.shape, dtype=hidden.dtype, device=mels.device)
        mask = mask.masked_fill(~is_speech, torch.finfo(hidden.dtype).min)[None, None, None]
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
        """Encode a waveform in segments of 25 seconds.

        Args:
            wave: (samples,) at 16 kHz, in -1..1.

        Returns:
            The embeddings of each segment, (tokens, width of the decoder).

        Raises:
            EepolicyError: the waveform is empty or too short, or has more than one channel.
        """
        check_shape(wave)
        like = self.norm.weight
        segments = [
            self(self.mels(segment).to(device=like.device, dtype=like.dtype))
            for segment in wave.split(SEGMENT)
        ]
        # a last segment without tokens stays as an empty pair of marks, as in the authors' code
        if not any(map(len, segments)):
            raise too_short(wave, 0.1)
        return segments
