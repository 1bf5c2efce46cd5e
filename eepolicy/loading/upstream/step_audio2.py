"""Step-Audio-2-mini (2507.16632): its decoder as the native Qwen2 class, and its audio_encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.loading.cards import ModelCard
from eepolicy.loading.huggingface import UNREADABLE
from eepolicy.loading.upstream.checkpoint import Native, complete, load_native, read_json
from eepolicy.speech.audio_prompt import AudioPrompt
from eepolicy.speech.step_audio2_encoder import StepAudio2Encoder, StepAudio2EncoderConfig

#: what the model's config.json says it is
MODEL_TYPE = "step_audio_2"
#: tokens around what is heard, and the one in its place
START, PATCH, END = "<audio_start>", "<audio_patch>", "<audio_end>"

#: names of the audio encoder' weights, theirs to ours
_ENCODER = {
    "encoder.conv1.": "conv1.",
    "encoder.conv2.": "conv2.",
    "encoder.positional_embedding.": "positions.",
    "encoder.after_norm.": "norm.",
    "adapter.conv.": "shrink.",
    "adapter.linear1.": "widen.",
    "adapter.linear2.": "project.",
}
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


class _Whole(nn.Module):
    """Decoder and audio encoder, as they lie in one checkpoint."""

    def __init__(self, decoder: Qwen2Config, audio_encoder: StepAudio2EncoderConfig) -> None:
        super().__init__()
        self.decoder = Qwen2ForCausalLM(decoder)
        self.audio_encoder = StepAudio2Encoder(audio_encoder)


def native_config(theirs: dict[str, Any]) -> Qwen2Config:
    """The native config of the decoder.

    Args:
        theirs: `text_config` as a dict.

    Raises:
        EepolicyError: a field is missing, or asks for what the native class does not do.
    """
    if theirs.get("rope_scaling") is not None:
        raise EepolicyError(f"the checkpoint has rope_scaling = {theirs['rope_scaling']}")
    try:
        return Qwen2Config(
            vocab_size=theirs["vocab_size"],
            hidden_size=theirs["hidden_size"],
            intermediate_size=theirs["intermediate_size"],
            num_hidden_layers=theirs["num_hidden_layers"],
            num_attention_heads=theirs["num_attention_heads"],
            num_key_value_heads=theirs["num_key_value_heads"],
            max_position_embeddings=theirs["max_position_embeddings"],
            rms_norm_eps=theirs["rms_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": theirs["rope_theta"]},
            tie_word_embeddings=theirs.get("tie_word_embeddings", False),
            eos_token_id=theirs.get("eos_token_id"),
            pad_token_id=theirs.get("pad_token_id"),
        )
    except KeyError as error:
        raise EepolicyError(f"text_config of a Step-Audio-2 model has no {error}") from error


def convert(key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """One of their weights as ours: the decoder's have the native names already."""
    if key.startswith("encoder.blocks."):
        number, _, rest = key.removeprefix("encoder.blocks.").partition(".")
        theirs = next((t for t in _BLOCK if rest.startswith(t)), "")
        yield (
            f"audio_encoder.layers.{number}.{_BLOCK.get(theirs, '')}{rest.removeprefix(theirs)}",
            tensor,
        )
    elif key.startswith(("encoder.", "adapter.")):
        theirs = next((t for t in _ENCODER if key.startswith(t)), "")
        yield f"audio_encoder.{_ENCODER.get(theirs, '')}{key.removeprefix(theirs)}", tensor
    else:
        yield f"decoder.{key}", tensor


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer, with no code of the checkpoint.

    Raises:
        EepolicyError: a file is missing or damaged.
    """
    whole = (folder / "tokenizer.json").is_file()
    try:
        return (PreTrainedTokenizerFast if whole else Qwen2Tokenizer).from_pretrained(folder)
    except UNREADABLE as error:
        raise EepolicyError(f"the tokenizer of {folder} cannot be read: {error}") from error


def native(config: dict[str, Any]) -> Native[_Whole]:
    """How a checkpoint becomes the native decoder and the audio encoder, by its `config.json`.

    Raises:
        EepolicyError: a field is missing, or asks for what the native class does not do.
    """
    decoder = native_config(config.get("text_config", {}))
    audio_encoder = StepAudio2EncoderConfig.from_dict(config.get("audio_encoder_config", {}))
    return Native(lambda: _Whole(decoder, audio_encoder), convert)


def load(folder: Path, dtype: torch.dtype, card: ModelCard) -> HookedModel:
    """Step-Audio-2-mini from a folder in its authors' layout, without a vocoder.

    Args:
        folder: with `config.json`, safetensors and the tokenizer.
        dtype: of the weights.
        card: how it speaks.

    Raises:
        EepolicyError: a file or key is missing, damaged or of another model.
    """
    whole = load_native(native(read_json(folder / "config.json")), folder, dtype)
    tokenizer = read_tokenizer(folder)
    layout = card.layout(tokenizer, whole.decoder.config.vocab_size)
    start, patch, end = (tokenizer.convert_tokens_to_ids(name) for name in (START, PATCH, END))
    return HookedModel(
        complete(whole.decoder),
        layout,
        tokenizer,
        card=card,
        audio_encoder=AudioPrompt(whole.audio_encoder, start, patch, end),
    )
