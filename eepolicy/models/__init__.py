"""Loading models: the pocket model, a folder in its format, or any causal language model."""

from __future__ import annotations

from pathlib import Path

import torch

from eepolicy.errors import EepolicyError
from eepolicy.model.hooked import HookedModel
from eepolicy.models.checkpoint import load_text
from eepolicy.models.glm_voice import MODEL_TYPE, load_glm_voice
from eepolicy.models.original import read_json
from eepolicy.models.pocket import held_out, load_spoken, pocket_folder

__all__ = ["held_out", "load", "pocket_folder"]


def load(name: str = "pocket", dtype: torch.dtype = torch.float32) -> HookedModel:
    """Load a model, ready to decode, and to speak where it is a spoken one.

    Args:
        name: `"pocket"`, a folder in its format, a folder with GLM-4-Voice as its authors publish
            it, or any causal language model of a known family: a folder in Hugging Face format or
            an id on the Hub, which is fetched from there.
        dtype: of the weights.

    Raises:
        EepolicyError: there is no such model, or it is not whole.

    Example:
        >>> load("pocket").depth
        20
    """
    folder = pocket_folder() if name == "pocket" else Path(name)
    if folder.exists() and not (folder / "config.json").is_file():
        raise EepolicyError(f"{folder} is no model: it has no config.json")
    if folder.exists() and "speech_layout" in (folder / "config.json").read_text():
        return load_spoken(folder, dtype)
    if folder.exists() and read_json(folder / "config.json").get("model_type") == MODEL_TYPE:
        return load_glm_voice(folder, dtype)
    return load_text(name, dtype)
