"""Read files of fitted heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.formats import HeadsHeader, parse
from eepolicy.heads.fingerprint import check_fingerprint
from eepolicy.heads.fitted import KINDS, DepthHead, FittedHead
from eepolicy.heads.lens import LogitLens
from eepolicy.heads.weights import device_of
from eepolicy.io import open_tensors


def read_notes(path: str | Path) -> dict[str, Any]:
    """Read the metadata of a file of heads: `kinds`, `depths`, `model` and `notes`.

    Raises:
        EepolicyError: the file is not a file of heads.
    """
    with open_tensors(path, "heads", "a file of heads") as (metadata, _):
        pass
    return parse(HeadsHeader, metadata, str(path)).model_dump(exclude={"version"})


def load_heads(
    path: str | Path, lens: LogitLens, model: PreTrainedModel, kind: str | None = None
) -> FittedHead:
    """Read heads that were fitted on a model, to its device and in its precision.

    Args:
        path: file that `FittedHead.save` wrote.
        lens: norm, output embedding and layers of the model, `HookedModel.lens`.
        model: stock model.
        kind: kind of heads to read; None reads the preferred head of each depth.

    Raises:
        EepolicyError: the heads were fitted on another model or are of an unknown kind, the file
            has none of the kind, or it is not a file of heads.
    """
    metadata = read_notes(path)
    kinds: list[str] = metadata["kinds"]
    for unknown in sorted({*kinds} - {*KINDS.names()}):
        raise EepolicyError(
            f"the heads in {path} are of the kind {unknown!r}; the known kinds are "
            f"{', '.join(KINDS.names())}"
        )
    if kind is not None and kind not in kinds:
        raise EepolicyError(
            f"{path} has no heads of the kind {kind!r}; it has {', '.join(sorted({*kinds}))}"
        )
    check_fingerprint(
        metadata["model"],
        model,
        f"the heads in {path} were fitted on",
        "fit heads for it with 'eepolicy fit'",
    )
    chosen: dict[int, str] = {}
    for depth, own in zip(metadata["depths"], kinds, strict=True):
        if kind in (None, own):
            chosen.setdefault(depth, own)
    heads: dict[int, DepthHead] = {}
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        for depth, own in chosen.items():
            prefix = f"{own}.{depth}."
            weights = {
                name.removeprefix(prefix): file.get_tensor(name)
                for name in names
                if name.startswith(prefix)
            }
            heads[depth] = KINDS.get(own).restore(lens, depth, weights)
    return FittedHead(heads).to(device_of(model), model.dtype)
