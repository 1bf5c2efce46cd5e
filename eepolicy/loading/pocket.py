"""The pocket model: a small interleaved spoken language model that ships with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from eepolicy.arguments import checked
from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.loading.huggingface import READ_ERRORS, read_config, read_model, with_heads
from eepolicy.modality import TokenLayout
from eepolicy.speech.units import Units


def pocket_folder() -> Path:
    """Return the folder of the shipped model."""
    return Path(str(files("eepolicy") / "loading" / "pocket_model"))


def load_spoken(
    folder: Path, dtype: torch.dtype = torch.float32, own_heads: bool = True, **options: Any
) -> HookedModel:
    """Load a spoken language model in the pocket model's format.

    Args:
        folder: folder with `config.json` (its `speech_layout` is a `TokenLayout`),
            `model.safetensors`, `tokenizer.json`, `units.safetensors`, and optionally
            `vocoder.safetensors` and `heads.safetensors`.
        dtype: dtype of the weights; compiled layers on a CPU are faster in bfloat16.
        own_heads: whether to load the exit heads of the folder, if it has some.
        **options: options of `from_pretrained`, such as `device_map`.

    Raises:
        EepolicyError: a file is missing or belongs to another model.
    """
    for name in ("config.json", "model.safetensors", "tokenizer.json", "units.safetensors"):
        if not (folder / name).is_file():
            raise EepolicyError(
                f"{folder} has no {name}: reinstall the package, or give the folder of a model in "
                "the pocket model's format"
            )
    model = read_model(folder, dtype, **options)
    try:
        layout = TokenLayout.from_dict(model.config.speech_layout)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        vocoder = Units.load(folder / "units.safetensors")
    except READ_ERRORS as error:
        raise EepolicyError(f"the spoken model in {folder} cannot be loaded: {error}") from error
    return with_heads(HookedModel(model, layout, tokenizer, vocoder=vocoder), folder, own_heads)


@checked()
def held_out(split: str = "test", folder: str | Path | None = None) -> list[dict[str, Any]]:
    """Return questions whose answers a pocket model was not trained on, with any opening.

    Args:
        split: `"test"` for results, `"dev"` for model selection and calibration.
        folder: folder of the model; by default the shipped one.

    Returns:
        Dicts with `suite`, `kind`, `question`, `answer` and `keys`, the phrases that a right answer
        contains.

    Raises:
        EepolicyError: the split does not exist, or its file cannot be read.
    """
    splits: dict[str, list[dict[str, Any]]] = read_config(
        Path(pocket_folder() if folder is None else folder) / "held_out.json"
    )
    if split not in splits:
        raise EepolicyError(f"the held-out splits are {', '.join(splits)}; got {split!r}")
    return splits[split]
