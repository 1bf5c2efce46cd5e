"""Step-Audio-2-mini (arXiv 2507.16632): its decoder in the native Qwen2 class, and its encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.loading.huggingface import READ_ERRORS, read_config
from eepolicy.loading.upstream.checkpoint import NativeModel, finish, load_native
from eepolicy.speech.audio_prompt import AudioPrompt
from eepolicy.speech.model_card import ModelCard
from eepolicy.speech.step_audio2_encoder import StepAudio2Encoder, StepAudio2EncoderConfig

#: `model_type` in the config.json of the model
MODEL_TYPE = "step_audio_2"
#: tokens before and after a speech segment, and the one that its embeddings replace
START, PATCH, END = "<audio_start>", "<audio_patch>", "<audio_end>"

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
    if text_config.get("rope_scaling") is not None:
        raise EepolicyError(
            f"the text_config of the checkpoint has rope_scaling = {text_config['rope_scaling']}; "
            "only none is supported"
        )
    try:
        return Qwen2Config(
            vocab_size=text_config["vocab_size"],
            hidden_size=text_config["hidden_size"],
            intermediate_size=text_config["intermediate_size"],
            num_hidden_layers=text_config["num_hidden_layers"],
            num_attention_heads=text_config["num_attention_heads"],
            num_key_value_heads=text_config["num_key_value_heads"],
            max_position_embeddings=text_config["max_position_embeddings"],
            rms_norm_eps=text_config["rms_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": text_config["rope_theta"]},
            tie_word_embeddings=text_config.get("tie_word_embeddings", False),
            eos_token_id=text_config.get("eos_token_id"),
            pad_token_id=text_config.get("pad_token_id"),
        )
    except KeyError as error:
        raise EepolicyError(f"the text_config of a Step-Audio-2 model has no {error}") from error


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
        EepolicyError: a file is missing or damaged.
    """
    fast = (folder / "tokenizer.json").is_file()
    try:
        return (PreTrainedTokenizerFast if fast else Qwen2Tokenizer).from_pretrained(folder)
    except READ_ERRORS as error:
        raise EepolicyError(f"the tokenizer of {folder} cannot be loaded: {error}") from error


def native(config: dict[str, Any]) -> NativeModel[_StepAudio2]:
    """Return the native decoder and the encoder of a `config.json`, and how to convert weights.

    Raises:
        EepolicyError: a field is missing, or has a value that the loader does not support.
    """
    decoder = native_config(config.get("text_config", {}))
    audio_encoder = StepAudio2EncoderConfig.from_dict(config.get("audio_encoder_config", {}))
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
    layout = card.layout(tokenizer, model.decoder.config.vocab_size)
    start, patch, end = (tokenizer.convert_tokens_to_ids(name) for name in (START, PATCH, END))
    return HookedModel(
        finish(model.decoder),
        layout,
        tokenizer,
        card=card,
        audio_encoder=AudioPrompt(model.audio_encoder, start, patch, end),
    )
