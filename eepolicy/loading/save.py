"""`save_pretrained`: write a hooked model to a folder that `load` reads."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eepolicy.errors import EepolicyError
from eepolicy.heads import FittedHead, LogitLens, save_predictor
from eepolicy.heads.int8 import has_int8
from eepolicy.hooked import HookedModel
from eepolicy.loading.convert import save_converted
from eepolicy.loading.hub import push_folder
from eepolicy.loading.huggingface import HEADS, PREDICTOR
from eepolicy.loading.new_folder import new_folder
from eepolicy.speech.units import Units

#: file of the speech units in a folder of the pocket model's format
UNITS = "units.safetensors"
#: key of `config.json` with the layout of a speech model without card
LAYOUT = "speech_layout"
#: notes in the files of heads and of the exit predictor
NOTES = {"saved_by": "HookedModel.save_pretrained"}


def save_pretrained(model: HookedModel, folder: str | Path) -> None:
    """Write the stock model, its tokenizer, its exit heads and what it speaks with.

    Args:
        model: a hooked model.  Its heads are the logit lens, or were fitted by `eepolicy fit`.
        folder: a new or empty folder.

    Raises:
        EepolicyError: the folder is not empty, or the heads, the vocoder or quantised weights
            cannot be saved.
    """
    heads = model.heads
    if not isinstance(heads, (FittedHead, LogitLens)):
        raise EepolicyError(
            f"heads that 'eepolicy fit' fitted can be saved; these are {heads!r}: set "
            "model.heads = model.lens and save yours yourself"
        )
    if has_int8(model.model) or has_int8(heads):
        raise EepolicyError("weights in int8 are not saved: load the model in float32 and save it")
    with new_folder(folder) as part:
        if model.card is not None:
            save_converted(model, part)
        elif model.layout.has_speech:
            _save_spoken(model, part)
        else:
            _save_stock(model, part)
        if isinstance(heads, FittedHead):
            heads.save(part / HEADS, model.model, NOTES)
        if model.predictor is not None:
            save_predictor(model.predictor, part / PREDICTOR, model.model, NOTES)


def push_to_hub(model: HookedModel, repo_id: str, **options: Any) -> str:
    """Upload what `save_pretrained` writes to the Hugging Face Hub.

    Args:
        model: see `save_pretrained`.
        repo_id: repository, which is created if it does not exist.
        **options: `private` and `token`.

    Returns:
        Address of the commit.

    Raises:
        EepolicyError: the model cannot be saved, or the upload fails.
    """
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        return push_folder(Path(folder), repo_id, **options)


def _save_stock(model: HookedModel, folder: Path, layout: dict[str, Any] | None = None) -> None:
    """The stock model and its tokenizer, with a layout in the config or with none."""
    config = model.model.config
    own = vars(config).pop(LAYOUT, None)
    if layout is not None:
        setattr(config, LAYOUT, layout)
    try:
        model.model.save_pretrained(folder)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(folder)
    finally:
        vars(config).pop(LAYOUT, None)
        if own is not None:
            setattr(config, LAYOUT, own)


def _save_spoken(model: HookedModel, folder: Path) -> None:
    """A speech model in the pocket model's format: layout in the config, and its units."""
    if not isinstance(model.vocoder, Units) or model.tokenizer is None:
        raise EepolicyError(
            "a speech model without a card is saved with its tokenizer and with speech units as "
            f"vocoder; this one has {model.vocoder!r} and {model.tokenizer!r:.60}"
        )
    _save_stock(model, folder, model.layout.to_dict())
    model.vocoder.save(folder / UNITS)
