"""The codec that a model card names, as the vocoder of a model."""

from __future__ import annotations

from pathlib import Path

from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.speech.codecs import CodecVocoder, load_codec


def codec_for(model: HookedModel, source: str | Path = "auto") -> CodecVocoder:
    """Load the codec of a model whose card names one.

    Args:
        model: model with a card.
        source: folder of the codec, or its id on the Hugging Face Hub; `"auto"` for the id in the
            card.

    Raises:
        EepolicyError: the card names no codec, or the codec cannot be loaded or is of another
            model.
    """
    card = model.card
    if card is not None and card.codec is None and card.vocoder:
        raise EepolicyError(
            f"transformers has no codec for {card.name}; its sound needs {card.vocoder}: install "
            "it, and set `model.vocoder` to an object with a method decode(units) -> (samples,) "
            "and an attribute sampling_rate"
        )
    if card is None or card.codec is None:
        raise EepolicyError(
            "a vocoder by name is for models whose card has a codec, such as llasa: give another "
            "vocoder as an object, `model.vocoder = ...`"
        )
    if str(source) == "auto":
        if card.codec_source is None:
            raise EepolicyError(
                f"the card {card.name} has no codec_source: give the folder or the id of the codec"
            )
        source = card.codec_source
    codec = load_codec(source, str(model.device), card.codec)
    if codec.num_codes < model.layout.num_units:
        raise EepolicyError(
            f"the codec {source} has {codec.num_codes} units, and {card.name} has "
            f"{model.layout.num_units}: it is the codec of another model"
        )
    return codec
