"""Step-Audio-2-mini (arXiv 2507.16632): its decoder in the native Qwen2 class, and its encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from eepolicy.hooked import HookedModel
from eepolicy.loading.huggingface import read_config
from eepolicy.loading.upstream import qwen2
from eepolicy.loading.upstream.checkpoint import NativeModel, load_native, section
from eepolicy.loading.upstream.qwen2 import decoder_config
from eepolicy.speech.model_card import ModelCard
from eepolicy.speech.step_audio2_encoder import StepAudio2Encoder, StepAudio2EncoderConfig

#: `model_type` in the config.json of the model
MODEL_TYPE = "step_audio_2"
#: tokens before a segment of a spoken prompt, in place of an embedding, and after a segment
AUDIO_TOKENS = ("<audio_start>", "<audio_patch>", "<audio_end>")

#: names of the encoder's weights: Step-Audio-2 to native
_ENCODER = {
    "encoder.conv1.": "conv1.",
    "encoder.conv2.": "conv2.",
    "encoder.positional_embedding.": "positions.",
    "encoder.after_norm.": "norm.",
    "adapter.conv.": "shrink.",
    "adapter.linear1.": "widen.",
    "adapter.linear2.": "project.",
}
#: names of the weights in an encoder layer: Step-Audio-2 to native
_BLOCK = {
    "attn.query.": "self_attn.q_proj.",
    "attn.key.": "self_attn.k_proj.",
    "attn.value.": "self_attn.v_proj.",
    "attn.out.": "self_attn.out_proj.",
    "attn_ln.": "self_attn_layer_norm.",
    "mlp.0.": "fc1.",
    "mlp.2.": "fc2.",
    "mlp_ln.": "final_layer_norm.",
}


class _StepAudio2(nn.Module):
    """Decoder and audio encoder, which share one checkpoint."""

    def __init__(self, decoder: Qwen2Config, audio_encoder: StepAudio2EncoderConfig) -> None:
        super().__init__()
        self.decoder = Qwen2ForCausalLM(decoder)
        self.audio_encoder = StepAudio2Encoder(audio_encoder)


def native_config(text_config: dict[str, Any]) -> Qwen2Config:
    """Convert the decoder's config to the native one.

    Args:
        text_config: `text_config` in `config.json`.

    Raises:
        EepolicyError: a field is missing, or has a value that the loader does not support.
    """
    return decoder_config(text_config, "text_config in config.json")


def convert(key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Convert the name of a weight to the native one; the decoder already has native names."""
    if key.startswith("encoder.blocks."):
        number, _, rest = key.removeprefix("encoder.blocks.").partition(".")
        name = next((n for n in _BLOCK if rest.startswith(n)), "")
        yield (
            f"audio_encoder.layers.{number}.{_BLOCK.get(name, '')}{rest.removeprefix(name)}",
            tensor,
        )
    elif key.startswith(("encoder.", "adapter.")):
        name = next((n for n in _ENCODER if key.startswith(n)), "")
        yield f"audio_encoder.{_ENCODER.get(name, '')}{key.removeprefix(name)}", tensor
    else:
        yield f"decoder.{key}", tensor


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer, without code of the checkpoint.

    Raises:
        EepolicyError: a file is missing or damaged, or the tokenizer lacks a token of spoken
            prompts.
    """
    return qwen2.read_tokenizer(folder, AUDIO_TOKENS)


def native(config: dict[str, Any]) -> NativeModel[_StepAudio2]:
    """Return the native decoder and the encoder of a `config.json`, and how to convert weights.

    Raises:
        EepolicyError: a field is missing, or has a value that the loader does not support.
    """
    decoder = native_config(section(config, "text_config"))
    sizes = section(config, "audio_encoder_config")
    audio_encoder = StepAudio2EncoderConfig.from_dict(sizes)
    return NativeModel(lambda: _StepAudio2(decoder, audio_encoder), convert)


def load(folder: Path, dtype: torch.dtype, card: ModelCard) -> HookedModel:
    """Load Step-Audio-2-mini from a folder in its authors' layout, without a vocoder.

    Args:
        folder: folder with `config.json`, safetensors and the tokenizer.
        dtype: dtype of the weights.
        card: card of the model.

    Raises:
        EepolicyError: a file or key is missing or damaged, or belongs to another model.
    """
    model = load_native(native(read_config(folder / "config.json")), folder, dtype)
    tokenizer = read_tokenizer(folder)
    return qwen2.hooked(model.decoder, tokenizer, card, model.audio_encoder, AUDIO_TOKENS)
