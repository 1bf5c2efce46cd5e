"""Loading models: the pocket model, the paper's two, and any causal language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.loading.cards import ModelCard, card_named, shipped_cards
from eepolicy.loading.convert import CARD, load_converted, load_declared, save_converted
from eepolicy.loading.hub import fetch, fetch_config
from eepolicy.loading.huggingface import load_text
from eepolicy.loading.pocket import held_out, load_spoken, pocket_folder
from eepolicy.loading.upstream import glm4_voice, step_audio2
from eepolicy.loading.upstream.checkpoint import read_json

__all__ = [
    "ModelCard",
    "card_named",
    "held_out",
    "load",
    "pocket_folder",
    "save_converted",
    "shipped_cards",
]

#: checkpoints in their authors' layout, by model type: the module for them, and the model's card
ORIGINAL = {
    glm4_voice.MODEL_TYPE: (glm4_voice, "glm-4-voice"),
    step_audio2.MODEL_TYPE: (step_audio2, "step-audio-2-mini"),
}


def load(
    name: str = "pocket",
    dtype: torch.dtype = torch.float32,
    card: str | Path | ModelCard | None = None,
    **options: Any,
) -> HookedModel:
    """Load a model, ready to decode, and to speak where it is a spoken one.

    Args:
        name: `"pocket"`; a folder or an id on the Hugging Face Hub, which is fetched from there:
            GLM-4-Voice and Step-Audio-2-mini as their authors publish them, what `eepolicy convert`
            wrote, or any causal language model of a known family.
        dtype: of the weights.
        card: how a model speaks that does not say so itself: the name of a card that ships (see
            `eepolicy models`), a TOML file, or a `ModelCard`.
        **options: of `from_pretrained`, such as `device_map`, `attn_implementation` and
            `quantization_config`.

    Raises:
        EepolicyError: there is no such model, or it is not whole, or the card is of another one.

    Examples:
        >>> load("pocket").depth
        20
    """
    told = None if card is None else card_named(card)
    folder = pocket_folder() if name == "pocket" else Path(name)
    if folder.exists() and not (folder / "config.json").is_file():
        raise EepolicyError(f"{folder} is no model: it has no config.json")
    file = folder / "config.json" if folder.exists() else fetch_config(name)
    config = read_json(file)
    if config.get("model_type") in ORIGINAL:
        if options:
            raise EepolicyError(
                f"{name} is read weight by weight, without {', '.join(sorted(options))}: convert "
                f"it first, with 'eepolicy convert {name} FOLDER', and load that folder"
            )
        module, own = ORIGINAL[config["model_type"]]
        whole = folder if folder.exists() else fetch(name)
        model: HookedModel = module.load(whole, dtype, told or card_named(own))
        return model
    if told is not None:
        return load_declared(folder if folder.exists() else name, dtype, told, **options)
    if "speech_layout" in config:
        return load_spoken(folder if folder.exists() else fetch(name), dtype)
    if CARD in config:
        return load_converted(folder if folder.exists() else fetch(name), dtype, **options)
    known = next((c for c in shipped_cards().values() if c.source == name), None)
    if known is not None:
        return load_declared(name, dtype, known, **options)
    return load_text(name, dtype, **options)
