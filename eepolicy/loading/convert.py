"""Speech models with a card on a stock backbone, and folders that `eepolicy convert` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from eepolicy.errors import EepolicyError
from eepolicy.formats import parse
from eepolicy.hooked import HookedModel
from eepolicy.io import write_atomically
from eepolicy.loading.formats import AudioEncoderEntry
from eepolicy.loading.hub import hub_options
from eepolicy.loading.huggingface import read_config, read_model, read_tokenizer, with_heads
from eepolicy.loading.new_folder import new_folder
from eepolicy.loading.upstream.checkpoint import NativeModel, keep_name, load_native
from eepolicy.loading.upstream.glm_speech_tokenizer import add_speech_tokenizer, beside
from eepolicy.speech.audio_prompt import AudioPrompt
from eepolicy.speech.covo_audio_encoder import CovoAudioEncoder, CovoAudioEncoderConfig
from eepolicy.speech.glm_speech_tokenizer import UnitPrompt
from eepolicy.speech.model_card import ModelCard
from eepolicy.speech.phonemes import EspeakPhonemizer
from eepolicy.speech.step_audio2_encoder import StepAudio2Encoder, StepAudio2EncoderConfig

#: audio encoders by their name in `config.json`: what reads their sizes, and what makes them
AUDIO_ENCODERS: dict[str, tuple[Any, Callable[[Any], nn.Module]]] = {
    "step_audio_2": (StepAudio2EncoderConfig, StepAudio2Encoder),
    "covo_audio": (CovoAudioEncoderConfig, CovoAudioEncoder.make),
}
#: keys of `config.json` in a converted folder
CARD, AUDIO_ENCODER = "speech_card", "speech_audio_encoder"
#: folder of the audio encoder's weights in a converted folder
AUDIO_ENCODER_FOLDER = "audio_encoder"


def load_with_card(
    name: str | Path, dtype: torch.dtype, card: ModelCard, own_heads: bool = True, **options: Any
) -> HookedModel:
    """Load a model in Hugging Face format that speaks as a card says.

    Args:
        name: a folder, or an id on the Hugging Face Hub.
        dtype: dtype of the weights.
        card: card of the model.
        own_heads: whether to load the exit heads of the folder, if it has some.
        **options: options of `from_pretrained`.

    Raises:
        EepolicyError: the checkpoint is incomplete, or the card belongs to another model.
    """
    model, hub = read_model(name, dtype, **options), hub_options(options)
    tokenizer = read_tokenizer(name, **hub)
    layout = card.layout(tokenizer, model.config.vocab_size)
    entry = getattr(model.config, AUDIO_ENCODER, None)
    audio_encoder = None
    if entry is not None:
        where = f"{name}/config.json: {AUDIO_ENCODER}"
        folder = Path(name) / AUDIO_ENCODER_FOLDER
        audio_encoder = _load_encoder(folder, dtype, parse(AudioEncoderEntry, entry, where), where)
        audio_encoder.encoder.to(model.device)  # type: ignore[attr-defined]
    hooked = HookedModel(model, layout, tokenizer, card=card, audio_encoder=audio_encoder)
    speech_tokenizer = None if card.audio_start is None else beside(Path(name))
    if speech_tokenizer is not None:
        add_speech_tokenizer(hooked, speech_tokenizer)
    if card.phonemes is not None:
        hooked.phonemizer = EspeakPhonemizer(card.phonemes)
    return with_heads(hooked, name, own_heads, **hub)


def load_converted(folder: Path, dtype: torch.dtype, **options: Any) -> HookedModel:
    """Load a folder that `save_converted` wrote.

    Args:
        folder: the folder.
        dtype: dtype of the weights.
        **options: options of `from_pretrained`.

    Raises:
        EepolicyError: the folder is incomplete.
    """
    file = folder / "config.json"
    card = ModelCard.from_dict(read_config(file)[CARD], f"{file}: {CARD}")
    return load_with_card(folder, dtype, card, **options)


def save_converted(model: HookedModel, folder: str | Path) -> None:
    """Write a speech model in Hugging Face format.

    `config.json` contains the card.  A subfolder contains the audio encoder.  The folder loads
    with every option of `from_pretrained`: sharded, quantized, on several devices.  A speech
    tokenizer stays in its own folder, beside this one.

    Args:
        model: a model with a card and a tokenizer.
        folder: a new or empty folder.

    Raises:
        EepolicyError: the model has no card or no tokenizer, or the folder is not empty.
    """
    if model.card is None or model.tokenizer is None:
        raise EepolicyError(
            f"{model!r} has no card or no tokenizer; only a speech model with both is converted"
        )
    entries = {CARD: model.card.to_dict()}
    has_encoder = not isinstance(model.audio_encoder, UnitPrompt | None)
    if has_encoder:
        assert model.audio_encoder is not None
        encoder = model.audio_encoder.encoder
        kind = _kind_of(encoder)
        ids = {name: getattr(model.audio_encoder, name) for name in ("start", "patch", "end")}
        sizes = dict(vars(encoder.config))  # type: ignore[attr-defined]
        entries[AUDIO_ENCODER] = AudioEncoderEntry(**ids, sizes=sizes, kind=kind).model_dump()
    with new_folder(folder) as part:
        try:
            for name, entry in entries.items():
                setattr(model.model.config, name, entry)
            model.model.save_pretrained(part)
            model.tokenizer.save_pretrained(part)
        finally:
            for name in entries:
                delattr(model.model.config, name)
        if has_encoder:
            assert isinstance(encoder, nn.Module)
            (part / AUDIO_ENCODER_FOLDER).mkdir()
            weights = {name: value.contiguous() for name, value in encoder.state_dict().items()}
            write_atomically(
                part / AUDIO_ENCODER_FOLDER / "model.safetensors",
                lambda path: save_file(weights, path),
                sum(value.nbytes for value in weights.values()),
            )


def _load_encoder(
    folder: Path, dtype: torch.dtype, entry: AudioEncoderEntry, where: str
) -> AudioPrompt:
    native: NativeModel[Any] = NativeModel(lambda: _make_encoder(entry, where), keep_name)
    encoder = load_native(native, folder, dtype)
    return AudioPrompt(encoder, entry.start, entry.patch, entry.end)


def _make_encoder(entry: AudioEncoderEntry, where: str) -> nn.Module:
    """The encoder of an entry of `config.json`, with new weights."""
    config, make = AUDIO_ENCODERS[entry.kind]
    return make(config.from_dict(entry.sizes, where))


def _kind_of(encoder: object) -> Any:
    """The name of an audio encoder in `config.json`."""
    sizes = getattr(encoder, "config", None)
    kinds = [kind for kind, (config, _) in AUDIO_ENCODERS.items() if isinstance(sizes, config)]
    if not kinds:
        raise EepolicyError(
            f"{type(encoder).__name__} is no audio encoder that can be written; there are "
            f"{', '.join(AUDIO_ENCODERS)}"
        )
    return kinds[0]
