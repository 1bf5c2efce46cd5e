"""The checkpoint of GLM-4-Voice's speech tokenizer, in its authors' layout."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.loading.hub import fetch
from eepolicy.loading.huggingface import read_config
from eepolicy.loading.upstream.checkpoint import NativeModel, load_native
from eepolicy.speech.glm_speech_tokenizer import (
    GlmSpeechTokenizer,
    GlmSpeechTokenizerConfig,
    UnitPrompt,
)

#: name of the checkpoint's folder, and its id on the Hub
FOLDER, HUB_ID = "glm-4-voice-tokenizer", "zai-org/glm-4-voice-tokenizer"
#: prefixes of the encoder's weights in the layouts of the checkpoint
_PREFIXES = ("model.encoder.", "encoder.", "")
#: weights that only training or the layers after the codebook need
_UNUSED = ("embed_positions2.", "ema_", "layer_norm.", "decoder.", "proj_out.")


def convert(config: GlmSpeechTokenizerConfig, key: str, tensor: Tensor) -> Iterator[Any]:
    """Convert the name of a weight; those after the codebook are dropped."""
    prefix = next(p for p in _PREFIXES if key.startswith(p))
    name = key.removeprefix(prefix).removeprefix("model.")
    if name.startswith(_UNUSED):
        return
    if name.startswith("layers."):
        number = name.split(".")[1]
        if number.isdigit() and int(number) >= config.quantize_position:
            return
    yield name, tensor


def load_speech_tokenizer(folder: Path, dtype: torch.dtype = torch.float32) -> GlmSpeechTokenizer:
    """Load the speech tokenizer of GLM-4-Voice.

    Args:
        folder: folder of the checkpoint.
        dtype: dtype of the weights.  In lower precision some units change.

    Raises:
        EepolicyError: a file or key is missing or damaged, or belongs to another model.
    """
    config = GlmSpeechTokenizerConfig.from_dict(read_config(folder / "config.json"))
    native = NativeModel(lambda: GlmSpeechTokenizer(config), partial(convert, config))
    return load_native(native, folder, dtype)


def add_speech_tokenizer(model: HookedModel, source: str | Path = HUB_ID) -> HookedModel:
    """Let GLM-4-Voice take spoken questions.

    Args:
        model: GLM-4-Voice.
        source: folder of the speech tokenizer, or its id on the Hub.

    Returns:
        The model, whose prompts can be sound files and waveforms now.

    Raises:
        EepolicyError: the model has another card, or the checkpoint cannot be loaded.
    """
    card, tokenizer = model.card, model.tokenizer
    if card is None or card.audio_start is None or tokenizer is None:
        raise EepolicyError(
            "a speech tokenizer is for a model whose prompts contain speech tokens, such as "
            f"glm-4-voice; this model is {card.name if card else 'without a card'}"
        )
    folder = Path(source) if Path(source).is_dir() else fetch(str(source))
    encoder = load_speech_tokenizer(folder).to(model.device)
    codes = model.layout.num_codes
    if encoder.config.quantize_vocab_size != codes:
        raise EepolicyError(
            f"the speech tokenizer has {encoder.config.quantize_vocab_size} units, and the model "
            f"has {codes}"
        )
    start, end = (
        int(tokenizer.convert_tokens_to_ids(name))
        for name in (card.audio_start, card.audio_start.replace("begin", "end"))
    )
    model.audio_encoder = UnitPrompt(encoder, start, -1, end, model.layout.speech[0])
    return model


def beside(folder: Path) -> Path | None:
    """The speech tokenizer in the folder of a model or beside it; None if there is none."""
    candidates = (folder / FOLDER, folder.absolute().parent / FOLDER)
    return next((f for f in candidates if (f / "config.json").is_file()), None)
