"""The pocket model: a small interleaved spoken language model that ships with the package."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.loading.huggingface import UNREADABLE, read_model, with_heads
from eepolicy.modality import TokenLayout
from eepolicy.speech.units import Units


def pocket_folder() -> Path:
    """Where the shipped model lies."""
    return Path(str(files("eepolicy") / "loading" / "pocket_model"))


def load_spoken(folder: Path, dtype: torch.dtype = torch.float32) -> HookedModel:
    """Load a spoken language model in the pocket model's format.

    Args:
        folder: with `config.json` (its `speech_layout` is a `TokenLayout`), `model.safetensors`,
            the tokenizer, `units.safetensors` and, where heads were fitted, `heads.safetensors`.
        dtype: of the weights; float32 is fastest on most CPUs at this size.

    Raises:
        EepolicyError: a file is missing or does not fit.
    """
    for name in ("config.json", "model.safetensors", "tokenizer.json", "units.safetensors"):
        if not (folder / name).is_file():
            raise EepolicyError(
                f"{folder} has no {name}: install the package anew, or give the folder of a "
                "model in the pocket model's format"
            )
    model = read_model(folder, dtype)
    try:
        layout = TokenLayout.from_dict(model.config.speech_layout)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        vocoder = Units.load(folder / "units.safetensors")
    except UNREADABLE as error:
        raise EepolicyError(f"{folder} is no whole spoken model: {error}") from error
    return with_heads(HookedModel(model, layout, tokenizer, vocoder=vocoder), folder)


def held_out(split: str = "test", folder: Path | None = None) -> list[dict[str, Any]]:
    """Questions to a pocket model whose answers it was never trained on, behind any opening.

    Args:
        split: `"test"` for figures, `"dev"` for choosing and calibrating.
        folder: of the model; the shipped one where none is given.

    Returns:
        Dicts with `suite`, `kind`, `question`, `answer` and `keys`, the phrases that make an answer
        right.
    """
    path = (folder or pocket_folder()) / "held_out.json"
    try:
        sets: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EepolicyError(f"{path} holds no questions: {error}") from error
    if split not in sets:
        raise EepolicyError(f"the held-out sets are {', '.join(sets)}; got {split!r}")
    return sets[split]
