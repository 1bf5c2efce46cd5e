"""Read files of fitted heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.formats import HeadsHeader, parse
from eepolicy.heads.fingerprint import describe, fingerprint
from eepolicy.heads.fitted import KINDS, FittedHead
from eepolicy.heads.lens import LogitLens


def read_notes(path: str | Path) -> dict[str, Any]:
    """Read the metadata of a file of heads: `kind`, `depths`, `model` and `notes`.

    Raises:
        EepolicyError: the file is not a file of heads.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {})["heads"])
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise EepolicyError(f"{path} is not a file of heads: {error}") from error
    return parse(HeadsHeader, metadata, str(path)).model_dump(exclude={"version"})


def load_heads(path: str | Path, lens: LogitLens, model: PreTrainedModel) -> FittedHead:
    """Read heads that were fitted on a model, to its device and in its precision.

    Args:
        path: file that `FittedHead.save` wrote.
        lens: norm and output embedding of the model, `HookedModel.lens`.
        model: stock model.

    Raises:
        EepolicyError: the heads were fitted on another model, are of an unknown kind, or the file
            is not a file of heads.
    """
    metadata, given = read_notes(path), fingerprint(model)
    if metadata["kind"] not in KINDS:
        raise EepolicyError(
            f"the heads in {path} are of the kind {metadata['kind']!r}; the known kinds are "
            f"{', '.join(KINDS.names())}"
        )
    if metadata["model"] != given:
        raise EepolicyError(
            f"the heads in {path} were fitted on {describe(metadata['model'])}, "
            f"this model is {describe(given)}; fit heads for it with 'eepolicy fit'"
        )
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    heads = FittedHead.from_tensors(metadata["kind"], lens, metadata["depths"], tensors)
    return heads.to(model.device, model.dtype)
