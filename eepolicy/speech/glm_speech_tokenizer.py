"""The speech tokenizer of GLM-4-Voice: part of a Whisper encoder with a codebook.

Source: github.com/zai-org/GLM-4-Voice, `speech_tokenizer`; arXiv 2412.02612, section 2.1.
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
from eepolicy.speech.audio_prompt import AudioPrompt, check_shape
from eepolicy.speech.config_fields import check_supported, read_sizes
from eepolicy.speech.mel import SAMPLE_RATE

#: samples in a segment (30 s); longer speech is encoded segment by segment
SEGMENT = 30 * SAMPLE_RATE
#: samples of a mel frame, and frames of a position after the convolutions
HOP, STRIDE = 160, 2


@dataclass(frozen=True)
class GlmSpeechTokenizerConfig:
    """Sizes of the speech tokenizer, named as in `config.json` of its checkpoint."""

    d_model: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    num_mel_bins: int
    max_source_positions: int
    pooling_kernel_size: int
    pooling_position: int
    quantize_position: int
    quantize_vocab_size: int
    quantize_causal_block_size: int

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GlmSpeechTokenizerConfig:
        """Take the sizes from the fields of a checkpoint.

        Raises:
            EepolicyError: a size is missing, or a field has a value that is not supported.
        """
        supported = {
            "encoder_causal_convolution": True,
            "encoder_causal_attention": False,
            "quantize_causal_encoder": False,
            "pooling_type": "avg",
            "activation_function": "gelu",
        }
        where = "config.json of the speech tokenizer"
        check_supported(data, supported, where)
        sizes = read_sizes(cls, data, where)
        if not 0 < sizes.pooling_position <= sizes.quantize_position:
            raise EepolicyError(
                "the speech tokenizer pools before it quantizes; config.json has the positions "
                f"{sizes.pooling_position} and {sizes.quantize_position}"
            )
        return sizes


class GlmSpeechTokenizer(nn.Module):
    """Turns waveforms into speech units, 12.5 a second.

    Args:
        config: sizes of the tokenizer.
    """

    def __init__(self, config: GlmSpeechTokenizerConfig) -> None:
        super().__init__()
        width = config.d_model
        whisper = WhisperConfig(
            d_model=width,
            encoder_attention_heads=config.encoder_attention_heads,
            encoder_ffn_dim=config.encoder_ffn_dim,
            activation_function="gelu",
            attn_implementation="sdpa",
        )
        self.config = config
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, 3)
        self.conv2 = nn.Conv1d(width, width, 3, stride=STRIDE)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        self.layers = nn.ModuleList(
            WhisperEncoderLayer(whisper) for _ in range(config.quantize_position)
        )
        self.codebook = nn.Embedding(config.quantize_vocab_size, width)

    def mels(self, segment: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel spectrum of a segment, padded to whole units.

        Args:
            segment: (samples,) at 16 kHz.

        Returns:
            (mels, frames), and whether each frame has speech, (frames,).
        """
        extract = WhisperFeatureExtractor(feature_size=self.config.num_mel_bins)
        features = extract(
            segment.float().cpu().numpy(),
            sampling_rate=SAMPLE_RATE,
            padding="longest",
            pad_to_multiple_of=HOP * STRIDE * self.config.pooling_kernel_size,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return features.input_features[0], features.attention_mask[0].bool()

    def forward(self, mels: Tensor, is_speech: Tensor) -> Tensor:
        """Units of a segment.

        Args:
            mels: (mels, frames).
            is_speech: (frames,), whether a frame has speech.

        Returns:
            (units,).
        """
        pool = self.config.pooling_kernel_size
        hidden = F.gelu(self.conv1(F.pad(mels[None], (2, 0))))
        hidden = F.gelu(self.conv2(F.pad(hidden, (2, 0)))).transpose(1, 2)
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        is_speech = is_speech[::STRIDE]
        mask = self._mask(is_speech, self.config.quantize_causal_block_size, hidden.dtype)
        for number, layer in enumerate(self.layers, start=1):
            hidden = layer(hidden, mask)
            if number == self.config.pooling_position:
                hidden = hidden.transpose(1, 2)
                hidden = F.avg_pool1d(F.pad(hidden, (0, -hidden.shape[-1] % pool)), pool)
                hidden, is_speech = hidden.transpose(1, 2), is_speech[::pool]
                block = self.config.quantize_causal_block_size // pool
                mask = self._mask(is_speech, block, hidden.dtype)
        units = self._nearest(hidden[0])
        return units[is_speech]

    def _mask(self, is_speech: Tensor, block: int, dtype: torch.dtype) -> Tensor:
        """Attention to earlier positions, and to all of the own block: (1, 1, queries, keys)."""
        at = torch.arange(len(is_speech), device=is_speech.device)
        allowed = at[None] < (at[:, None] // block + 1) * block
        allowed = allowed & is_speech[None]
        return torch.zeros(allowed.shape, dtype=dtype, device=at.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )[None, None]

    def _nearest(self, states: Tensor) -> Tensor:
        """The nearest code of each state: (positions, width) -> (positions,)."""
        codes = self.codebook.weight
        distances = (
            states.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * states @ codes.T
        )
        return distances.argmin(1)

    @torch.no_grad()
    def encode(self, wave: Tensor) -> list[Tensor]:
        """Encode a waveform in segments of 30 seconds.

        Args:
            wave: (samples,) at 16 kHz, in -1..1.

        Returns:
            The units of each segment, (units,).

        Raises:
            EepolicyError: the waveform is empty, or has more than one channel.
        """
        check_shape(wave)
        like = self.codebook.weight
        segments = []
        for segment in wave.split(SEGMENT):
            mels, is_speech = self.mels(segment)
            segments.append(self(mels.to(like), is_speech.to(like.device)).cpu())
        return segments


@dataclass(frozen=True)
class UnitPrompt(AudioPrompt):
    """How a prompt contains the units of a speech tokenizer: as ids, with no other embeddings.

    Attributes:
        first: id of the first unit.
    """

    first: int = 0

    def encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a waveform as a part of a prompt.

        Args:
            wave: (samples,) at 16 kHz, in -1..1.

        Returns:
            Ids (tokens,), and no embeddings, (0, 1).
        """
        units = torch.cat(self.encoder.encode(wave)) + self.first
        ids = torch.cat([torch.tensor([self.start]), units, torch.tensor([self.end])])
        return ids, torch.zeros(0, 1)
