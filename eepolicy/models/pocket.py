"""The pocket model: a small interleaved spoken language model that ships with the package."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from eepolicy.errors import EepolicyError
from eepolicy.heads.tuned import TunedLens
from eepolicy.modality import TokenLayout
from eepolicy.model.hooked import HookedModel
from eepolicy.speech.units import Units


def pocket_folder() -> Path:
    """Where the shipped model lies."""
    return Path(str(files("eepolicy") / "models" / "pocket_model"))


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
                f"{folder} has no {name}: install the package anew, or train the model with "
                "'python -m pocket.train'"
            )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    layout = getattr(model.config, "speech_layout", None)
    if layout is None:
        raise EepolicyError(f"{folder}/config.json has no speech_layout: it is no spoken model")
    hooked = HookedModel(
        model,
        layout=TokenLayout.from_dict(layout),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
        vocoder=Units.load(folder / "units.safetensors"),
    )
    if (folder / "heads.safetensors").is_file():
        hooked.heads = TunedLens.load(folder / "heads.safetensors", hooked.lens, model)
    return hooked


def held_out(split: str = "test", folder: Path | None = None) -> list[dict]:
    """The held-out questions of the pocket model, none of which it was trained on.

    Args:
        split: `"test"` for figures, `"dev"` for choosing and calibrating.
        folder: of the model; the shipped one where none is given.

    Returns:
        Dicts with `suite`, `kind`, `question`, `answer` and `keys`, the phrases that make an answer
        right.
    """
    path = (folder or pocket_folder()) / "held_out.json"
    sets = json.loads(path.read_text())
    if split not in sets:
        raise EepolicyError(f"the held-out sets are {', '.join(sets)}; got {split!r}")
    return sets[split]
