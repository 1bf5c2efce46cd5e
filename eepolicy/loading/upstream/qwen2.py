"""What the loaders of models on a Qwen2 decoder share: config, tokenizer and audio prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.loading.huggingface import READ_ERRORS
from eepolicy.loading.upstream.checkpoint import finish
from eepolicy.speech.audio_prompt import AudioEncoder, AudioPrompt
from eepolicy.speech.config_fields import check_supported, read_size
from eepolicy.speech.model_card import ModelCard

#: fields of the decoder's config, with the value that the loaders support
_SUPPORTED = {"rope_scaling": None, "use_sliding_window": False, "hidden_act": "silu"}
#: sizes in the decoder's config
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)


def decoder_config(data: dict[str, Any], where: str) -> Qwen2Config:
    """Convert the config of a decoder to the native one.

    Args:
        data: the config; the base of the rotary frequencies is in `rope_theta`, or in
            `rope_parameters` as transformers 5 writes it.
        where: the part of `config.json` that contains it, for messages.

    Raises:
        EepolicyError: a field is missing, or has a value that the loaders do not support.
    """
    check_supported(data, _SUPPORTED, where)
    rope = data.get("rope_parameters") or data
    check_supported(rope, {"rope_type": "default"}, f"rope_parameters in the {where}")
    for values, name in ((data, "rms_norm_eps"), (rope, "rope_theta")):
        if not isinstance(values.get(name), (int, float)):
            raise EepolicyError(f"the {where} has {name} = {values.get(name)!r}; expected a number")
    try:
        return Qwen2Config(
            **{name: read_size(data, name, where) for name in _SIZES},
            rms_norm_eps=data["rms_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": rope["rope_theta"]},
            tie_word_embeddings=data.get("tie_word_embeddings", False),
            eos_token_id=data.get("eos_token_id"),
            pad_token_id=data.get("pad_token_id"),
        )
    except StrictDataclassError as error:
        raise EepolicyError(f"the {where} is refused: {error}") from error


def read_tokenizer(folder: Path, needed: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Load the tokenizer, without code of the checkpoint.

    Args:
        folder: folder of the checkpoint.
        needed: tokens that it must have.

    Raises:
        EepolicyError: a file is missing or damaged, or the tokenizer lacks a token.
    """
    fast = (folder / "tokenizer.json").is_file()
    try:
        tokenizer = (PreTrainedTokenizerFast if fast else Qwen2Tokenizer).from_pretrained(folder)
    except READ_ERRORS as error:
        raise EepolicyError(f"the tokenizer of {folder} cannot be loaded: {error}") from error
    missing = sorted(set(needed) - tokenizer.get_vocab().keys())
    if missing:
        raise EepolicyError(
            f"the tokenizer of {folder} has no {', '.join(missing)}: it belongs to another model"
        )
    return tokenizer


def hooked(
    decoder: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    card: ModelCard,
    audio_encoder: AudioEncoder,
    audio_tokens: tuple[str, str, str],
) -> HookedModel:
    """Return the loaded decoder with its tokenizer and its audio encoder.

    Args:
        decoder: decoder from `load_native`.
        tokenizer: its tokenizer.
        card: card of the model.
        audio_encoder: encoder of spoken prompts.
        audio_tokens: tokens before a segment of a spoken prompt, in place of an embedding, and
            after a segment.

    Raises:
        EepolicyError: the tokenizer or the vocabulary belongs to another model than the card.
    """
    layout = card.layout(tokenizer, decoder.config.vocab_size)
    start, patch, end = (tokenizer.convert_tokens_to_ids(name) for name in audio_tokens)
    prompt = AudioPrompt(audio_encoder, start, patch, end)
    return HookedModel(finish(decoder), layout, tokenizer, card=card, audio_encoder=prompt)
