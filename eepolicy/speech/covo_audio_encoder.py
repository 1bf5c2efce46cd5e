"""The audio encoder of Covo-Audio (arXiv 2602.09823).

The Whisper encoder of transformers, and an adapter that halves its output three times and projects
it to the width of the decoder.  Reimplemented after the authors' modeling file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from eepolicy.speech.audio_prompt import check_shape, too_short
from eepolicy.speech.config_fields import read_sizes
from eepolicy.speech.mel import SAMPLE_RATE

#: samples in a segment (30 s); the encoder takes longer speech segment by segment
SEGMENT = 30 * SAMPLE_RATE
#: samples between mel frames (10 ms); an incomplete last one is dropped
FRAME = SAMPLE_RATE // 100
#: number of mel bands, and of positions that Whisper makes of the frames of a segment
MELS, POSITIONS = 128, 1500
#: number of times that the adapter halves the output of Whisper
HALVINGS = 3
#: mel frames of an embedding: Whisper halves them once more
FRAMES_PER_TOKEN = 2 ** (HALVINGS + 1)
#: width between the two linear layers of a halving
ADAPTER_WIDTH = 2048


@dataclass(frozen=True)
class CovoAudioEncoderConfig:
    """Sizes of the audio encoder, named as in `encoder_config` of the checkpoint.

    Attributes:
        d_model: width of Whisper.
        encoder_layers: number of layers of Whisper.
        encoder_attention_heads: number of heads of Whisper.
        encoder_ffn_dim: width of the feed-forward layers of Whisper.
        hidden_size: width of the decoder.
    """

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    hidden_size: int

    @classmethod
    def from_dict(
        cls, data: dict[str, Any], where: str = "encoder_config in config.json"
    ) -> CovoAudioEncoderConfig:
        """Take the sizes from a config; other fields are ignored.

        Raises:
            EepolicyError: a size is missing, or is not a whole number from 1.
        """
        return read_sizes(cls, data, where)

    @property
    def whisper(self) -> WhisperConfig:
        """The config of the Whisper encoder."""
        return WhisperConfig(
            num_mel_bins=MELS,
            max_source_positions=POSITIONS,
            d_model=self.d_model,
            encoder_layers=self.encoder_layers,
            encoder_attention_heads=self.encoder_attention_heads,
            encoder_ffn_dim=self.encoder_ffn_dim,
            activation_function="gelu",
            attn_implementation="sdpa",
        )


class Halving(nn.Module):
    """Halves a sequence and maps it: (rows, length, width) -> (rows, length / 2, width out).

    Args:
        width: width of the input.
        width_out: width of the output.
    """

    def __init__(self, width: int, width_out: int) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.linear1 = nn.Linear(width, ADAPTER_WIDTH)
        self.linear2 = nn.Linear(ADAPTER_WIDTH, width_out)

    def forward(self, hidden: Tensor) -> Tensor:
        """Halve a sequence; of an odd length, the half is rounded up."""
        hidden = F.relu(self.conv1d(hidden.transpose(1, 2)).transpose(1, 2))
        out: Tensor = self.linear2(F.relu(self.linear1(hidden)))
        return out


class CovoAudioAdapter(nn.Module):
    """Halves the output of Whisper three times; the last time, to the width of the decoder.

    Args:
        config: sizes of the encoder.
    """

    def __init__(self, config: CovoAudioEncoderConfig) -> None:
        super().__init__()
        widths = [config.d_model] * HALVINGS + [config.hidden_size]
        self.downsample_layers = nn.ModuleList(map(Halving, widths, widths[1:]))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (rows, length, width of Whisper) to (rows, length / 8, width of the decoder)."""
        for layer in self.downsample_layers:
            hidden = layer(hidden)
        return hidden


class CovoAudioEncoder(nn.Module):
    """Turns waveforms into embeddings of the decoder, 6.25 per second.

    Args:
        config: sizes of the encoder.
        encoder: the Whisper encoder.
        audio_adapter: the adapter.
    """

    def __init__(
        self,
        config: CovoAudioEncoderConfig,
        encoder: WhisperEncoder,
        audio_adapter: CovoAudioAdapter,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.audio_adapter = audio_adapter

    @classmethod
    def make(cls, config: CovoAudioEncoderConfig) -> CovoAudioEncoder:
        """Make an encoder with new weights."""
        return cls(config, WhisperEncoder(config.whisper), CovoAudioAdapter(config))

    def mels(self, segment: Tensor) -> Tensor:
        """Log-mel spectrum of a segment, padded to 30 s: (samples,) -> (128, 3000)."""
        extract = WhisperFeatureExtractor(feature_size=MELS)
        wave = segment.float().cpu().numpy()
        features = extract(wave, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        mels: Tensor = features.input_features[0]
        return mels

    def forward(self, mels: Tensor) -> Tensor:
        """Encode a segment: (128, 3000) -> (188, width of the decoder)."""
        states: Tensor = self.audio_adapter(self.encoder(mels[None]).last_hidden_state)[0]
        return states

    @torch.no_grad()
    def encode(self, wave: Tensor) -> list[Tensor]:
        """Encode a waveform, whose embeddings are one segment of the prompt.

        Speech over 30 seconds is encoded in pieces of 30 seconds.

        Args:
            wave: (samples,) at 16 kHz, in -1..1.

        Returns:
            One tensor of embeddings, (tokens, width of the decoder).

        Raises:
            EepolicyError: the waveform is empty or too short, or has more than one channel.
        """
        check_shape(wave)
        frames = len(wave) // FRAME
        if not frames:
            raise too_short(wave, FRAME / SAMPLE_RATE)
        like = self.encoder.layer_norm.weight
        pieces = [
            self(self.mels(piece).to(device=like.device, dtype=like.dtype))
            for piece in wave[: frames * FRAME].split(SEGMENT)
        ]
        return [torch.cat(pieces)[: -(-frames // FRAMES_PER_TOKEN)]]
