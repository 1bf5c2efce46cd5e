"""Speech models on a stock backbone, told by a card; and folders that others are converted to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.loading.cards import ModelCard
from eepolicy.loading.huggingface import read_model, read_tokenizer, with_heads
from eepolicy.loading.upstream.checkpoint import Native, load_native, read_json
from eepolicy.speech.audio_prompt import AudioPrompt
from eepolicy.speech.step_audio2_encoder import StepAudio2Encoder, StepAudio2EncoderConfig

#: fields of `config.json` in a converted folder
CARD, AUDIO_ENCODER = "speech_card", "speech_audio_encoder"
AUDIO_ENCODER_FOLDER = "audio_encoder"


def load_declared(
    name: str | Path, dtype: torch.dtype, card: ModelCard, **options: Any
) -> HookedModel:
    """A speech model in Hugging Face format, told by a card.

    Args:
        name: a folder, or an id on the Hugging Face Hub.
        dtype: of the weights.
        card: how it speaks.
        **options: of `from_pretrained`.

    Raises:
        EepolicyError: the checkpoint is not whole, or the card is of another model.
    """
    model = read_model(name, dtype, **options)
    tokenizer = read_tokenizer(name)
    layout = card.layout(tokenizer, model.config.vocab_size)
    told = getattr(model.config, AUDIO_ENCODER, None)
    audio_encoder = (
        None if told is None else _audio_encoder(Path(name) / AUDIO_ENCODER_FOLDER, dtype, told)
    )
    if audio_encoder is not None:
        audio_encoder.encoder.to(model.device)  # type: ignore[attr-defined]
    return with_heads(
        HookedModel(model, layout, tokenizer, card=card, audio_encoder=audio_encoder), Path(name)
    )


def load_converted(folder: Path, dtype: torch.dtype, **options: Any) -> HookedModel:
    """A folder that `save_converted` wrote.

    Raises:
        EepolicyError: it is not whole.
    """
    card = ModelCard.from_dict(read_json(folder / "config.json")[CARD])
    return load_declared(folder, dtype, card, **options)


def save_converted(model: HookedModel, folder: Path) -> None:
    """Write a spoken model in Hugging Face format, its card in `config.json`, its audio encoder beside it.

    What is written loads with every option of `from_pretrained`: sharded, quantised, on devices.

    Args:
        model: with a card and a tokenizer.
        folder: to write to; must not hold a model yet.

    Raises:
        EepolicyError: the model has no card, or the folder is in use.
    """
    if model.card is None or model.tokenizer is None:
        raise EepolicyError(f"{model!r} has no card or no tokenizer: there is nothing to convert")
    if folder.exists() and any(folder.iterdir()):
        raise EepolicyError(f"{folder} holds something: give a new folder")
    setattr(model.model.config, CARD, asdict(model.card))
    if model.audio_encoder is not None:
        encoder = model.audio_encoder.encoder
        assert isinstance(encoder, StepAudio2Encoder)
        told = {k: getattr(model.audio_encoder, k) for k in ("start", "patch", "end")}
        setattr(model.model.config, AUDIO_ENCODER, told | {"sizes": asdict(encoder.config)})
    try:
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    finally:
        for name in (CARD, AUDIO_ENCODER):
            if hasattr(model.model.config, name):
                delattr(model.model.config, name)
    if model.audio_encoder is not None:
        assert isinstance(encoder, StepAudio2Encoder)
        (folder / AUDIO_ENCODER_FOLDER).mkdir()
        weights = {k: v.contiguous() for k, v in encoder.state_dict().items()}
        save_file(weights, folder / AUDIO_ENCODER_FOLDER / "model.safetensors")


def _audio_encoder(folder: Path, dtype: torch.dtype, told: dict[str, Any]) -> AudioPrompt:
    sizes = StepAudio2EncoderConfig.from_dict(told["sizes"])
    encoder = load_native(
        Native(lambda: StepAudio2Encoder(sizes), lambda k, t: [(k, t)]), folder, dtype
    )
    return AudioPrompt(encoder, told["start"], told["patch"], told["end"])
