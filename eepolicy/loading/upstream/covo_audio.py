"""Covo-Audio-Chat (arXiv 2602.09823): its decoder in the native Qwen2 class, and its encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.loading.huggingface import read_config
from eepolicy.loading.upstream import qwen2
from eepolicy.loading.upstream.checkpoint import (
    NativeModel,
    keep_name,
    load_native,
    section,
)
from eepolicy.speech.config_fields import check_supported
from eepolicy.speech.covo_audio_encoder import (
    HALVINGS,
    MELS,
    POSITIONS,
    CovoAudioAdapter,
    CovoAudioEncoder,
    CovoAudioEncoderConfig,
)
from eepolicy.speech.model_card import ModelCard

#: `model_type` in the config.json of the model
MODEL_TYPE = "covo_audio"
#: tokens before a segment of a spoken prompt, in place of an embedding, and after a segment
AUDIO_TOKENS = ("<|begofcAUDIO|>", "<|cAUDIO|>", "<|endofcAUDIO|>")
#: fields of the encoder's config, with the value that the loader supports
_SUPPORTED = {
    "num_mel_bins": MELS,
    "max_source_positions": POSITIONS,
    "activation_function": "gelu",
    "scale_embedding": False,
}


class _CovoAudio(nn.Module):
    """Decoder, Whisper encoder and adapter, named as in the files of a checkpoint."""

    def __init__(self, llm: Qwen2Config, audio: CovoAudioEncoderConfig) -> None:
        super().__init__()
        self.audio = audio
        self.llm = Qwen2ForCausalLM(llm)
        self.encoder = WhisperEncoder(audio.whisper)
        self.audio_adapter = CovoAudioAdapter(audio)

    @property
    def decoder(self) -> Qwen2ForCausalLM:
        """The decoder, whose weights begin with `llm.` in the files."""
        return self.llm


def native(config: dict[str, Any]) -> NativeModel[_CovoAudio]:
    """Return the native parts of a `config.json`, whose weights have the names of the files.

    Raises:
        EepolicyError: a field is missing, or has a value that the loader does not support.
    """
    # the authors' class never ties the embeddings to the head, whatever its config says
    llm = section(config, "llm_config") | {"tie_word_embeddings": False}
    whisper = section(config, "encoder_config")
    check_supported(config, {"adapter_downsample": 2**HALVINGS}, "config.json")
    check_supported(whisper, _SUPPORTED, "encoder_config in config.json")
    decoder = qwen2.decoder_config(llm, "llm_config in config.json")
    audio = CovoAudioEncoderConfig.from_dict(whisper | {"hidden_size": decoder.hidden_size})
    return NativeModel(lambda: _CovoAudio(decoder, audio), keep_name)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer, without code of the checkpoint.

    Raises:
        EepolicyError: a file is missing or damaged, or the tokenizer lacks a token of spoken
            prompts.
    """
    return qwen2.read_tokenizer(folder, AUDIO_TOKENS)


def load(folder: Path, dtype: torch.dtype, card: ModelCard) -> HookedModel:
    """Load Covo-Audio-Chat from a folder in its authors' layout, without a vocoder.

    Args:
        folder: folder with `config.json`, safetensors and the tokenizer.
        dtype: dtype of the weights.
        card: card of the model.

    Raises:
        EepolicyError: a file or key is missing or damaged, or belongs to another model.
    """
    file = folder / "config.json"
    config = read_config(file)
    first = config.get("audio_token_index", card.unit)
    if isinstance(card.unit, int) and first != card.unit:
        raise EepolicyError(
            f"{file} has audio_token_index = {first}, and the first speech token of the card "
            f"{card.name} is {card.unit}: give a card for this model"
        )
    model = load_native(native(config), folder, dtype)
    encoder = CovoAudioEncoder(model.audio, model.encoder, model.audio_adapter)
    return qwen2.hooked(model.llm, read_tokenizer(folder), card, encoder, AUDIO_TOKENS)
