"""Loading models: the pocket model, or a folder in its format."""

from __future__ import annotations

from pathlib import Path

import torch

from eepolicy.errors import EepolicyError
from eepolicy.model.hooked import HookedModel
from eepolicy.models.pocket import held_out, load_spoken, pocket_folder

__all__ = ["held_out", "load", "pocket_folder"]


def load(name: str = "pocket", dtype: torch.dtype = torch.float32) -> HookedModel:
    """Load a spoken language model, ready to decode and to speak.

    Args:
        name: `"pocket"`, or a folder in its format.
        dtype: of the weights.

    Raises:
        EepolicyError: there is no such model.

    Example:
        >>> load("pocket").depth
        20
    """
    folder = pocket_folder() if name == "pocket" else Path(name)
    if not folder.is_dir():
        raise EepolicyError(f"no model {name!r}: give 'pocket' or a folder")
    return load_spoken(folder, dtype)
