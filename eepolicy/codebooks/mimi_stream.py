"""Sound of the codec Mimi while its frames arrive, equal to that of all frames together."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.models.mimi.modeling_mimi import MimiConv1d, MimiConvTranspose1d


def is_causal(codec: PreTrainedModel) -> bool:
    """Whether no sample of a codec depends on later frames.

    Args:
        codec: a `MimiModel`.
    """
    config: Any = codec.config
    return bool(config.use_causal_conv) and config.trim_right_ratio == 1.0


class MimiStream:
    """Decodes frames as they arrive.

    The transformer of the decoder keeps its keys and values.  Convolutions are causal, so they
    run on the new states and on as many earlier ones as they read.

    Args:
        codec: a `MimiModel` with causal convolutions.
    """

    def __init__(self, codec: PreTrainedModel) -> None:
        decoder: Any = codec.decoder
        self.decoder = decoder
        self.cache = DynamicCache(config=decoder.config)
        self.upsample_context = _context(decoder.upsample)
        self.convolution_context = _context(decoder.decoder_seanet)
        self.latents: Tensor | None = None  # (1, width, frames), the newest ones
        self.states: Tensor | None = None  # (1, width, states), the newest ones

    def decode(self, latents: Tensor) -> Tensor:
        """Decode the latents of new frames.

        Args:
            latents: (1, width, frames), one or more.

        Returns:
            (1, channels, samples) of these frames.
        """
        joined, skip = _joined(self.latents, latents)
        self.latents = _newest(joined, self.upsample_context)
        upsampled = joined if self.decoder.upsample is None else self.decoder.upsample(joined)
        upsampled = upsampled[..., skip * (upsampled.shape[-1] // joined.shape[-1]) :]
        new = self.decoder.decoder_transformer(
            upsampled.transpose(1, 2), past_key_values=self.cache, use_cache=True
        ).last_hidden_state.transpose(1, 2)
        joined, skip = _joined(self.states, new)
        self.states = _newest(joined, self.convolution_context)
        wave: Tensor = self.decoder.decoder_seanet(joined)
        return wave[..., skip * (wave.shape[-1] // joined.shape[-1]) :]


def _joined(earlier: Tensor | None, new: Tensor) -> tuple[Tensor, int]:
    """Earlier columns and new ones, (1, width, columns), and the number of earlier ones."""
    if earlier is None or not earlier.shape[-1]:
        return new, 0
    return torch.cat([earlier, new], -1), earlier.shape[-1]


def _newest(columns: Tensor, count: int) -> Tensor:
    return columns[..., max(0, columns.shape[-1] - count) :]


def _context(module: torch.nn.Module | None) -> int:
    """Largest number of earlier columns of its input that an output of a module reads."""
    total, rate = 0.0, 1
    for part in () if module is None else module.modules():
        if isinstance(part, MimiConv1d):
            (size,), (dilation,) = part.conv.kernel_size, part.conv.dilation
            total += (size - 1) * dilation / rate
        elif isinstance(part, MimiConvTranspose1d):
            (size,), (stride,) = part.conv.kernel_size, part.conv.stride
            total += (math.ceil(size / stride) - 1) / rate
            rate *= stride
    return math.ceil(total)
